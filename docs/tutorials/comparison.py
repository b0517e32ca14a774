# %% [markdown]
# # Which model is best on my data
#
# The best model depends on the data. `recbole-onebp compare` trains several on one split, and says which differences
# are more than chance. We begin with a CSV file of our own.

# %%
from importlib.resources import files
from pathlib import Path

import pandas as pd
from IPython.display import Image, Markdown

source = files("recbole") / "dataset_example" / "ml-100k" / "ml-100k.inter"
ratings = pd.read_csv(source, sep="\t", header=0, names=["user", "film", "stars", "time"])
ratings[ratings["stars"] >= 4].to_csv("likes.csv", index=False)

# %% [markdown]
# `convert` makes a data set of RecBole's from it, in the folder `dataset`, with a file of the
# settings that fit it.

# %% language="bash"
# recbole-onebp convert likes.csv --name=likes --user=user --item=film --time=time

# %% [markdown]
# The comparison is a file: the data, the models, and what all of them share. Of each user the earliest 80 % of the
# rows are for training, the next 10 % choose the epoch, and the latest 10 % are the test. Any recommender of RecBole
# can take part.

# %% language="bash"
# cat > mine.yaml << END
# dataset: likes
# eval_args: {split: {RS: [0.8, 0.1, 0.1]}, order: TO, group_by: user, mode: full}
# seeds: [2020]
# models: [OneBP, EASE]
# epochs: 6
# metrics: [NDCG, Recall]
# topk: [20]
# valid_metric: NDCG@20
# END

# %% language="bash"
# recbole-onebp compare dataset/likes/likes.yaml mine.yaml --output_dir=comparison

# %% [markdown]
# ## The report
#
# `comparison/report.html` is one file with all tables and charts. The same tables are in `report.md`:

# %%
tables, _ = Path("comparison/report.md").read_text().split("\n![", maxsplit=1)
Markdown(tables.partition("\n")[2].replace("\n## ", "\n### "))

# %%
Image("comparison/figures/difference.png")

# %% [markdown]
# ## What to make of it
#
# - The epoch was chosen on validation, and the test part was looked at once. Do not choose a model by the test, tune
#   it, and look again.
# - The test over users says whether a difference is more than the chance of which users there are. For the chance of
#   a training, give more `seeds`.
# - These are default settings, with very few epochs. A fair comparison tunes all models on the same budget:
#   [`recbole-onebp tune`](../experiments.md#tune), and `tuned:` in the file of the comparison.
# - Splits by time and at random can rank models differently. Take the one that resembles the use, see [order of
#   time](../data.md#order-of-time).
