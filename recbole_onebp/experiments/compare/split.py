"""The split that all models share: read from RecBole's loaders, checked and saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["PARTS", "Split", "write_npz"]

PARTS = ("train", "valid", "test")
Array = npt.NDArray[Any]


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a compressed ``.npz`` file, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # by name, numpy would add a suffix
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy lists a flag among them

    write_atomically(path, write)


@dataclass(frozen=True)
class Split:
    """Users, items, and the interactions of each part."""

    users: Array
    """External ids by internal id ``(n_users,)``; row 0 is RecBole's padding."""
    items: Array
    """The same ``(n_items,)``."""
    pairs: Mapping[str, Array]
    """Interactions of each part: internal ids of user and item ``(n, 2)``."""

    @classmethod
    def of(cls, dataset: Any, parts: Mapping[str, Any]) -> Split:
        """Make a split from RecBole's data set and its parts; a part that is None is empty."""
        fields = dataset.uid_field, dataset.iid_field
        users, items = (np.asarray(dataset.field2id_token[field]).astype(str) for field in fields)
        empty = np.zeros((0, 2), np.int64)
        pairs = {
            name: empty if part is None else np.stack([part.inter_feat[field].numpy() for field in fields], axis=1)
            for name, part in parts.items()
        }
        return cls(users, items, pairs)

    @classmethod
    def load(cls, path: Path) -> Split:
        with np.load(path) as kept:
            return cls(kept["users"], kept["items"], {part: kept[part] for part in PARTS})

    def save(self, path: Path) -> None:
        write_npz(path, {"users": self.users, "items": self.items, **self.pairs})

    @cached_property
    def id(self) -> str:
        """A hash of the split; independent of the order of interactions."""
        digest = hashlib.sha256()
        for array in (self.users, self.items, *(np.sort(self._codes(part)) for part in PARTS)):
            digest.update(f"{array.shape}".encode())
            digest.update("\0".join(array).encode() if array.dtype.kind == "U" else array.tobytes())
        return digest.hexdigest()[:16]

    def check(self) -> dict[str, Any]:
        """Summarise the split.

        Raises:
            UserError: for parts that share interactions, or an empty test part.
        """
        if not len(self.pairs["test"]):
            raise UserError("protocol: the test part is empty; there is nothing to compare")
        for number, one in enumerate(PARTS):
            for other in PARTS[number + 1 :]:
                shared = np.intersect1d(self._codes(one), self._codes(other))
                if len(shared):
                    user, item = divmod(int(shared[0]), len(self.items))
                    raise UserError(
                        f"protocol: {one} and {other} share {len(shared)} pairs, such as user {self.users[user]} and "
                        f"item {self.items[item]}; a model would be tested on what it has seen: drop repeated pairs "
                        "(rm_dup_inter: first), or fix the files of benchmark_filename"
                    )
        trained, tested = (np.unique(self.pairs[part][:, 0]) for part in ("train", "test"))
        return {
            "split_id": self.id,
            "users": len(self.users) - 1,
            "items": len(self.items) - 1,
            **{part: len(self.pairs[part]) for part in PARTS},
            "test_users": len(tested),
            "test_users_without_train": len(np.setdiff1d(tested, trained)),
        }

    def _codes(self, part: str) -> Array:
        user, item = self.pairs[part].astype(np.int64).T
        return user * len(self.items) + item

    def matrix(self, part: str) -> sp.csr_array:
        """Interactions of a part ``(n_users, n_items)``: 1 for each user and item that interacted."""
        user, item = self.pairs[part].T
        shape = len(self.users), len(self.items)
        return sp.csr_array((np.ones(len(user), np.float32), (user, item)), shape=shape).sign()

    @cached_property
    def activity(self) -> Array:
        """Number of train interactions of each user ``(n_users,)``."""
        return np.bincount(self.pairs["train"][:, 0], minlength=len(self.users))

    @cached_property
    def popularity(self) -> Array:
        """Number of train interactions of each item ``(n_items,)``."""
        return np.bincount(self.pairs["train"][:, 1], minlength=len(self.items))
