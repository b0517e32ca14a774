"""RecBole's run script, for OneBP and all RecBole models.

python run_recbole_onebp.py --model=OneBP --dataset=ml-100k [--config_files="a.yaml b.yaml"] [--any_key=value ...]
"""

import sys

from recbole_onebp.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
