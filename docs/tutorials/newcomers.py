# %% [markdown]
# # New items and new users
#
# A user of OneBP is an aggregate of its items. So somebody new needs no training: a few items make a user. A new item
# needs a few users. We train on MovieLens-100k without fifty of its users, and without one film.

# %%
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from recbole_onebp import fit

folder = files("recbole") / "dataset_example" / "ml-100k"
likes = pd.read_csv(folder / "ml-100k.inter", sep="\t", header=0, names=["user", "film", "stars", "time"], dtype=str)
likes = likes[likes["stars"] >= "4"].sort_values("time", key=pd.to_numeric, kind="stable")
titles = pd.read_csv(folder / "ml-100k.item", sep="\t", dtype=str).set_index("item_id:token")["movie_title:token_seq"]

film = titles.index[titles == "Scream"][0]
counts = likes["user"].value_counts()
newcomers = counts[counts >= 30].sample(50, random_state=1).index
known = likes[~likes["user"].isin(newcomers) & (likes["film"] != film)]
rec = fit(known, user="user", item="film", time="time", epochs=6, seed=1)
len(known)

# %% [markdown]
# ## A new user
#
# What would somebody like who has liked two films?

# %%
liked = [titles.index[titles == name][0] for name in ("Toy Story", "Aladdin")]
(answer,) = rec.recommend_history([liked], k=5)
[titles[item] for item, _ in answer]

# %% [markdown]
# Nothing was stored. `update` keeps a user: each event moves the user at once, and moves nobody else.

# %%
update = rec.update([("somebody", item) for item in liked])
update.new_users, rec.recommend(["somebody"], k=5) == [answer]

# %% [markdown]
# How many items does it take? The fifty users left out are asked for their latest ten films, with 1 to 20 known.

# %%
history = {user: rows["film"].tolist() for user, rows in likes[likes["user"].isin(newcomers)].groupby("user")}
lengths = [1, 2, 5, 10, 20]
recall = []
for length in lengths:
    answers = rec.recommend_history([items[-10 - length : -10] for items in history.values()], k=20)
    hits = [
        len({item for item, _ in found} & set(items[-10:]))
        for found, items in zip(answers, history.values(), strict=True)
    ]
    recall.append(np.mean(hits) / 10)

plt.figure(figsize=(6, 3))
plt.plot(lengths, recall, "o-")
plt.xlabel("known films of a new user")
plt.ylabel("Recall@20")
plt.ylim(0)
plt.show()

# %% [markdown]
# ## A new item
#
# The film left out is *Scream*. Its first ten viewers make its embedding.

# %%
viewers = likes.loc[(likes["film"] == film) & likes["user"].isin(known["user"]), "user"].tolist()
new = rec.add_items({film: viewers[:10]})
new.added, new.refused

# %% [markdown]
# Do those who came later rank it higher than the others do? The rank of the film among all that a user has not seen:

# %%
others = sorted(set(known["user"]) - set(viewers))


def median_rank(users: list[str]) -> float:
    """Of the new film, in the lists of these users."""
    answers = rec.recommend(users, k=rec.n_items)
    return float(np.median([[item for item, _ in answer].index(film) + 1 for answer in answers]))


median_rank(viewers[10:]), median_rank(others)

# %% [markdown]
# New users and items bridge the time until the next training, where `refit` starts from the embeddings at hand:
# `rec.refit(likes, epochs=3)`. More: [how a history becomes a user](../serving.md#how-a-history-becomes-a-user).
