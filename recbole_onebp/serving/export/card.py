"""The model card of a bundle, and what it says about groups of users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.evaluation.metrics import recall_and_ndcg
from recbole_onebp.serving.search import DEFAULT_MEMORY_MB, Encodings, Hidden, ItemTable, best_items, unit_rows

__all__ = ["Groups", "Parts", "evaluate_groups", "model_card"]

_Index = npt.NDArray[np.int64]
_Pairs = tuple[_Index, _Index]


@dataclass(frozen=True)
class Parts:
    """The parts of the data in a bundle's numbers: user u has ``item[start[u] : start[u + 1]]``, ascending."""

    n_items: int
    start: _Index
    """(n_users + 1,): of the train part, where a pair may occur more than once: users aggregate it as often."""
    item: _Index
    hidden_start: _Index
    """(n_users + 1,): of what is hidden when the test part is evaluated: train and validation."""
    hidden_item: _Index
    test_start: _Index
    test_item: _Index
    n_test_left_out: int
    """Test pairs of users that have no train item."""

    @classmethod
    def of(
        cls, users: _Index, items: _Index, n_users: int, n_items: int, train: _Pairs, others: Sequence[_Pairs]
    ) -> Parts:
        """Renumber.

        Args:
            users: RecBole's ids of the bundle's users, in its order.
            items: the same of items.
            n_users: RecBole's count, with padding.
            n_items: the same.
            train: RecBole's ids of users and items, ``(n,)`` each.
            others: the same of validation and test.
        """
        user_place, item_place = np.full(n_users, -1), np.full(n_items, -1)
        user_place[users], item_place[items] = np.arange(len(users)), np.arange(len(items))

        def codes(pairs: _Pairs) -> _Index:
            user, item = user_place[pairs[0]], item_place[pairs[1]]
            return np.sort(user[user >= 0] * len(items) + item[user >= 0])

        def csr(code: _Index) -> tuple[_Index, _Index]:
            start = np.searchsorted(code, np.arange(len(users) + 1) * len(items))
            return start, code % len(items)

        in_train, valid, test = codes(train), codes(others[0]), np.unique(codes(others[1]))
        hidden = np.setdiff1d(np.union1d(in_train, valid), test, assume_unique=True)
        left_out = int((user_place[others[1][0]] < 0).sum())
        return cls(len(items), *csr(in_train), *csr(hidden), *csr(test), left_out)


@dataclass(frozen=True)
class Groups:
    """Test metrics of the bundle itself, by group; shares and metrics are between 0 and 1."""

    k: int
    overall: dict[str, float]
    users: list[dict[str, Any]]
    """From the least active: ``group``, ``users``, ``recall``, ``ndcg``."""
    items: list[dict[str, Any]]
    """From the most popular: ``group``, ``items``, ``test_share``, ``recommended_share``, ``recall``."""


def evaluate_groups(
    parts: Parts, table: ItemTable, user_encodings: npt.NDArray[np.floating], cosine: bool, k: int
) -> Groups | None:
    """Rank all items for every user of the test part, as RecBole does; None if there is no test part.

    Args:
        parts: of the data.
        table: the items as they are exported.
        user_encodings: ``(n_users, d)``, as they are exported.
        cosine: users are normalised when they are scored.
        k: length of the lists.
    """
    n_positives = np.diff(parts.test_start)
    users = np.flatnonzero(n_positives)
    if not len(users):
        return None
    n_positives = n_positives[users]
    user_e = Encodings(user_encodings).rows(users)
    seen = [parts.hidden_item[parts.hidden_start[user] : parts.hidden_start[user + 1]] for user in users]
    scored = unit_rows(user_e) if cosine else user_e
    ranked = best_items(scored, table, k, Hidden.of(seen), DEFAULT_MEMORY_MB, threads=1)

    row = np.repeat(np.arange(len(users)), np.diff(ranked.start))
    place = np.arange(len(row)) - ranked.start[row]
    test = np.repeat(np.arange(len(parts.test_start) - 1), np.diff(parts.test_start)) * parts.n_items + parts.test_item
    hit = np.isin(users[row] * parts.n_items + ranked.item, test, assume_unique=True)
    recall, ndcg = recall_and_ndcg(row, place, hit, n_positives, k)

    activity = np.diff(parts.start)[users]
    cuts = np.quantile(activity, [0, 0.25, 0.5, 0.75, 1])
    quarter = np.searchsorted(cuts[1:-1], activity, side="left")
    by_users = [
        {
            "group": f"{activity[quarter == part].min()} to {activity[quarter == part].max()} train items",
            "users": int((quarter == part).sum()),
            "recall": float(recall[quarter == part].mean()),
            "ndcg": float(ndcg[quarter == part].mean()),
        }
        for part in np.unique(quarter)
    ]
    third = _thirds(np.bincount(parts.item, minlength=parts.n_items))
    of_test, of_lists = third[parts.test_item], third[ranked.item]
    by_items = [
        {
            "group": name,
            "items": int((third == part).sum()),
            "test_share": float((of_test == part).mean()),
            "recommended_share": float((of_lists == part).mean()),
            "recall": float(hit[of_lists == part].sum() / max((of_test == part).sum(), 1)),
        }
        for part, name in enumerate(("most popular", "middle", "least popular"))
    ]
    return Groups(k, {"recall": float(recall.mean()), "ndcg": float(ndcg.mean())}, by_users, by_items)


def _thirds(popularity: _Index) -> _Index:
    """0, 1 or 2 for each item: the most popular ones that make up a third of all interactions, the next, the rest."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    third = np.empty(len(popularity), np.int64)
    third[order] = np.minimum(3 * before // max(int(popularity.sum()), 1), 2)
    third[popularity == 0] = 2
    return third


def model_card(manifest: Mapping[str, Any], groups: Groups | None) -> str:
    """``MODEL_CARD.md``: what the model is, what it was trained on, how good it is for whom, what it is for."""
    data, score = manifest["data"], manifest["score"]
    density = manifest["n_interactions"] / (manifest["n_users"] * manifest["n_items"])
    lines = [
        f"# Model card: {manifest['model']} on {data['name']}",
        "",
        f"A two-tower recommender, {manifest['embedding_size']} dimensions, {score} scores. {_how(manifest)}",
        "[Chen and Wang, arXiv 2403.18227](https://arxiv.org/abs/2403.18227). "
        f"Exported {manifest['created']} by recbole_onebp {manifest['versions']['recbole_onebp']}.",
        "",
        "## Data",
        "",
        "| users | items | train interactions | density |",
        "|---|---|---|---|",
        f"| {manifest['n_users']:,} | {manifest['n_items']:,} | {manifest['n_interactions']:,} | {density:.2%} |",
        "",
        "Users without a train interaction are not in the bundle. SHA-256 of the files:",
        "",
        *(f"- `{name}` `{file['sha256']}`" for name, file in data["files"].items()),
        "",
        "## Metrics",
        "",
        *_metrics_table(manifest["metrics"]),
        *(_group_tables(groups) if groups else ["There is no test part: nothing is known by group.", ""]),
        "## Intended use",
        "",
        "Ranking items for people by what they and others have taken, where a poor list does little harm: films,",
        "music, places, goods. Not for decisions about people.",
        "",
        "## Limits",
        "",
        "- It knows who took what, and nothing else: no content, no context, no price, no age limit. Filter lists for",
        "  what must not be shown (`allow`, `deny`).",
        "- It repeats what is in the data, their biases included: the tables above say who is served worse.",
        "- Metrics are of past interactions, in which nobody had seen these lists; how people take them may differ.",
        "- Items do not move when users do. New events serve new tastes; new items and changed ones want training.",
        "- The bundle holds the users' ids and train histories: treat it as personal data.",
        "",
    ]
    return "\n".join(lines)


def _how(manifest: Mapping[str, Any]) -> str:
    """How the model was made."""
    aggregation = manifest["aggregation"]
    if aggregation is None:
        return "Users and items were trained by gradient (TwoBP); users cannot be folded in."
    beta, alpha = aggregation["beta"], aggregation["alpha"]
    kind = "the mean" if aggregation["rule"] == "mean" else f"a moving aggregation (beta {beta:g})"
    weights = f", each times (its count in train / the mean count) ^ -{alpha:g}" if alpha else ""
    return f"A user is {kind} of the encodings of the items it took{weights}; only items were trained by gradient."


def _metrics_table(metrics: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    names = list(dict.fromkeys(name for part in metrics.values() for name in part))
    if not names:
        return ["The run has no result: it was not evaluated.", ""]

    def shown(part: str, name: str) -> str:
        value = metrics[part].get(name)
        return "" if value is None else f"{value:.4f}"

    rows = (f"| {name} | {shown('valid', name)} | {shown('test', name)} |" for name in names)
    return ["| | validation | test |", "|---|---|---|", *rows, ""]


def _group_tables(groups: Groups) -> list[str]:
    k = groups.k
    users = (f"| {row['group']} | {row['users']:,} | {row['recall']:.4f} | {row['ndcg']:.4f} |" for row in groups.users)
    items = (
        f"| {row['group']} | {row['items']:,} | {row['test_share']:.1%} | {row['recommended_share']:.1%} "
        f"| {row['recall']:.4f} |"
        for row in groups.items
    )
    return [
        "By activity of the users, in quarters, on the test part. All items ranked, but those of train and validation:",
        "",
        f"| users with | users | recall@{k} | ndcg@{k} |",
        "|---|---|---|---|",
        *users,
        f"| all | {sum(row['users'] for row in groups.users):,} | {groups.overall['recall']:.4f} "
        f"| {groups.overall['ndcg']:.4f} |",
        "",
        "By popularity of the items; each group has about a third of the train interactions:",
        "",
        f"| items | how many | share of the test part | share of the lists | found in the top {k} |",
        "|---|---|---|---|---|",
        *items,
        "",
    ]
