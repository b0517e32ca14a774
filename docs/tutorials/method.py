# %% [markdown]
# # The method in sixty lines
#
# OneBP ([Chen & Wang 2024](https://arxiv.org/abs/2403.18227)) has one table of items, which learns by gradient, and
# one of users, which does not: a user moves towards the items that it meets. `recbole_onebp.functional` has both
# steps as plain functions of tensors. Here they are on a toy: three camps of users who mostly like the items of their
# camp, in two dimensions, so that we can watch.

# %%
import matplotlib.pyplot as plt
import torch

from recbole_onebp.functional import fold_in, info_nce, moving_aggregate_

torch.manual_seed(1)
n_camps, n_users, n_items, n_pairs = 3, 90, 60, 12
user_camp, item_camp = torch.arange(n_users) % n_camps, torch.arange(n_items) % n_camps
liking = torch.where(user_camp[:, None] == item_camp[None, :], 1.0, 0.05)
items = torch.multinomial(liking, n_pairs)  # (users, pairs): each user's items, without repetition
train, test = items[:, :-1], items[:, -1]

# %% [markdown]
# ## Training
#
# A step takes pairs of a user and an item. The loss, InfoNCE, wants the item to score higher than other items. Its
# gradient reaches the items alone. Then the batch's users move: each keeps the share `beta` of its old embedding and
# takes the rest from its items.

# %%
item_table = torch.nn.Parameter(torch.randn(n_items, 2) * 0.1)
user_table = torch.randn(n_users, 2) * 0.1  # no parameter
optimizer = torch.optim.Adam([item_table], lr=0.02)
pairs = torch.stack([torch.arange(n_users).repeat_interleave(n_pairs - 1), train.reshape(-1)], dim=1)
snapshots = [user_table.clone()]

for _ in range(12):
    for user, item in (batch.T for batch in pairs[torch.randperm(len(pairs))].split(128)):
        negatives = torch.randint(n_items, (len(user), 10))
        user_e = user_table[user]
        pos_score = (user_e * item_table[item]).sum(dim=1)
        neg_score = (user_e[:, None] * item_table[negatives]).sum(dim=2)
        loss = info_nce(pos_score, neg_score, temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moving_aggregate_(user_table, user, item_table.detach()[item], beta=0.9)
    snapshots.append(user_table.clone())
round(loss.item(), 3)

# %% [markdown]
# ## Users on the move
#
# Users (dots, coloured by camp) start anywhere near the origin. They follow their items (crosses), which the loss
# drives apart.

# %%
colours = plt.get_cmap("tab10")
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), sharex=True, sharey=True)
for axis, epoch in zip(axes, (0, 2, 5, 12), strict=True):
    past, now = snapshots[max(epoch - 2, 0)], snapshots[epoch]
    axis.scatter(*now.T, s=12, c=colours(user_camp), zorder=3)
    axis.quiver(*past.T, *(now - past).T, angles="xy", scale_units="xy", scale=1, width=0.004, color="0.75")
    axis.set_title("at the start" if epoch == 0 else f"after {epoch} epochs")
axes[-1].scatter(*item_table.detach().T, s=25, c=colours(item_camp), marker="x", linewidth=1)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Does it recommend?
#
# The last item of each user was kept aside. How often is it among the first ten of those that the user has not had?
# Chance would be 10 of 49.

# %%
scores = user_table @ item_table.detach().T
scores.scatter_(1, train, -torch.inf)
hit = (scores.topk(10).indices == test[:, None]).any(dim=1)
round(hit.double().mean().item(), 2), round(10 / (n_items - n_pairs + 1), 2)

# %% [markdown]
# ## Somebody new
#
# The moves end where a user is the mean of its items. So a new user is just that, without training.

# %%
newcomer = fold_in(item_table.detach()[[0, 3, 6]])  # three items of the first camp
best = (newcomer @ item_table.detach().T).topk(6).indices
item_camp[best].tolist()

# %% [markdown]
# The package's model adds what makes it good on real data: negatives that a step shares, unit lengths, a pair's own
# item left out of its user, weights by popularity and age, and the local term. [The study](../study.md) measures
# each, and [the architecture](../architecture.md) says where each is.
