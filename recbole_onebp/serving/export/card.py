"""The model card of a bundle, and the metrics by group of users and items that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from recbole_onebp.evaluation.metrics import recall_and_ndcg
from recbole_onebp.serving.local_table import LocalTable
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.search import DEFAULT_MEMORY_MB, Excluded, best_items
from recbole_onebp.serving.tables import Embeddings, Float64Array, IntArray, ItemTable, unit_rows
from recbole_onebp.util.errors import printable
from recbole_onebp.util.ids import BundleRows, InternalIds
from recbole_onebp.weights import Transform, transformed

__all__ = ["Groups", "Parts", "evaluate_groups", "model_card"]

_Pairs = tuple[InternalIds, InternalIds]


@dataclass(frozen=True)
class Parts:
    """Train, validation and test part in rows of the bundle.

    In each part the items of user u are ``item[start[u] : start[u + 1]]``, ascending; start is ``(n_users + 1,)``.
    """

    n_items: int
    start: IntArray
    """Train part, ascending, or in order of time.  A pair may occur more than once; it counts as often in its user."""
    item: BundleRows
    weight: npt.NDArray[np.float32] | None
    """Of each train interaction; None if they have none."""
    excluded_start: IntArray
    """Items that are not ranked in the test: those of train and validation."""
    excluded_item: BundleRows
    test_start: IntArray
    test_item: BundleRows

    @classmethod
    def of(
        cls,
        users: InternalIds,
        items: InternalIds,
        n_users: int,
        n_items: int,
        train: _Pairs,
        others: Sequence[_Pairs],
        time: npt.NDArray[np.floating] | None = None,
        weight: npt.NDArray[np.float32] | None = None,
    ) -> Parts:
        """Convert RecBole's ids to rows of the bundle.

        Args:
            users: the user of each row of the bundle.
            items: the item of each row.
            n_users: number of RecBole's users, padding included.
            n_items: number of RecBole's items, padding included.
            train: users and items of the train part, ``(n,)`` each.
            others: the same of validation and test.  Users without a row are left out.
            time: of each train pair, ``(n,)``; the train items of a user are in this order.
            weight: of each train pair, ``(n,)``.
        """
        user_row, item_row = np.full(n_users, -1), np.full(n_items, -1)
        user_row[users], item_row[items] = np.arange(len(users)), np.arange(len(items))

        def codes(pairs: _Pairs) -> IntArray:
            user, item = user_row[pairs[0]], item_row[pairs[1]]
            return np.sort(user[user >= 0] * len(items) + item[user >= 0])

        def csr(code: IntArray) -> tuple[IntArray, BundleRows]:
            start = np.searchsorted(code, np.arange(len(users) + 1) * len(items))
            return start, code % len(items)

        in_train, valid, test = codes(train), codes(others[0]), np.unique(codes(others[1]))
        excluded = np.setdiff1d(np.union1d(in_train, valid), test, assume_unique=True)
        start, _ = csr(in_train)
        order = np.lexsort((item_row[train[1]] if time is None else time, user_row[train[0]]))
        weight = None if weight is None else weight[order]
        return cls(len(items), start, item_row[train[1][order]], weight, *csr(excluded), *csr(test))

    def histories(self, users: BundleRows) -> list[BundleRows]:
        """The train items of each of these users."""
        return [self.item[self.start[user] : self.start[user + 1]] for user in users.tolist()]

    def strengths(self, users: BundleRows, by: Transform) -> list[Float64Array]:
        """What the model makes of the weights of these items; empty if they have none."""
        if self.weight is None:
            return []
        spans = ((self.start[user], self.start[user + 1]) for user in users.tolist())
        return [transformed(self.weight[first:last], np.zeros(last - first, np.int64), by) for first, last in spans]


@dataclass(frozen=True)
class Groups:
    """Test metrics of a bundle, by group.  Shares and metrics are between 0 and 1."""

    k: int
    overall: dict[str, float]
    users: list[dict[str, Any]]
    """From the least active: ``group``, ``users``, ``recall``, ``ndcg``."""
    items: list[dict[str, Any]]
    """From the most popular: ``group``, ``items``, ``test_share``, ``recommended_share``, ``recall``."""


def evaluate_groups(
    parts: Parts,
    table: ItemTable,
    user_encodings: npt.NDArray[np.floating],
    cosine: bool,
    k: int,
    local: LocalTable | None = None,
    transform: Transform = "raw",
) -> Groups | None:
    """Rank all items for every user of the test part, as RecBole does; None if there is no test part.

    Args:
        parts: the data.
        table: the items, as exported.
        user_encodings: the users, as exported, ``(n_users, d)``.
        cosine: whether scores are cosines.
        k: length of the lists.
        local: the local term; None if there is none.
        transform: of the weights of interactions, if they have some.
    """
    n_positives = np.diff(parts.test_start)
    users = np.flatnonzero(n_positives)
    if not len(users):
        return None
    n_positives = n_positives[users]
    user_e = Embeddings(user_encodings).rows(users)
    seen = [parts.excluded_item[parts.excluded_start[user] : parts.excluded_start[user + 1]] for user in users]
    histories, strengths = parts.histories(users), parts.strengths(users, transform)
    scorer = Scorer(table, unit_rows(user_e) if cosine else user_e, local, histories, strengths=strengths)
    ranked = best_items(scorer, k, Excluded.of(seen), DEFAULT_MEMORY_MB, threads=1)

    row = np.repeat(np.arange(len(users)), np.diff(ranked.start))
    place = np.arange(len(row)) - ranked.start[row]
    test = np.repeat(np.arange(len(parts.test_start) - 1), np.diff(parts.test_start)) * parts.n_items + parts.test_item
    hit = np.isin(users[row] * parts.n_items + ranked.item, test, assume_unique=True)
    recall, ndcg = recall_and_ndcg(row, place, hit, n_positives, k)
    overall = {"recall": float(recall.mean()), "ndcg": float(ndcg.mean())}
    by_activity = _by_activity(np.diff(parts.start)[users], recall, ndcg)
    return Groups(k, overall, by_activity, _by_popularity(parts, ranked.item, hit))


def _by_activity(activity: IntArray, recall: Float64Array, ndcg: Float64Array) -> list[dict[str, Any]]:
    """Metrics by quarters of the users, from the number of train items, recall and NDCG of each user."""
    cuts = np.quantile(activity, [0, 0.25, 0.5, 0.75, 1])
    quarter = np.searchsorted(cuts[1:-1], activity, side="left")
    return [
        {
            "group": f"{activity[quarter == part].min()} to {activity[quarter == part].max()} train items",
            "users": int((quarter == part).sum()),
            "recall": float(recall[quarter == part].mean()),
            "ndcg": float(ndcg[quarter == part].mean()),
        }
        for part in np.unique(quarter)
    ]


def _by_popularity(parts: Parts, recommended: BundleRows, hit: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Metrics by thirds of the items, from all recommended items and whether each is in its user's test part."""
    third = _thirds(np.bincount(parts.item, minlength=parts.n_items))
    of_test, of_lists = third[parts.test_item], third[recommended]
    return [
        {
            "group": name,
            "items": int((third == part).sum()),
            "test_share": float((of_test == part).mean()),
            "recommended_share": float((of_lists == part).mean()),
            "recall": float(hit[of_lists == part].sum() / max((of_test == part).sum(), 1)),
        }
        for part, name in enumerate(("most popular", "middle", "least popular"))
    ]


def _thirds(popularity: IntArray) -> IntArray:
    """0, 1 or 2 for each item: the most popular items with a third of all interactions, the next third, the rest."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    third = np.empty(len(popularity), np.int64)
    third[order] = np.minimum(3 * before // max(int(popularity.sum()), 1), 2)
    third[popularity == 0] = 2
    return third


def model_card(manifest: Mapping[str, Any], groups: Groups | None) -> str:
    """``MODEL_CARD.md``, as Hugging Face has it: the model, its training data, its quality by group, its use."""
    data, score = manifest["data"], manifest["score"]
    density = manifest["n_interactions"] / (manifest["n_users"] * manifest["n_items"])
    lines = [
        "---",
        *yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True).splitlines(),
        "---",
        "",
        f"# Model card: {manifest['model']} on {data['name']}",
        "",
        f"A two-tower recommender, {manifest['embedding_size']} dimensions, {score} scores. {_training(manifest)}",
        *_local(manifest),
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
        *(f"- `{printable(name)}` `{file['sha256']}`" for name, file in data["files"].items()),
        "",
        "## Metrics",
        "",
        *_metrics_table(manifest["metrics"]),
        *(_group_tables(groups) if groups else ["There is no test part, so there are no metrics by group.", ""]),
        "## Intended use",
        "",
        "Ranking items for people by past interactions, where a poor list does little harm: films, music, places,",
        "goods. Not for decisions about people.",
        "",
        "## Limits",
        "",
        *_knowledge(manifest),
        "  Use filters for items that must not be shown (`allow`, `deny`).",
        "- It reproduces the biases of the data."
        + (" The tables above show which groups are served worse." if groups else ""),
        "- The metrics are of past interactions with items that this model did not recommend. Behaviour may differ",
        "  when people see its lists.",
        *_changes(manifest),
        "- The bundle contains user ids and their train histories. Treat it as personal data.",
        "",
    ]
    return "\n".join(lines)


def _metadata(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What Hugging Face reads at the head of a model card (huggingface.co/docs/hub/model-cards)."""
    name, test = manifest["data"]["name"], manifest["metrics"].get("test", {})
    metrics = [{"type": metric, "name": metric, "value": value} for metric, value in test.items() if value is not None]
    result = {
        "task": {"type": "recommendation", "name": "Ranking of all items"},
        "dataset": {"type": name, "name": name, "split": "test"},
        "metrics": metrics,
    }
    model = {"name": f"{manifest['model']} on {name}", "results": [result] if metrics else []}
    tags = ["recommendation", "collaborative-filtering", "two-tower"]
    return {"library_name": "recbole_onebp", "tags": tags, "model-index": [model]}


def _training(manifest: Mapping[str, Any]) -> str:
    """How users and items were trained."""
    aggregation = manifest["aggregation"]
    if aggregation is None:
        return "Users and items were trained by gradient (TwoBP); new users cannot be folded in."
    beta, alpha = aggregation["beta"], aggregation["alpha"]
    kind = "the mean" if aggregation["rule"] == "mean" else f"a moving aggregation (beta {beta:g})"
    given = manifest.get("weights")
    if aggregation["recency"] or given is not None:
        kind = "a weighted mean"
    by = [f"(its train count / the mean count) ^ -{alpha:g}"] if alpha else []
    if aggregation["recency"]:
        by.append(f"(number of later items + 1) ^ -{aggregation['recency']:g}")
    if given is not None:
        by.append(f"the weight of the interaction ({given['transform']})")
    weights = f", each weighted by {', and by '.join(by)}" if by else ""
    return f"A user is {kind} of the embeddings of the user's items{weights}; only items were trained by gradient."


def _knowledge(manifest: Mapping[str, Any]) -> list[str]:
    """What the scores are made of."""
    if manifest["config"].get("item_features", "none") == "none":
        return ["- The model knows only who interacted with what: no content, context, price or age limit."]
    return [
        "- The model knows who interacted with what, and the features of items that it was trained with: no other",
        "  content, no context, price or age limit.",
    ]


def _changes(manifest: Mapping[str, Any]) -> list[str]:
    """What changes after training."""
    if manifest["aggregation"] is None:
        return ["- Nothing changes after training. Retrain for new users, items and interactions."]
    return [
        "- Events change users, and items without train interactions, added ones among them. All other items stay as",
        "  they were trained: retrain for items whose audience has changed.",
    ]


def _local(manifest: Mapping[str, Any]) -> list[str]:
    """How the local term was made."""
    local = manifest.get("local")
    if local is None:
        return []
    latest = f", times (number of later items + 1) ^ -{local['recency']:g}" if local["recency"] else ""
    return [
        f"A local term of weight {local['weight']:g} adds to the score of an item what each item of the user's history",
        f"says about it{latest}. It is a ridge regression (lambda {local['reg']:g}) of each item on its "
        f"{local['neighbors']} nearest neighbours, in closed form.",
    ]


def _metrics_table(metrics: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    names = list(dict.fromkeys(name for part in metrics.values() for name in part))
    if not names:
        return ["The run was not evaluated, so there are no metrics.", ""]

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
        "Test metrics by activity of the users, in quarters. All items are ranked except a user's train and validation",
        "items:",
        "",
        f"| users with | users | recall@{k} | ndcg@{k} |",
        "|---|---|---|---|",
        *users,
        f"| all | {sum(row['users'] for row in groups.users):,} | {groups.overall['recall']:.4f} "
        f"| {groups.overall['ndcg']:.4f} |",
        "",
        "By popularity of the items. Each group has about a third of the train interactions:",
        "",
        f"| items | how many | share of the test part | share of the lists | found in the top {k} |",
        "|---|---|---|---|---|",
        *items,
        "",
    ]
