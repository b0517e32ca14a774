"""Write made-up pairs of a published data set's size, in its own form, to try its size where the data cannot be had.

    python benchmarks/stand_in.py amazon-book DIR [--share 1.0] [--seed 1]
    recbole-onebp fetch amazon-book --from DIR

Users and items of Zipf-like popularity; the counts of users, items, train and test pairs are the published ones times
``--share``.  Nothing about quality can be learnt from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_onebp.data.sources.catalogue import CATALOGUE


def make_pairs(n_users: int, n_items: int, n_pairs: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(n_pairs, 2) different pairs in random order, at first one of each user and of each item."""
    weights = [1 / np.arange(5, n + 5) ** 0.7 for n in (n_users, n_items)]
    every = np.arange(max(n_users, n_items))
    codes = np.unique(every % n_users * n_items + every % n_items)
    while len(codes) < n_pairs:
        user, item = (rng.choice(len(w), n_pairs, p=w / w.sum()) for w in weights)
        more = np.setdiff1d(user * n_items + item, codes)
        codes = np.concatenate([codes, rng.permutation(more)[: n_pairs - len(codes)]])
    return np.stack(np.divmod(rng.permutation(codes), n_items), axis=1)


def write(path: Path, pairs: npt.NDArray[np.int64]) -> None:
    """The ``user item item ...`` lines of the LightGCN splits."""
    ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
    users, first = np.unique(ordered[:, 0], return_index=True)
    items = np.split(ordered[:, 1], first[1:])
    path.write_text("".join(f"{u} {' '.join(map(str, i))}\n" for u, i in zip(users, items, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=[name for name, data in CATALOGUE.items() if "txt" in data.files["train"].path])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the published counts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    users, items, train, test = (round(n * args.share) for n in CATALOGUE[args.name].counts.values())
    pairs = make_pairs(users, items, train + test, np.random.default_rng(args.seed))
    # The pairs are in random order: what gives a user or an item its first one goes to train, the rest at random.
    first = np.zeros(len(pairs), dtype=bool)
    for column in pairs.T:
        first[np.unique(column, return_index=True)[1]] = True
    order = np.argsort(~first, kind="stable")
    args.folder.mkdir(parents=True, exist_ok=True)
    write(args.folder / "train.txt", pairs[order[:train]])
    write(args.folder / "test.txt", pairs[order[train:]])


if __name__ == "__main__":
    main()
