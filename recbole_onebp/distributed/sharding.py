"""Division of the users between ranks.

Rank r of w has users r + 1, r + 1 + w, r + 1 + 2w, ...; these have the rank's own ids 1, 2, 3, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.util.errors import UserError

__all__ = ["Shard", "item_count", "share_users"]


@dataclass(frozen=True)
class Shard:
    """One rank's users, and its interactions in one part of the data."""

    rank: int
    world_size: int
    n_users: int
    """Number of users of all ranks, the padding row included."""
    number: npt.NDArray[np.int32]
    """Indices of the rank's interactions among all interactions of the part, ``(n,)``, ascending."""
    n_pairs: int
    """Number of interactions of all ranks."""
    item_count: Tensor
    """Occurrences of each item in the part, over all ranks, ``(n_items,)``."""

    @property
    def rows(self) -> slice:
        """Rows of the rank's users in a table of all users."""
        return slice(1 + self.rank, self.n_users, self.world_size)

    def owned(self, user: Tensor) -> Tensor:
        """Whether each of these users belongs to this rank."""
        return (user - 1) % self.world_size == self.rank

    def local(self, user: Tensor) -> Tensor:
        """From ids in the whole data to the rank's own ids, for users of this rank."""
        return 1 + (user - 1) // self.world_size

    def whole_ids(self, user: Tensor) -> Tensor:
        """From the rank's own ids to ids in the whole data."""
        return 1 + self.rank + (user - 1) * self.world_size

    def own_rows(self, table: Tensor) -> Tensor:
        """The padding row and the rank's rows of a table of all users."""
        return torch.cat([table[:1], table[self.rows]])

    def whole_table(self, own: Tensor, ranks: Ranks) -> Tensor:
        """Gather the tables of all ranks into the table of all users on rank 0; other ranks get an empty table."""
        parts = ranks.gather(own[1:].contiguous(), everywhere=False)
        if not parts:
            return own[:0]
        whole = own.new_zeros((self.n_users, *own.shape[1:]))
        whole[0] = own[0]
        for rank, rows in enumerate(parts):
            whole[1 + rank :: self.world_size] = rows
        return whole


def item_count(part: Any) -> Tensor:
    """Occurrences of each item in a part of the data, over all ranks, ``(n_items,)``."""
    shard: Shard | None = getattr(part, "shard", None)
    if shard is not None:
        return shard.item_count
    return torch.bincount(part.inter_feat[part.iid_field], minlength=part.item_num)


def share_users(dataset: Any, ranks: Ranks, summary_of: Callable[[Any], str]) -> None:
    """Make RecBole's ``dataset.build()`` return parts with this rank's users only.

    Each part gets a ``shard``.  Items keep their ids.  On rank 0, a part also gets a ``summary`` of the whole part, for
    checkpoints.

    Raises:
        UserError: from ``build``, on all ranks, if a rank has no users.
    """
    whole = dataset.build

    def build() -> list[Any]:
        parts = whole()
        for part in parts:
            part.__dict__.pop("build", None)  # the parts are copies of the data set, with its attributes
        for name, part in zip(("train", "validation", "test"), parts, strict=False):
            counts = torch.bincount(
                (part.inter_feat[part.uid_field] - 1) % ranks.world_size, minlength=ranks.world_size
            )
            if len(part) and int(counts.min()) == 0:
                raise UserError(
                    f"nproc: process {int(counts.argmin())} of {ranks.world_size} has no user in the {name} part; "
                    "start fewer processes"
                )
        own = [_own_part(part, ranks) for part in parts]
        for part, mine in zip(parts, own, strict=True):
            mine.summary = summary_of(part) if ranks.rank == 0 else None
        return own

    dataset.build = build


def _own_part(part: Any, ranks: Ranks) -> Any:
    uid, iid = part.uid_field, part.iid_field
    rows = part.inter_feat
    item_count = torch.bincount(rows[iid], minlength=part.item_num)
    shard = Shard(ranks.rank, ranks.world_size, part.user_num, np.empty(0, dtype=np.int32), len(rows), item_count)
    own = torch.nonzero(shard.owned(rows[uid])).squeeze(1)
    mine = rows[own]
    mine.update(type(mine)({uid: shard.local(mine[uid])}))
    copy = part.copy(mine)
    copy.shard = Shard(**{**shard.__dict__, "number": own.numpy().astype(np.int32)})
    tokens = part.field2id_token[uid]
    tokens = np.concatenate([tokens[:1], tokens[shard.rows]])
    copy.field2id_token = {**part.field2id_token, uid: tokens}
    copy.field2token_id = {**part.field2token_id, uid: {token: number for number, token in enumerate(tokens)}}
    if part.user_feat is not None:
        copy.user_feat = part.user_feat[
            torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(part.user_num)[shard.rows]])
        ]
        copy.user_feat.update(type(copy.user_feat)({uid: torch.arange(len(tokens))}))
    return copy
