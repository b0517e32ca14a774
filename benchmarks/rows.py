"""The rows of ``speed.py``: what is timed against what, and what is asserted about it first."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import floor
import growth
import memory
import numpy as np
import torch
from measure import Row, alternate, claim, ratios, timed
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.sampler import Sampler
from reference import ReferenceCode

import recbole_onebp
from recbole_onebp.sampling import NegativeSampler
from recbole_onebp.util.errors import UserError

GOWALLA, ML_100K = "gowalla", "onebp-ml-100k"
POSITIVES = 2048
SIZE = 64
NEGATIVES = 5
SHARED = 1024
_MOVING: dict[str, Any] = {
    "item_bias": False,
    "aggregation": "step",
    "aggregation_alpha": 0.0,
    "learning_rate_decay": 1.0,
}
"""The paper's aggregation; beta and leave_one_out follow."""
PER_PAIR: dict[str, Any] = {
    **_MOVING,
    "negatives": "per_pair",
    "score": "dot",
    "learner": "adam",
    "train_batch_size": POSITIVES * NEGATIVES,
}
COSINE: dict[str, Any] = {
    **_MOVING,
    "negatives": "shared",
    "n_shared_negatives": SHARED,
    "score": "cosine",
    "temperature": 0.1,
    "learner": "adam",
    "train_batch_size": POSITIVES,
}
PUBLISHED = {"N": NEGATIVES, "dim": 32, "lr": 5e-4, "l2": 1e-5, "beta": 0.99, "temperature": 1}
"""Of the authors' README for ML-100k, as flags of their code; ``preset: paper`` is the same."""
EVAL_USERS = (4, 16, 64, 128, 256, 512)
"""Users a batch that RecBole's evaluation is tried with."""
FRACTION = 8
"""LightGCN's epoch is timed on the first batches, one in so many."""
TOLERANCE = 0.005
"""Of a loss, relative, where the draws differ: an epoch's mean over 70,000 to 700,000 pairs is stable to 0.1 %."""


def negatives(number: int) -> dict[str, Any]:
    return {"distribution": "uniform", "sample_num": number, "alpha": 1.0, "dynamic": False, "candidate_num": 0}


@dataclass(frozen=True)
class Bench:
    """What all rows need."""

    data_path: Path
    scratch: Path
    repeats: int
    seed: int
    reference: Path | None
    use_gpu: bool = False

    def config(self, **overrides: Any) -> dict[str, Any]:
        return {
            "data_path": str(self.data_path),
            "embedding_size": SIZE,
            "metrics": ["Recall", "NDCG", "MRR", "Hit", "Precision"],
            "topk": [10, 20],
            "seed": self.seed,
            "use_gpu": self.use_gpu,
            "show_progress": False,
            "output_dir": tempfile.mkdtemp(dir=self.scratch),
            **overrides,
        }

    def build(self, model: str, dataset: str = GOWALLA, **overrides: Any) -> recbole_onebp.Run:
        return recbole_onebp.build(model, dataset, config_dict=self.config(**overrides))

    def stock(self, model: str, sample_num: int, **overrides: Any) -> Training:
        """A baseline on RecBole's own path, with ``sample_num`` negatives a positive."""
        settings: dict[str, Any] = {
            "train_neg_sample_args": negatives(sample_num),
            "train_batch_size": POSITIVES * sample_num,
            "fast_sampler": False,
            "fast_evaluator": False,
        }
        return Training(self.build(model, **settings, **overrides))

    @cached_property
    def per_pair(self) -> Training:
        return self._onebp(PER_PAIR)

    @cached_property
    def shared(self) -> Training:
        return self._onebp(COSINE)

    def _onebp(self, settings: dict[str, Any]) -> Training:
        """OneBP on the fast engine, after two epochs that agreed with the reference engine's."""
        slow, fast = (self._two_epochs(engine, settings) for engine in ("reference", "fast"))
        claim(fast.losses[1] < fast.losses[0], f"the loss does not fall: {fast.losses}")
        for expected, loss in zip(slow.losses, fast.losses, strict=True):
            claim(
                abs(loss - expected) <= TOLERANCE * abs(expected),
                f"losses of the engines differ: reference {slow.losses}, fast {fast.losses}",
            )
        return fast

    def _two_epochs(self, engine: str, settings: dict[str, Any]) -> Training:
        training = Training(self.build("OneBP", engine=engine, **settings))  # this seeds whatever draws
        training.epoch()
        training.epoch()
        return training


class Training:
    """A run that is trained on, an epoch a call; every loss has to be finite."""

    def __init__(self, run: recbole_onebp.Run, positives: int = POSITIVES) -> None:
        self.run = run
        self.losses: list[float] = []
        self.steps = math.ceil(len(run.train_data.dataset) / positives)
        claim(len(run.train_data) == self.steps, f"{len(run.train_data)} steps an epoch, expected {self.steps}")

    def epoch(self, batches: Any = None) -> None:
        """Train on all batches, or on those given."""
        loss = self.run.trainer._train_epoch(batches or self.run.train_data, len(self.losses))
        self.losses.append(float(sum(loss) if isinstance(loss, tuple) else loss))
        claim(math.isfinite(self.losses[-1]), f"{self.run.config['model']}: losses {self.losses}")
        if self.run.config["device"].type == "cuda":
            torch.cuda.synchronize()

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Users and items of the train part, internal ids."""
        features = self.run.train_data._dataset.inter_feat
        return features["user_id"].numpy(), features["item_id"].numpy()

    @property
    def n_users(self) -> int:
        return int(self.run.dataset.user_num)

    @property
    def n_items(self) -> int:
        return int(self.run.dataset.item_num)


class SomeBatches:
    """The first ``n`` batches of an epoch; ``seconds``: of each, loading and training, the last time round."""

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = loader, n
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        self.seconds = []
        start = perf_counter()
        for batch in islice(self.loader, self.n):
            yield batch  # returns when the batch has been trained on
            now = perf_counter()
            self.seconds.append(now - start)
            start = now


LOSSES = f"losses finite; fast and reference engine's losses of 2 epochs within {TOLERANCE:.1%}, and falling"
AUTHORS_LOSSES = f"mean loss of every epoch within {TOLERANCE:.1%} of the other's"


def against(bench: Bench, what: str, ours: Training, name: str, theirs: Training, target: float) -> list[Row]:
    """Epochs of ours and of a baseline on gowalla; ``what`` tells the two."""
    theirs.epoch()
    a, b = alternate(bench.repeats, timed(ours.epoch), timed(theirs.epoch))
    parts = {"OneBP, s": a, f"{name}, s": b}
    return [Row(f"{what}, train epoch, gowalla", ratios(a, b), parts, LOSSES, target=target)]


def bpr(bench: Bench) -> list[Row]:
    what = "OneBP (N = 5, per_pair) / RecBole BPR (N = 1)"
    return against(bench, what, bench.per_pair, "BPR", bench.stock("BPR", 1), target=0.20)


def lightgcn(bench: Bench) -> list[Row]:
    ours, theirs = bench.per_pair, bench.stock("LightGCN", 1, n_layers=3)
    whole = SomeBatches(theirs.run.train_data, theirs.steps)
    theirs.epoch(whole)
    part = SomeBatches(theirs.run.train_data, math.ceil(theirs.steps / FRACTION))
    scale = theirs.steps / part.n

    def scaled() -> float:
        return timed(lambda: theirs.epoch(part))() * scale

    a, b = alternate(bench.repeats, timed(ours.epoch), scaled)
    medians = [float(np.median(eighth)) for eighth in np.array_split(whole.seconds, FRACTION)]
    shown = ", ".join(f"{median:.3g}" for median in medians)
    claim(max(medians) < 1.5 * min(medians), f"LightGCN's batches differ: {shown} s, the medians of an epoch's eighths")
    return [
        Row(
            "OneBP (N = 5, per_pair) / RecBole LightGCN (3 layers), train epoch, gowalla",
            ratios(a, b),
            {"OneBP, s": a, "LightGCN, s": b, "LightGCN, one whole epoch, s": [sum(whole.seconds)]},
            f"{LOSSES}; the median batch of each eighth of one whole LightGCN epoch within 50 % of the others'",
            target=0.02,
            note=f"LightGCN timed on {part.n} of its {theirs.steps} batches, scaled up",
        )
    ]


def simplex(bench: Bench) -> list[Row]:
    what = "OneBP (1,024 shared negatives, cosine) / RecBole SimpleX (5 negatives)"
    return against(bench, what, bench.shared, "SimpleX", bench.stock("SimpleX", NEGATIVES), target=0.25)


def beside_the_authors(bench: Bench, ours: Training, settings: Mapping[str, object]) -> tuple[list[float], list[float]]:
    """Seconds of epochs of ours and of the authors' code on the same pairs, whose losses have to agree."""
    if bench.reference is None:
        raise UserError("needs --reference, a clone of studentcej/OneBP")
    pairs = np.stack(ours.pairs(), axis=1) - 1  # no padding row there
    their_losses = []
    device = "cuda" if bench.use_gpu else "cpu"
    with ReferenceCode(bench.reference, pairs, ours.n_users - 1, ours.n_items - 1, settings, device) as theirs:

        def epoch() -> float:
            seconds, loss = theirs.epoch()
            their_losses.append(loss)
            return seconds

        ours.epoch()
        epoch()
        a, b = alternate(bench.repeats, timed(ours.epoch), epoch)
    our_losses = [loss / ours.steps for loss in ours.losses]
    for own, other in zip(our_losses, their_losses, strict=True):
        claim(abs(own - other) <= TOLERANCE * other, f"mean losses differ: {our_losses} and {their_losses}")
    return a, b


def reference(bench: Bench) -> list[Row]:
    batch_size = 1024
    ours = Training(bench.build("OneBP", ML_100K, preset="paper", embedding_size=PUBLISHED["dim"]), batch_size)
    a, b = beside_the_authors(bench, ours, {**PUBLISHED, "batch_size": batch_size})
    n_pairs = len(ours.pairs()[0])
    return [
        Row(
            "OneBP / the authors' code, train epoch, onebp-ml-100k, published settings",
            ratios(a, b),
            {"OneBP, s": a, "the authors' code, s": b},
            AUTHORS_LOSSES,
            target=0.067,
            note=f"{n_pairs:,} pairs; the authors' code leaves the last {n_pairs % batch_size} of each epoch out",
        )
    ]


def evaluation(bench: Bench) -> list[Row]:
    ours = Training(bench.build("OneBP", fast_evaluator=True, **PER_PAIR))
    ours.epoch()
    stock = bench.build("OneBP", fast_evaluator=False, fast_sampler=False, **PER_PAIR)
    stock.model.load_state_dict(ours.run.model.state_dict())
    results: dict[str, dict[str, float]] = {}

    def evaluate(name: str, run: recbole_onebp.Run, loader: Any) -> Callable[[], float]:
        def once() -> None:
            results[name] = dict(run.trainer.evaluate(loader, load_best_model=False))

        return timed(once)

    def stock_with(users: int) -> Callable[[], float]:
        stock.config["eval_batch_size"] = users * stock.dataset.item_num
        test = stock.test_data
        loader = FullSortEvalDataLoader(stock.config, test._dataset, test._sampler, shuffle=False)
        claim(len(loader) == math.ceil(len(test.uid_list) / users), f"eval_batch_size {users} users is not taken up")
        return evaluate("RecBole", stock, loader)

    fast = evaluate("ours", ours.run, ours.run.test_data)
    fast()
    tried = {users: stock_with(users)() for users in EVAL_USERS}
    best = min(tried, key=lambda users: tried[users])
    claim(results["ours"]["recall@20"] > 0.001, f"nothing was learnt: {results['ours']}")
    a, b = alternate(bench.repeats, fast, stock_with(best))
    claim(results["ours"] == results["RecBole"], f"metrics differ: {results}")
    return [
        Row(
            "full-sort evaluation / RecBole's at its best eval_batch_size, gowalla",
            ratios(a, b),
            {
                "ours, s": a,
                f"RecBole, {best} users a batch, s": b,
                **{f"RecBole, {users} users a batch, once, s": [seconds] for users, seconds in tried.items()},
            },
            f"{len(results['ours'])} metrics equal to the last printed digit",
            target=0.25,
        )
    ]


def sampler(bench: Bench) -> list[Row]:
    run = bench.stock("BPR", 1)
    user, item = run.pairs()
    order = np.random.default_rng(bench.seed).permutation(len(user))
    user, item = user[order], item[order]
    n_items = run.n_items
    ours = NegativeSampler(user, item, run.n_users, n_items, bench.seed)
    theirs = Sampler(["train"], [run.run.train_data._dataset], "uniform").set_phase("train")
    batches = [slice(start, start + POSITIVES) for start in range(0, len(user), POSITIVES)]
    taken = np.unique(user * n_items + item)

    def check(name: str, users: NDArray[np.int64], drawn: NDArray[np.int64]) -> None:
        claim(drawn.shape == (len(users), NEGATIVES), f"{name}: shape {drawn.shape}")
        claim(drawn.min() > 0 and drawn.max() < n_items, f"{name}: ids {drawn.min()} to {drawn.max()}")
        claim(not np.isin(users[:, None] * n_items + drawn, taken).any(), f"{name}: a train positive was drawn")

    def of_ours(batch: slice) -> NDArray[np.int64]:
        return np.asarray(ours.sample(user[batch], NEGATIVES))

    def of_recbole(batch: slice) -> NDArray[np.int64]:
        return theirs.sample_by_user_ids(user[batch], item[batch], NEGATIVES).numpy()

    check("ours", user, np.concatenate([of_ours(batch) for batch in batches]))
    check("RecBole's", user, np.concatenate([of_recbole(batch).reshape(NEGATIVES, -1).T for batch in batches]))

    def rate(sample: Callable[[slice], object]) -> Callable[[], float]:
        def run_all() -> None:
            for batch in batches:
                sample(batch)

        return lambda: len(user) * NEGATIVES / timed(run_all)() / 1e6

    a, b = alternate(bench.repeats, rate(of_ours), rate(of_recbole))
    return [
        Row(
            "sampler / RecBole's, negatives a second, gowalla",
            ratios(a, b),
            {"ours, million a second": a, "RecBole's, million a second": b},
            f"{len(user) * NEGATIVES:,} negatives of each: shape, range, none a train positive",
            target=20,
            at_least=True,
            note=f"an epoch's shuffled pairs in batches of {POSITIVES}, {NEGATIVES} negatives each",
        )
    ]


def memory_of_runs(bench: Bench) -> list[Row]:
    repeats = min(bench.repeats, 3)
    imports: dict[str, list[float]] = {"OneBP": [], "BPR": []}

    def peak(model: str, **settings: Any) -> Callable[[], float]:
        def once() -> float:
            # Ten users a batch: RecBole's evaluation then holds no more than a few MB of scores.
            config = bench.config(epochs=2, eval_step=2, eval_batch_size=10 * 41_000, **settings)
            above, alone, test = memory.above_imports(model, GOWALLA, config)
            claim(test["recall@20"] > 0.001, f"{model} learnt nothing: {test}")
            imports[model].append(alone)
            return above

        return once

    stock = {"train_neg_sample_args": negatives(1), "train_batch_size": POSITIVES}
    off = {"fast_sampler": False, "fast_evaluator": False}
    a, b = alternate(repeats, peak("OneBP", **PER_PAIR), peak("BPR", **stock, **off))
    return [
        Row(
            "peak resident memory of a whole gowalla run above its imports, OneBP / RecBole BPR",
            ratios(a, b),
            {
                "OneBP, MiB": a,
                "BPR, MiB": b,
                "imports of OneBP, MiB": imports["OneBP"],
                "imports of BPR, MiB": imports["BPR"],
            },
            "both runs train, validate, test and find more than chance",
            target=0.6,
            note="two epochs, validation, test; a process each",
        )
    ]


def growth_exponent(bench: Bench) -> list[Row]:
    sizes = [size for size in growth.SWEEPS["interactions"] if size >= growth.FITTED_FROM["interactions"]]
    (result,) = growth.sweep("interactions", sizes, ("adam",), bench.repeats, bench.seed)
    parts = {f"{size:,} interactions, s": seconds for size, seconds in zip(sizes, result["seconds"], strict=True)}
    return [
        Row(
            "exponent of an OneBP epoch's cost against interactions, 1 M to 30 M",
            result["exponents"],
            parts,
            "losses finite and below chance",
            target=1.05,
            note=f"made power-law data, {growth.STEPS} steps of an epoch and its order, see growth.py",
        )
    ]


def floor_rows(
    title: str, training: Training, touched: floor.Touched, size: int, rate: float, multiplied: float, repeats: int
) -> list[Row]:
    """Epochs against their floor, for a lazy and for dense Adam.

    Args:
        title: the setting.
        training: what is timed.
        touched: rows of an epoch.
        size: dimension d.
        rate: bytes a second.
        multiplied: seconds of an epoch's matrix products; 0 where they are of no weight.
        repeats: epochs to time.
    """
    seconds = [timed(training.epoch)() for _ in range(repeats)]
    rows = []
    for dense, what in ((False, "moving the rows that a step touches"), (True, "moving all rows, as dense Adam")):
        moved = floor.bytes_of_epoch(touched, training.n_items, size, dense)
        least = max(moved / rate, multiplied)
        parts = {"epoch, s": seconds, "bytes, GB": [moved / 1e9], "bandwidth, GB/s": [rate / 1e9]}
        if multiplied:
            parts["matrix products, s"] = [multiplied]
        note = f"floor {least:.3g} s, of " + ("the products" if multiplied == least else "the bytes")
        title_of_row = f"OneBP train epoch / its floor, {title}, {what}"
        rows.append(Row(title_of_row, [value / least for value in seconds], parts, "losses finite", note=note))
    return rows


def floors(bench: Bench) -> list[Row]:
    pairs, n_users, n_items = bench.per_pair.pairs(), bench.per_pair.n_users, bench.per_pair.n_items
    rate = floor.bandwidth(floor.bytes_of_tables(n_users, n_items, SIZE), bench.repeats)
    per_pair = floor.touched_rows(*pairs, n_items, POSITIVES, NEGATIVES, shared=False)
    shared = floor.touched_rows(*pairs, n_items, POSITIVES, SHARED, shared=True)
    products = floor.products_of_step(POSITIVES, SHARED, SIZE, bench.repeats) * shared.steps
    return [
        *floor_rows("gowalla, N = 5, per_pair", bench.per_pair, per_pair, SIZE, rate, 0, bench.repeats),
        *floor_rows("gowalla, 1,024 shared, cosine", bench.shared, shared, SIZE, rate, products, bench.repeats),
    ]


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "bpr": bpr,
    "lightgcn": lightgcn,
    "simplex": simplex,
    "reference": reference,
    "evaluation": evaluation,
    "sampler": sampler,
    "memory": memory_of_runs,
    "growth": growth_exponent,
    "floor": floors,
}
