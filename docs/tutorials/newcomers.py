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

from recbole_onebp import Recommender, fit

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
# Ten viewers say that people like it, and little about who does: its median rank, among all that a user has not seen,
# for those who came later and for the others.

# %%
others = sorted(set(known["user"]) - set(viewers))


def median_rank(model: Recommender, users: list[str]) -> float:
    """Of the new film, in the lists of these users."""
    answers = model.recommend(users, k=model.n_items)
    return float(np.median([[item for item, _ in answer].index(film) + 1 for answer in answers]))


median_rank(rec, viewers[10:]), median_rank(rec, others)

# %% [markdown]
# ## A new item that nobody has seen
#
# With features of the films, *Scream* can be placed before anybody has seen it: by its genres and its year.

# %%
films = pd.read_csv(folder / "ml-100k.item", sep="\t", header=0, names=["film", "title", "year", "genres"], dtype=str)
films["genres"] = films["genres"].str.split()
films = films.drop(columns="title").set_index("film")
featured = fit(
    known,
    user="user",
    item="film",
    time="time",
    item_features=films.drop(film).reset_index(),
    epochs=6,
    seed=1,
)
new = featured.add_items({film: films.loc[film].to_dict()})
films.loc[film].to_dict(), new.added, new.unknown

# %% [markdown]
# Nothing says yet that people like it, so it stands low, but higher for those who will see it:

# %%
median_rank(featured, viewers), median_rank(featured, others)

# %% [markdown]
# New users and items bridge the time until the next training, where `refit` starts from the embeddings at hand:
# `rec.refit(likes, epochs=3)`. More: [how a history becomes a user](../serving.md#how-a-history-becomes-a-user).
