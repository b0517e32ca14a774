# %% [markdown]
# # From a DataFrame to lists
#
# You have a table that says who bought, watched or played what. Here it is MovieLens-100k, which comes with RecBole:
# each row says that somebody rated a film. We keep the ratings of 4 and 5.

# %%
from importlib.resources import files

import pandas as pd

from recbole_onebp import fit

folder = files("recbole") / "dataset_example" / "ml-100k"
ratings = pd.read_csv(folder / "ml-100k.inter", sep="\t", header=0, names=["user", "film", "stars", "time"])
ratings = ratings[ratings["stars"] >= 4].drop(columns="stars").sort_values("time")
titles = pd.read_csv(folder / "ml-100k.item", sep="\t", dtype=str).set_index("item_id:token")["movie_title:token_seq"]
ratings.head()

# %% [markdown]
# The three latest films of each user are kept aside. The model never sees them.

# %%
later = ratings.groupby("user").tail(3)
earlier = ratings.drop(later.index)

# %% [markdown]
# ## Train
#
# `fit` finds the columns by their usual names; otherwise name them with `user=`, `item=` and `time=`. It holds out a
# tenth of each user's rows to choose the number of epochs, and then trains again on all rows. All settings have
# defaults that work; `epochs` bounds the epochs tried, and `seed` makes the run repeatable.

# %%
rec = fit(earlier, user="user", item="film", time="time", epochs=6, seed=1)
rec.result.best_epoch, round(sum(rec.result.seconds.values()), 1)

# %% [markdown]
# ## Recommend
#
# `recommend` takes any number of users, and returns (item, score) pairs, the best first. Films that the user has
# rated are left out. Ids come out as text.

# %%
(answer,) = rec.recommend([196], k=5)
pd.DataFrame([(titles[film], score) for film, score in answer], columns=["film", "score"])

# %% [markdown]
# Why the first of them? `explain` says what each film of the user's history adds to the score.

# %%
explanation = rec.explain(196, answer[0][0])
pd.DataFrame([(titles[film], part) for film, part in explanation.contributions[:5]], columns=["because of", "adds"])

# %% [markdown]
# `allow` and `deny` filter: only these films, or none of those.

# %%
[(titles[film], score) for film, score in rec.recommend([196], k=3, deny=[answer[0][0]])[0]]

# %% [markdown]
# ## Check
#
# How many of the films kept aside are among the first twenty? `evaluate` ranks all films that the user has not rated.

# %%
metrics = rec.evaluate(later, metrics=["recall@20", "ndcg@20"])
dict(metrics), metrics.n_users, len(metrics.unknown_items)

# %% [markdown]
# A figure alone says little. [The next tutorial](comparison.md) compares models on the same data.
#
# ## Keep
#
# `save` writes a bundle: a folder of plain arrays. To answer from it, numpy alone is needed: no torch, no RecBole.

# %%
from recbole_onebp import Recommender

rec.save("bundle")
Recommender.load("bundle").recommend([196], k=5) == [answer]

# %% [markdown]
# More: [all about `fit`](../dataframe.md), [serving](../serving.md), [the configuration keys](../keys.md).
