"""The recommender: answers from a bundle, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.answers import Answers, Explanation, Part, Scores, UnknownIdError
from recbole_onebp.serving.bundle import Bundle, read_bundle
from recbole_onebp.serving.changing_items import ChangingItems
from recbole_onebp.serving.explain import Composition, compose_history, compose_user, split_score
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.search import DEFAULT_MEMORY_MB, Excluded, Ranked, best_items
from recbole_onebp.serving.tables import NO_ROWS, Embeddings, Float32Array, Float64Array, ItemTable, unit_rows
from recbole_onebp.serving.tokens import as_list, as_weight
from recbole_onebp.serving.user_state import DEFAULT_RULE, RECENT_DECAY, Aggregation, Rule, check_rule, fold_in
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, BundleRows, Token, TokenLike
from recbole_onebp.util.processes import n_cores

if TYPE_CHECKING:
    from recbole_onebp.serving.ann import Index

__all__ = ["Recommender", "Similarity"]

Similarity = Literal["tower", "local"]
"""What makes items similar: the cosine of their embeddings, or what one adds to the other's score by the local term."""

_SCORED_USERS = 256
"""Users whose chosen pairs are scored at a time."""


class _Chosen(NamedTuple):
    """What a question for lists says apart from its users."""

    k: int
    pool: BundleRows | None
    """Items to choose from, ascending; all if None."""
    denied: BundleRows
    unknown: list[Token]
    """Unknown items of the filters."""


class Recommender(ChangingItems):
    """Recommendations from a bundle, by exact scores.  Events update users at once.

    Users and items are named by their ids in the data, as text or integers (``"196"`` and ``196`` are the same).
    Unknown ids are reported in the answer; they are no error.

    A list does not depend, to the last bit, on what else is asked in the same call.  Of equal scores the item that
    comes first in the bundle comes first; items are sorted by id there, and added items come last.

    Several threads may ask at the same time, also while one thread calls :meth:`update`, :meth:`add_items` or
    :meth:`remove_items`: an answer sees each user before or after the events of a call.
    """

    def __init__(
        self,
        bundle: Bundle,
        memory_mb: float = DEFAULT_MEMORY_MB,
        threads: int | None = None,
        index: str | None = None,
    ) -> None:
        """Answer from a bundle that is open already; see :meth:`load`."""
        if not memory_mb > 0:
            raise UserError(f"memory_mb: {memory_mb} is not allowed: expected more than 0")
        if threads is not None and threads < 1:
            raise UserError(f"threads: {threads} is not allowed: expected at least 1")
        super().__init__(bundle)
        self._memory_mb = memory_mb
        self._threads = threads or n_cores()
        self._index = None if index is None else _open_index(bundle, index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.n_users:,} users, {self.n_items:,} items>"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        memory_mb: float = DEFAULT_MEMORY_MB,
        threads: int | None = None,
        index: str | None = None,
    ) -> Recommender:
        """Open a bundle.

        Args:
            path: the folder that ``recbole-onebp export`` wrote.
            verify: compare every file with its checksum.  Without, a large bundle opens faster, but damage may go
                unnoticed.
            memory_mb: memory for scores, in MiB.
            threads: number of threads that search; the number of cores if None.
            index: ``faiss`` for approximate search in :meth:`recommend` and :meth:`recommend_history`, if the bundle
                was exported with ``--ann=faiss``.  Scores stay exact.  With ``allow`` the search is exact.

        Raises:
            UserError: if the folder is not a bundle, is damaged, or has no such index.

        Example:
            >>> from recbole_onebp import Recommender
            >>> rec = Recommender.load("bundle")  # doctest: +SKIP
        """
        return cls(read_bundle(path, verify), memory_mb, threads, index)

    # ------------------------------------------------------------------------------------------------- recommendations

    def recommend(
        self,
        users: Iterable[TokenLike],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[TokenLike] | None = None,
        deny: Iterable[TokenLike] = (),
    ) -> Answers:
        """The best items of users.

        Args:
            users: ids of B users.
            k: length of the lists; a list is shorter where fewer items are left.
            exclude_seen: leave out the items of the user's history.
            allow: choose from these items only; from all if None.
            deny: leave these items out.

        Returns:
            B lists of (item, score), best first; empty for an unknown user.

        Raises:
            UserError: if an argument has a wrong type, or k is less than 1.

        Example:
            >>> answers = rec.recommend(["u1", "nobody"], k=3, deny=["i5"])
            >>> [len(answer) for answer in answers], answers.unknown_users
            ([3, 0], ['nobody'])
        """
        chosen = self._chosen(k, allow, deny)
        rows, unknown = self._user_tokens.find(as_list(users, "users"))
        known = rows[rows >= 0]
        of_users = self._users.snapshot(known)
        histories = [of_users.items(user) for user in known.tolist()]
        strengths, table = [of_users.strengths(user) for user in known.tolist()], self._items
        scorer = self._scorer(table, self._user_rows(of_users, known, table), histories, strengths)
        seen = histories if exclude_seen else [NO_ROWS] * len(known)
        ranked = self._rank(scorer, seen, chosen, self._index)
        return Answers(self._lists(ranked, rows >= 0), unknown, chosen.unknown)

    def recommend_history(
        self,
        histories: Iterable[Iterable[TokenLike]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[TokenLike] | None = None,
        deny: Iterable[TokenLike] = (),
        rule: Rule = DEFAULT_RULE,
        weights: Iterable[Iterable[float]] | None = None,
    ) -> Answers:
        """The best items of new users from their histories, without training.

        Args:
            histories: the items of each of B users, the earliest first.  Unknown items are ignored and reported.
            k: see :meth:`recommend`.
            exclude_seen: leave out the items of the history.
            allow: see :meth:`recommend`.
            deny: see :meth:`recommend`.
            rule: how a history becomes a user: ``alike`` (all items count the same, as in :meth:`update` for a new
                user), ``trained`` (items are weighted as in training) or ``recent`` (later items count more).  Where
                users were trained with ``recency``, later items count more by all three rules.
            weights: a weight for each item of each history, where the model was trained on weights of interactions;
                without them all count the same.

        Returns:
            B lists of (item, score), best first; empty for a history without a known item.

        Raises:
            UserError: if an argument has a wrong type, k is less than 1, a history has not as many weights as items,
                there are weights and the model was trained without, or the users were trained by gradient.

        Example:
            >>> answers = rec.recommend_history([["i5", "i9"], ["nothing"]], k=3)
            >>> [len(answer) for answer in answers], answers.unknown_items
            ([3, 0], ['nothing'])
        """
        self._check_foldable("recommend_history")
        check_rule(rule)
        found = [self._item_tokens.find(as_list(one, "history")) for one in as_list(histories, "histories")]
        of_items = [None] * len(found) if weights is None else [*as_list(weights, "weights")]
        if len(of_items) != len(found):
            raise UserError(f"weights: {len(of_items)} lists for {len(found)} histories; expected one for each")
        given = [self._given_for(rows, one) for (rows, _), one in zip(found, of_items, strict=True)]
        items = [rows[rows >= 0] for rows, _ in found]
        known = np.array([len(rows) > 0 for rows in items], bool)
        given = [one for one, is_known in zip(given, known.tolist(), strict=True) if is_known]
        items = [rows for rows in items if len(rows)]
        chosen, table = self._chosen(k, allow, deny), self._items
        item_weight, aggregation = self._fold_in_by(rule)
        user_e = self._folded(items, item_weight, aggregation, given, table)
        scorer = self._scorer(table, user_e, items, [aggregation.strengths(one) for one in given])
        seen = items if exclude_seen else [NO_ROWS] * len(items)
        ranked = self._rank(scorer, seen, chosen, self._index)
        unknown = list(dict.fromkeys([token for _, tokens in found for token in tokens] + chosen.unknown))
        return Answers(self._lists(ranked, known), [], unknown)

    def similar_items(
        self,
        items: Iterable[TokenLike],
        k: int = 10,
        *,
        by: Similarity = "tower",
        allow: Iterable[TokenLike] | None = None,
        deny: Iterable[TokenLike] = (),
    ) -> Answers:
        """The most similar items of items.  An item is not in its own list.

        Args:
            items: ids of B items.
            k: see :meth:`recommend`.
            by: ``tower``: by the cosine of the embeddings.  ``local``: by what the item adds, if it is the whole
                history, to the scores of others by the local term; only items to which it adds something.
            allow: see :meth:`recommend`.
            deny: see :meth:`recommend`.

        Returns:
            B lists of (item, cosine or score), best first; empty for an unknown item.

        Raises:
            UserError: if an argument has a wrong type, k is less than 1, or the bundle has no local term.

        Example:
            >>> [(first, _), (second, _)] = rec.similar_items(["i5"], k=2, allow=["i5", "i6", "i7"])[0]
            >>> sorted([first, second])
            ['i6', 'i7']
        """
        rows, unknown = self._item_tokens.find(as_list(items, "items"))
        known = rows[rows >= 0]
        own = [known[place : place + 1] for place in range(len(known))]
        chosen = self._chosen(k, allow, deny)
        ranked = self._rank(self._similarity(known, own, by), own, chosen)
        if by == "local":
            ranked = ranked.above(0.0)
        return Answers(self._lists(ranked, rows >= 0), [], list(dict.fromkeys(unknown + chosen.unknown)))

    def score(self, users: Iterable[TokenLike], items: Iterable[TokenLike]) -> Scores:
        """The scores of chosen pairs, the n-th user with the n-th item; the same numbers as in a list, to the last bit.

        Args:
            users: ids of m users.
            items: ids of m items.

        Returns:
            A float64 array ``(m,)``, NaN where the user or the item is unknown.  Its attributes ``unknown_users`` and
            ``unknown_items`` name these.

        Raises:
            UserError: if an argument has a wrong type, or the two have different lengths.

        Example:
            >>> scores = rec.score(["u1", "u1", "nobody"], ["i5", "i9", "i5"])
            >>> float(scores[1]) == dict(rec.recommend(["u1"], k=60, exclude_seen=False)[0])["i9"]
            True
            >>> float(scores[2]), scores.unknown
            (nan, ['nobody'])
        """
        user_rows, unknown_users = self._user_tokens.find(as_list(users, "users"))
        item_rows, unknown_items = self._item_tokens.find(as_list(items, "items"))
        if len(user_rows) != len(item_rows):
            raise UserError(f"score: {len(user_rows)} users and {len(item_rows)} items; expected a user for each item")
        known = (user_rows >= 0) & (item_rows >= 0)
        distinct, place = np.unique(user_rows[known], return_inverse=True)
        of_users = self._users.snapshot(distinct)
        histories, table = [of_users.items(user) for user in distinct.tolist()], self._items
        strengths = [of_users.strengths(user) for user in distinct.tolist()]
        scorer = self._scorer(table, self._user_rows(of_users, distinct, table), histories, strengths)
        row, item, found = place.reshape(-1), item_rows[known], np.empty(len(place.reshape(-1)))
        for start in range(0, len(distinct), _SCORED_USERS):
            asked = np.flatnonzero((row >= start) & (row < start + _SCORED_USERS))
            found[asked] = scorer.part(slice(start, start + _SCORED_USERS)).pairs(row[asked] - start, item[asked])
        scores = np.full(len(known), np.nan).view(Scores)
        scores[known] = found
        scores.unknown_users, scores.unknown_items = unknown_users, unknown_items
        return scores

    # ---------------------------------------------------------------------------------------------------- explanations

    def explain(self, user: TokenLike, item: TokenLike) -> Explanation:
        """What each item of a user's history adds to the score of an item.

        Contributions are exact for new users, for events, and with ``recency`` or weights of interactions.  Otherwise
        the train items of a trained user count equally, with their final embeddings; what this leaves unexplained is
        the residual.

        Raises:
            UnknownIdError: if the user or the item is unknown.
            UserError: if an id has a wrong type, or the users were trained by gradient.

        Example:
            >>> update = rec.update([("new", "i5"), ("new", "i9")])
            >>> explanation = rec.explain("new", "i7")
            >>> sorted(item for item, _ in explanation.contributions)
            ['i5', 'i9']
            >>> [(part.item, part.tower + part.local) for part in explanation.parts] == explanation.contributions
            True
            >>> abs(explanation.residual) < 1e-6
            True
        """
        self._check_foldable("explain")
        row, target = self._user_tokens.row(user), self._item_tokens.row(item)
        of_user = self._users.snapshot(np.array([row]))
        composition = compose_user(of_user, row, self._item_weight)
        table = self._items
        user_e = self._user_rows(of_user, np.array([row]), table)
        return self._explain(table, user_e, composition, target, [])

    def explain_history(
        self,
        history: Iterable[TokenLike],
        item: TokenLike,
        rule: Rule = DEFAULT_RULE,
        weights: Iterable[float] | None = None,
    ) -> Explanation:
        """The same for a new user with this history; see :meth:`recommend_history`.

        Raises:
            UnknownIdError: if the item is unknown, or every item of the history.
            UserError: if an argument has a wrong type, or the users were trained by gradient.

        Example:
            >>> explanation = rec.explain_history(["i5", "nothing"], "i7")
            >>> [item for item, _ in explanation.contributions], explanation.unknown
            (['i5'], ['nothing'])
        """
        self._check_foldable("explain_history")
        check_rule(rule)
        rows, unknown = self._item_tokens.find(as_list(history, "history"))
        target = self._item_tokens.row(item)
        known = rows[rows >= 0]
        if not len(known):
            raise UnknownIdError("history: the bundle knows none of its items")
        given, table = self._given_for(rows, weights), self._items
        item_weight, aggregation = self._fold_in_by(rule)
        user_e = self._folded([known], item_weight, aggregation, [given], table)
        return self._explain(table, user_e, compose_history(known, item_weight, aggregation, given), target, unknown)

    def _explain(
        self,
        table: ItemTable,
        user_e: Float32Array,
        composition: Composition,
        target: BundleRow,
        unknown: list[Token],
    ) -> Explanation:
        found = split_score(table, self.bundle.cosine, user_e, composition, target, self._local)
        columns = self._item_tokens.of(found.items), found.towers.tolist(), found.local.tolist()
        parts = [Part(*row) for row in zip(*columns, strict=True)]
        contributions = [(part.item, part.tower + part.local) for part in parts]
        features = self._feature_parts(target, user_e)
        return Explanation(found.score, found.bias, contributions, parts, found.residual, unknown, features)

    # --------------------------------------------------------------------------------------------------------- helpers

    def _fold_in_by(self, rule: Rule) -> tuple[Float32Array | None, Aggregation]:
        """Weights of all items, and the aggregation, for folding in by a rule.  Look up items before."""
        recent = Aggregation(RECENT_DECAY, transform=self._aggregation.transform)
        aggregation = recent if rule == "recent" else self._aggregation
        return self._item_weight if rule == "trained" else None, aggregation

    def _folded(
        self,
        histories: list[BundleRows],
        item_weight: Float32Array | None,
        aggregation: Aggregation,
        given: Sequence[Float64Array | None],
        table: ItemTable,
    ) -> Float32Array:
        """New users from their histories and the weights of these, ``(B, d)``, as events make them."""
        rows = fold_in(histories, self._catalogue.settled, item_weight, aggregation, given)
        compositions = (
            compose_history(items, item_weight, aggregation, one) if self._catalogue.follows(items).any() else None
            for items, one in zip(histories, given, strict=True)
        )
        return self._whole(rows, compositions, table)

    def _scorer(
        self,
        table: ItemTable,
        user_e: Float32Array,
        histories: Sequence[BundleRows],
        strengths: Sequence[Float64Array | None],
    ) -> Scorer:
        """All items for users with embeddings ``(B, d)``, histories and the weights of their interactions.

        Look up ids and users before you take the table: then it has the rows of all their items.
        """
        user_e = unit_rows(user_e) if self.bundle.cosine else user_e
        return Scorer(table, user_e, self._local, histories, strengths=strengths)

    def _given_for(self, rows: BundleRows, weights: Iterable[float] | None) -> Float64Array | None:
        """The weights of the known items of a history, whose rows are ``(n,)``, -1 for unknown items."""
        parsed: list[float | None] = [None] * len(rows)
        if weights is not None:
            parsed = [as_weight(one, "weights") for one in as_list(weights, "weights")]
        if len(parsed) != len(rows):
            raise UserError(f"weights: {len(parsed)} for a history of {len(rows)} items; expected one for each")
        given = self._weights_of(parsed, "weights")
        return None if given is None else given[rows >= 0]

    def _similarity(self, items: BundleRows, histories: Sequence[BundleRows], by: Similarity) -> Scorer:
        """All items for items ``(B,)``, each of which is a history too."""
        if by not in get_args(Similarity):
            raise UserError(f"by: {by!r} is not allowed; expected one of {', '.join(get_args(Similarity))}")
        if by == "tower":
            directions = self._items.directions(self.bundle.cosine)
            return Scorer(directions, directions.embeddings.rows(items))
        if self._local is None:
            raise UserError("by: 'local' is not allowed: this bundle has no local term; expected tower")
        table = self._items
        no_towers = ItemTable(Embeddings(np.zeros((len(table), 0), np.float32)), None, table.hidden)
        return Scorer(no_towers, np.zeros((len(items), 0), np.float32), self._local, histories)

    def _chosen(self, k: int, allow: Iterable[TokenLike] | None, deny: Iterable[TokenLike]) -> _Chosen:
        """Check the arguments of a question for lists, and look up its items."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise UserError(f"k: {k!r} is not allowed: expected a whole number of at least 1")
        denied, unknown = self._item_tokens.find(as_list(deny, "deny"))
        if allow is None:
            return _Chosen(int(k), None, denied[denied >= 0], unknown)
        allowed, unknown_allowed = self._item_tokens.find(as_list(allow, "allow"))
        pool = np.unique(allowed[allowed >= 0])
        return _Chosen(int(k), pool, denied[denied >= 0], list(dict.fromkeys(unknown + unknown_allowed)))

    def _rank(self, scorer: Scorer, seen: Sequence[BundleRows], chosen: _Chosen, index: Index | None = None) -> Ranked:
        """The best items of users, approximately with an index."""
        k, limits = min(chosen.k, max(len(scorer.items), 1)), (self._memory_mb, self._threads)
        excluded = Excluded.of(seen, np.union1d(chosen.denied, scorer.items.hidden))
        pool = chosen.pool
        if pool is None and index is not None:
            return index.best_items(scorer, k, excluded, len(self.bundle.item_encodings))
        if pool is None:
            return best_items(scorer, k, excluded, *limits)
        if not len(pool):
            return Ranked(np.zeros(len(scorer) + 1, np.int64), NO_ROWS, np.empty(0))
        found = best_items(scorer.within(pool), k, excluded.within(pool), *limits)
        return Ranked(found.start, pool[found.item], found.score)

    def _lists(self, ranked: Ranked, known: npt.NDArray[np.bool_]) -> list[list[tuple[Token, float]]]:
        """A list for everything asked, empty for the unknown."""
        pairs = list(zip(self._item_tokens.of(ranked.item), ranked.score.tolist(), strict=True))
        lists = (pairs[first:last] for first, last in pairwise(ranked.start.tolist()))
        return [next(lists) if is_known else [] for is_known in known.tolist()]


def _open_index(bundle: Bundle, kind: str) -> Index:
    from recbole_onebp.serving.ann import open_index

    return open_index(bundle, kind)
