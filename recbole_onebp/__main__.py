"""``python -m recbole_onebp``: the same as the command ``recbole-onebp``."""

from __future__ import annotations

import sys

from recbole_onebp.cli import main

if __name__ == "__main__":
    sys.exit(main())
