"""How fast OneBP trains, samples and evaluates, and how much memory it needs, against RecBole's baselines, the authors'
code and the least time that the machine allows.

    python benchmarks/speed.py [--data_path dataset] [--reference DIR] [--only ROW ...] [--repeats 5] [--json OUT]
    python benchmarks/speed.py --device cuda [--reference DIR] [--only gowalla-reference gowalla-floor ...]

``benchmarks/README.md`` explains the rows.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import large
import measure
import numpy as np
import torch
from measure import Row, claim, ratios, timed
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.sampler import Sampler
from reference import ReferenceCode

import recbole_onebp
from recbole_onebp.config import OneBPConfig
from recbole_onebp.cooccurrence import ridge_on_neighbors
from recbole_onebp.cooccurrence_cuda import ridge_on_neighbors_batched
from recbole_onebp.evaluation import full_sort
from recbole_onebp.model import OneBP
from recbole_onebp.sampling import NegativeSampler
from recbole_onebp.util.errors import UserError

GOWALLA, ML_100K = "gowalla", "onebp-ml-100k"
POSITIVES = 2048
SIZE = 64
NEGATIVES = 5
SHARED = 1024
STEPWISE = {"aggregation": "step", "aggregation_alpha": 0.0, "item_bias": False, "learning_rate_decay": 1.0}
"""The paper's aggregation; beta and leave_one_out follow from it."""
PER_PAIR: dict[str, Any] = {
    **STEPWISE, "learner": "adam", "negatives": "per_pair", "score": "dot", "train_batch_size": POSITIVES * NEGATIVES,
}  # fmt: skip
COSINE: dict[str, Any] = {
    **STEPWISE, "learner": "adam", "negatives": "shared", "n_shared_negatives": SHARED, "score": "cosine",
    "temperature": 0.1, "train_batch_size": POSITIVES,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    ML_100K: {"dim": 32, "lr": 5e-4, "l2": 1e-5, "beta": 0.99},
    GOWALLA: {"dim": 1024, "lr": 5e-4, "l2": 0, "beta": 0.999},
    "yelp2018": {"dim": 2048, "lr": 5e-5, "l2": 0, "beta": 0.999},
}
"""Flags of the authors' code, from its README; ``preset: paper`` is the same. All: 1,024 positives a step, N = 5."""
PUBLISHED_POSITIVES = 1024
FEATURES = {"ml-100k": ["class", "release_year"], "citeulike": ["tags"]}
"""Fields of the items of each data set."""
STOCK: dict[str, Any] = {"fast_sampler": False, "fast_evaluator": False}
EVAL_USERS = (4, 16, 64, 128, 256, 512)  # users a batch that RecBole's evaluation is tried with
FRACTION = 8  # LightGCN is timed on the first of so many parts of an epoch, whose batches are equally fast
TOLERANCE = 0.005
"""Relative tolerance of a loss where the draws differ: the mean over 70,000 to 700,000 pairs is stable to 0.1 %."""
Ids = NDArray[np.int64]


class Bench:
    """What the rows share: configurations, and models that several rows train."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.data_path, self.repeats, self.seed = args.data_path.resolve(), args.repeats, args.seed
        self.reference, self.device, self.scratch = args.reference, args.device, scratch

    def config(self, **overrides: Any) -> dict[str, Any]:
        return {
            "data_path": str(self.data_path), "embedding_size": SIZE, "seed": self.seed,
            "metrics": ["Recall", "NDCG", "MRR", "Hit", "Precision"], "topk": [10, 20], "show_progress": False,
            "use_gpu": self.device == "cuda", "output_dir": tempfile.mkdtemp(dir=self.scratch), **overrides,
        }  # fmt: skip

    def build(self, model: str, dataset: str = GOWALLA, **overrides: Any) -> recbole_onebp.Run:
        return recbole_onebp.build(model, dataset, config_dict=self.config(**overrides))

    def stock(self, model: str, sample_num: int, **overrides: Any) -> Training:
        """A baseline on RecBole's own code path, with ``sample_num`` negatives a positive."""
        return Training(self.build(model, **STOCK, **drawn(sample_num), **overrides))

    @cache  # noqa: B019
    def onebp(self, shared: bool = False) -> Training:
        """OneBP on the fast engine, after two epochs whose losses agree with the reference engine's."""
        trained = []
        for engine in ("reference", "fast"):  # building seeds the generators
            trained.append(Training(self.build("OneBP", engine=engine, **(COSINE if shared else PER_PAIR))))
            trained[-1].epoch()
            trained[-1].epoch()
        slow, fast = trained
        claim(fast.losses[1] < fast.losses[0], f"the loss does not fall: {fast.losses}")
        close = np.allclose(fast.losses, slow.losses, rtol=TOLERANCE, atol=0)
        claim(close, f"losses of the engines differ: reference {slow.losses}, fast {fast.losses}")
        return fast

    @lru_cache(maxsize=1)  # noqa: B019
    def published(self, dataset: str) -> Training:
        """OneBP with the published settings of a data set; one model is held at a time."""
        size = PUBLISHED[dataset]["dim"]
        return Training(self.build("OneBP", dataset, preset="paper", embedding_size=size), PUBLISHED_POSITIVES)


def drawn(number: int) -> dict[str, Any]:
    """So many uniform negatives a positive; RecBole counts them into a batch."""
    rule = {"distribution": "uniform", "sample_num": number, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    return {"train_neg_sample_args": rule, "train_batch_size": POSITIVES * number}


class Training:
    """A run that trains one epoch a call; every loss must be finite."""

    def __init__(self, run: recbole_onebp.Run, positives: int = POSITIVES) -> None:
        self.run, self.losses = run, list[float]()
        self.steps = math.ceil(len(run.train_data.dataset) / positives)
        self.n_users, self.n_items = int(run.dataset.user_num), int(run.dataset.item_num)
        claim(len(run.train_data) == self.steps, f"{len(run.train_data)} steps an epoch, expected {self.steps}")

    def epoch(self, batches: Any = None) -> None:
        """Train on all batches, or on the given ones."""
        loss = self.run.trainer._train_epoch(batches or self.run.train_data, len(self.losses))
        self.losses.append(float(sum(loss) if isinstance(loss, tuple) else loss))
        claim(math.isfinite(self.losses[-1]), f"{self.run.config['model']}: losses {self.losses}")
        _wait(self.run.config["device"].type)

    def pairs(self) -> tuple[Ids, Ids]:
        """Users and items of the train part, internal ids."""
        features = self.run.train_data._dataset.inter_feat
        return features["user_id"].numpy(), features["item_id"].numpy()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


LOSSES = f"losses finite; fast and reference engine's losses of 2 epochs within {TOLERANCE:.1%}, and falling"


def against(
    bench: Bench, what: str, ours: Training, name: str, theirs: Training, target: float | None, checked: str = LOSSES
) -> list[Row]:
    """Epochs of ours and of a baseline on gowalla; ``what`` names both."""
    theirs.epoch()
    a, b = measure.alternate(bench.repeats, timed(ours.epoch), timed(theirs.epoch))
    parts = {"OneBP, s": a, f"{name}, s": b}
    return [Row(f"{what}, train epoch, gowalla", ratios(a, b), parts, checked, target=target)]


def bpr(bench: Bench) -> list[Row]:
    run, theirs = bench.build("OneBP", GOWALLA, local="none"), bench.stock("BPR", 1)
    defaults = Training(run, run.config["train_batch_size"])
    defaults.epoch()
    what = "OneBP {} / RecBole BPR (N = 1)"
    return [
        *against(bench, what.format("(N = 5, per_pair)"), bench.onebp(), "BPR", theirs, target=0.14),
        *against(bench, what.format("(the default's towers)"), defaults, "BPR", theirs, None, checked="losses finite"),
    ]


def simplex(bench: Bench) -> list[Row]:
    what = "OneBP (1,024 shared negatives, cosine) / RecBole SimpleX (5 negatives)"
    return against(bench, what, bench.onebp(shared=True), "SimpleX", bench.stock("SimpleX", NEGATIVES), target=0.25)


def lightgcn(bench: Bench) -> list[Row]:
    ours, theirs = bench.onebp(), bench.stock("LightGCN", 1, n_layers=3)
    n, ends = math.ceil(theirs.steps / FRACTION), list[float]()

    def watched(batches: Iterable[Any]) -> Iterator[Any]:
        ends.append(perf_counter())
        for batch in batches:
            yield batch  # returns when the batch has been trained on
            ends.append(perf_counter())

    theirs.epoch(watched(theirs.run.train_data))
    medians = [float(np.median(eighth)) for eighth in np.array_split(np.diff(ends), FRACTION)]

    def scaled() -> float:
        return timed(lambda: theirs.epoch(islice(theirs.run.train_data, n)))() * theirs.steps / n

    a, b = measure.alternate(bench.repeats, timed(ours.epoch), scaled)
    claim(max(medians) < 1.5 * min(medians), f"LightGCN's batches differ: medians of an epoch's eighths {medians} s")
    title = "OneBP (N = 5, per_pair) / RecBole LightGCN (3 layers), train epoch, gowalla"
    parts = {"OneBP, s": a, "LightGCN, s": b, "LightGCN, one whole epoch, s": [ends[-1] - ends[0]]}
    checked = f"{LOSSES}; the median batch of each eighth of one whole LightGCN epoch within 50 % of the others'"
    note = f"LightGCN timed on {n} of its {theirs.steps} batches, scaled up"
    return [Row(title, ratios(a, b), parts, checked, target=0.02, note=note)]


def authors_row(bench: Bench, ours: Training, dataset: str, what: str, target: float, note: str = "") -> Row:
    """Epochs of ours and of the authors' code on the same pairs; their mean losses must agree."""
    if bench.reference is None:
        raise UserError("needs --reference, a clone of studentcej/OneBP")
    pairs = np.stack(ours.pairs(), axis=1) - 1  # the authors' code has no padding row
    flags = {"N": NEGATIVES, "temperature": 1, "batch_size": PUBLISHED_POSITIVES, **PUBLISHED[dataset]}
    n_users, n_items = ours.n_users - 1, ours.n_items - 1
    their_losses = []
    with ReferenceCode(bench.reference, pairs, n_users, n_items, flags, bench.device) as theirs:

        def epoch() -> float:
            seconds, loss = theirs.epoch()
            their_losses.append(loss)
            return seconds

        ours.epoch()
        epoch()
        a, b = measure.alternate(bench.repeats, timed(ours.epoch), epoch)
    our_losses = [loss / ours.steps for loss in ours.losses]
    close = np.allclose(our_losses, their_losses, rtol=TOLERANCE, atol=0)
    claim(close, f"mean losses differ: {our_losses} and {their_losses}")
    checked = f"mean loss of every epoch within {TOLERANCE:.1%} of the other's"
    parts = {"OneBP, s": a, "the authors' code, s": b}
    return Row(f"OneBP / the authors' code, train epoch, {what}", ratios(a, b), parts, checked, target, note=note)


def reference(bench: Bench) -> list[Row]:
    ours = bench.published(ML_100K)
    n_pairs = len(ours.pairs()[0])
    note = f"{n_pairs:,} pairs; the authors' code leaves the last {n_pairs % PUBLISHED_POSITIVES} of each epoch out"
    return [authors_row(bench, ours, ML_100K, f"{ML_100K}, published settings", 0.067, note)]


def growth(bench: Bench) -> list[Row]:
    sizes = [size for size in large.SWEEPS["interactions"] if size >= large.FITTED_FROM["interactions"]]
    (result,) = large.sweep("interactions", sizes, ("adam",), bench.repeats, bench.seed)
    parts = {f"{size:,} interactions, s": seconds for size, seconds in zip(sizes, result["seconds"], strict=True)}
    note = f"made power-law data, {large.STEPS} steps of an epoch and its order, see large.py"
    title = "exponent of an OneBP epoch's cost against interactions, 1 M to 30 M"
    return [Row(title, result["exponents"], parts, "losses finite and below chance", target=1.05, note=note)]


def evaluation(bench: Bench) -> list[Row]:
    ours = Training(bench.build("OneBP", fast_evaluator=True, **PER_PAIR))
    ours.epoch()
    stock = bench.build("OneBP", **STOCK, **PER_PAIR)
    stock.model.load_state_dict(ours.run.model.state_dict())
    results: dict[str, dict[str, float]] = {}

    def evaluate(name: str, run: recbole_onebp.Run, loader: Any) -> Callable[[], float]:
        return timed(lambda: results.update({name: dict(run.trainer.evaluate(loader, load_best_model=False))}))

    def stock_with(users: int) -> Callable[[], float]:
        stock.config["eval_batch_size"] = users * stock.dataset.item_num
        test = stock.test_data
        loader = FullSortEvalDataLoader(stock.config, test._dataset, test._sampler, shuffle=False)
        claim(len(loader) == math.ceil(len(test.uid_list) / users), f"eval_batch_size does not give {users} users")
        return evaluate("RecBole", stock, loader)

    fast = evaluate("ours", ours.run, ours.run.test_data)
    fast()
    tried = {users: stock_with(users)() for users in EVAL_USERS}
    best = min(tried, key=lambda users: tried[users])
    claim(results["ours"]["recall@20"] > 0.001, f"the model learned nothing: {results['ours']}")
    plain = evaluate("ours, all scores", ours.run, ours.run.test_data)

    def unbounded() -> float:
        with patch.object(full_sort, "bounded_ranking", lambda *_: nullcontext()):
            return plain()

    a, b, c = measure.alternate(bench.repeats, fast, stock_with(best), unbounded)
    claim(all(metrics == results["ours"] for metrics in results.values()), f"metrics differ: {results}")
    parts = {"ours, s": a, f"RecBole, {best} users a batch, s": b, "ours, all scores and torch.topk, s": c}
    parts |= {f"RecBole, {users} users a batch, once, s": [seconds] for users, seconds in tried.items()}
    checked = f"{len(results['ours'])} metrics equal to the last printed digit"
    title = "full-sort evaluation / RecBole's at its best eval_batch_size, gowalla"
    return [Row(title, ratios(a, b), parts, checked, target=0.25)]


def sampler(bench: Bench) -> list[Row]:
    training = bench.stock("BPR", 1)
    order = np.random.default_rng(bench.seed).permutation(len(training.pairs()[0]))
    user, item = (ids[order] for ids in training.pairs())
    n_items = training.n_items
    ours = NegativeSampler(user, item, training.n_users, n_items, bench.seed)
    theirs = Sampler(["train"], [training.run.train_data._dataset], "uniform").set_phase("train")
    batches = [slice(start, start + POSITIVES) for start in range(0, len(user), POSITIVES)]
    positives = np.unique(user * n_items + item)

    def by_us() -> list[Ids]:
        return [np.asarray(ours.sample(user[batch], NEGATIVES)) for batch in batches]

    def by_recbole() -> list[Ids]:
        return [theirs.sample_by_user_ids(user[batch], item[batch], NEGATIVES).numpy() for batch in batches]

    by_position = [ids.reshape(NEGATIVES, -1).T for ids in by_recbole()]
    for name, found in (("ours", np.concatenate(by_us())), ("RecBole's", np.concatenate(by_position))):
        claim(found.shape == (len(user), NEGATIVES), f"{name}: shape {found.shape}")
        claim(found.min() > 0 and found.max() < n_items, f"{name}: ids {found.min()} to {found.max()}")
        claim(not np.isin(user[:, None] * n_items + found, positives).any(), f"{name}: a train positive was drawn")
    seconds = measure.alternate(bench.repeats, timed(by_us), timed(by_recbole))
    a, b = ([len(user) * NEGATIVES / each / 1e6 for each in of_one] for of_one in seconds)
    title = "sampler / RecBole's, negatives a second, gowalla"
    parts = {"ours, million a second": a, "RecBole's, million a second": b}
    checked = f"{len(user) * NEGATIVES:,} negatives of each: shape, range, none a train positive"
    note = f"an epoch's shuffled pairs in batches of {POSITIVES}, {NEGATIVES} negatives each"
    return [Row(title, ratios(a, b), parts, checked, target=20, at_least=True, note=note)]


def memory(bench: Bench) -> list[Row]:
    imports: dict[str, list[float]] = {"OneBP": [], "BPR": []}

    def peak(model: str, **settings: Any) -> float:
        # Ten users a batch: RecBole's evaluation then holds no more than a few MB of scores.
        config = bench.config(epochs=2, eval_step=2, eval_batch_size=10 * 41_000, **settings)
        run = measure.in_a_process(__file__, "run", model, GOWALLA, config)
        claim(run["test"]["recall@20"] > 0.001, f"{model} learned nothing: {run['test']}")
        imports[model].append(measure.in_a_process(__file__, "imports", run["modules"])["peak_mb"])
        return run["peak_mb"] - imports[model][-1]

    contestants = partial(peak, "OneBP", **PER_PAIR), partial(peak, "BPR", **STOCK, **drawn(1))
    a, b = measure.alternate(min(bench.repeats, 3), *contestants)
    parts = {"OneBP, MiB": a, "BPR, MiB": b, **{f"imports of {name}, MiB": mb for name, mb in imports.items()}}
    title = "peak resident memory of a whole gowalla run above its imports, OneBP / RecBole BPR"
    checked = "both runs train, validate, test and find more than chance"
    note = "two epochs, validation, test; a process each"
    return [Row(title, ratios(a, b), parts, checked, target=0.6, note=note)]


def _run_once(model: str, dataset: str, config: dict[str, Any]) -> dict[str, Any]:
    """Peak memory and test metrics of a whole run, and the modules that it has loaded."""
    logging.disable(logging.INFO)
    result = recbole_onebp.build(model, dataset, config_dict=config).fit()
    return {"peak_mb": measure.memory_mb("VmHWM"), "test": result.test, "modules": list(sys.modules)}


def _import_only(names: list[str]) -> dict[str, Any]:
    for name in names:
        with suppress(Exception):  # some names in sys.modules cannot be imported
            importlib.import_module(name)
    return {"peak_mb": measure.memory_mb("VmHWM")}


FLOAT = ID = 4  # bytes
TABLES_OF_ADAM = 3  # embeddings and two moments


class Touched(NamedTuple):
    """Distinct users, and distinct items (positives and negatives), of each step of an epoch, summed over the steps."""

    steps: int
    pairs: int
    users: int
    items: int


def touched_rows(user: Ids, item: Ids, n_items: int, positives: int, negatives: int, shared: bool) -> Touched:
    """Count them for one shuffled epoch; ``negatives`` are uniform ones a pair or, if ``shared``, a step."""
    rng, users, items = np.random.default_rng(0), 0, 0
    batches = np.split(rng.permutation(len(user)), range(positives, len(user), positives))
    for batch in batches:
        sampled = rng.integers(1, n_items, size=negatives if shared else negatives * len(batch))
        users += len(np.unique(user[batch]))
        items += len(np.unique(np.concatenate([item[batch], sampled])))
    return Touched(len(batches), len(user), users, items)


def bytes_of_epoch(touched: Touched, n_items: int, size: int, dense: bool) -> int:
    """Bytes that must be read or written: ids of a pair, a user's embedding, an item's with both of Adam's moments.

    Dense Adam updates every item at every step, a lazy one only those of the step.
    """
    rows = touched.steps * n_items if dense else touched.items
    return rows * TABLES_OF_ADAM * 2 * size * FLOAT + touched.users * 2 * size * FLOAT + touched.pairs * 2 * ID


def _seconds(once: Callable[[], object], passes: int, repeats: int, device: str = "cpu") -> float:
    """Median seconds of a pass."""

    def many() -> None:
        for _ in range(passes):
            once()
        _wait(device)

    many()
    return statistics.median(timed(many)() / passes for _ in range(repeats))


def bandwidth(n_bytes: int, repeats: int, device: str = "cpu") -> float:
    """Bytes a second, read and written in place, over an array of ``n_bytes``.

    With the size of all tables, as much of it stays in a cache as of the tables in training.
    """
    array = torch.ones(n_bytes // FLOAT, device=device)
    return 2 * n_bytes / _seconds(lambda: array.mul_(1.0001), max(1, 2**30 // n_bytes), repeats, device)


def products_of_step(positives: int, shared: int, size: int, repeats: int) -> float:
    """Seconds of the two matrix products of a step with shared negatives: scores, and the gradient of the negatives."""
    users, items = torch.randn(positives, size), torch.randn(shared, size)
    weights, gradient = torch.empty(positives, shared), torch.empty(shared, size)

    def multiply() -> None:
        torch.mm(users, items.T, out=weights)
        torch.mm(weights.T, users, out=gradient)

    return _seconds(multiply, 50, repeats)


def floor_rows(
    bench: Bench, title: str, training: Training, size: int, positives: int, negatives: int, shared: bool = False
) -> list[Row]:
    """Epochs divided by their floor, for a lazy and for dense Adam; ``shared`` counts the matrix products too."""
    n_items = training.n_items
    rate = bandwidth((training.n_users + TABLES_OF_ADAM * n_items) * size * FLOAT, bench.repeats, bench.device)
    touched = touched_rows(*training.pairs(), n_items, positives, negatives, shared)
    products = products_of_step(positives, negatives, size, bench.repeats) * touched.steps if shared else 0
    seconds = [timed(training.epoch)() for _ in range(bench.repeats)]
    rows = []
    for dense, what in ((False, "moving the rows that a step touches"), (True, "moving all rows, as dense Adam")):
        moved = bytes_of_epoch(touched, n_items, size, dense)
        least = max(moved / rate, products)
        parts = {"epoch, s": seconds, "bytes, GB": [moved / 1e9], "bandwidth, GB/s": [rate / 1e9]}
        parts |= {"matrix products, s": [products]} if products else {}
        note = f"floor {least:.3g} s, of " + ("the products" if products == least else "the bytes")
        values = [value / least for value in seconds]
        target = 2.0 if shared and not dense else None
        title_of_row = f"OneBP train epoch / its floor, {title}, {what}"
        rows.append(Row(title_of_row, values, parts, "losses finite", target, note=note))
    return rows


def floor(bench: Bench) -> list[Row]:
    return [
        *floor_rows(bench, "gowalla, N = 5, per_pair", bench.onebp(), SIZE, POSITIVES, NEGATIVES),
        *floor_rows(
            bench, "gowalla, 1,024 shared, cosine", bench.onebp(shared=True), SIZE, POSITIVES, SHARED, shared=True
        ),
    ]


def features(bench: Bench) -> list[Row]:
    """Items with features against the same items by their ids alone, each as by default."""
    rows = []
    for dataset, fields in FEATURES.items():
        runs = [bench.build("OneBP", dataset, local="none", item_features=chosen) for chosen in (fields, "none")]
        both = [Training(run, run.config["train_batch_size"]) for run in runs]
        for trained in both:
            trained.epoch()
            trained.epoch()
            claim(trained.losses[1] < trained.losses[0], f"{dataset}: the loss does not fall: {trained.losses}")
        a, b = measure.alternate(bench.repeats, *(timed(trained.epoch) for trained in both))
        title = f"OneBP with {', '.join(fields)} / by ids alone, train epoch, {dataset}"
        parts = {"with features, s": a, "ids alone, s": b}
        rows.append(Row(title, ratios(a, b), parts, "losses finite, and falling", target=2.0))
    return rows


def local_term(bench: Bench) -> list[Row]:
    """The local term solved on the GPU, against the CPU."""
    data = cast(OneBP, bench.build("OneBP", GOWALLA).model)._counted()
    targets, device = np.arange(len(data.start_of_item) - 1, dtype=np.int32), torch.device(bench.device)
    given = data, targets, OneBPConfig().local_neighbors, OneBPConfig().local_reg
    solvers = partial(ridge_on_neighbors_batched, *given, device), partial(ridge_on_neighbors, *given)
    found, expected = (solve() for solve in solvers)
    claim(np.array_equal(found.item, expected.item), "the neighbours are not the same")
    apart = float(np.abs(found.weight - expected.weight).max())
    claim(apart < 1e-5, f"the weights differ by {apart}")
    a, b = measure.alternate(bench.repeats, *(timed(solve) for solve in solvers))
    parts = {"on the GPU, s": a, "on the CPU, s": b}
    return [Row("local term solved on the GPU / on the CPU, gowalla", ratios(a, b), parts, "the same neighbours")]


def on_gpu(dataset: str, what: str, bench: Bench) -> list[Row]:
    """The paper's sizes."""
    ours, size = bench.published(dataset), int(PUBLISHED[dataset]["dim"])
    title = f"{dataset}, d = {size:,}"
    if what == "reference":
        return [authors_row(bench, ours, dataset, title, 0.05)]
    return floor_rows(bench, title, ours, size, PUBLISHED_POSITIVES, NEGATIVES)


ON_CPU = {
    row.__name__: row
    for row in (bpr, lightgcn, simplex, reference, evaluation, sampler, memory, growth, floor, features)
}
ON_GPU = {
    f"{dataset}-{what}": partial(on_gpu, dataset, what)
    for dataset in (GOWALLA, "yelp2018")
    for what in ("reference", "floor")
} | {"features": features, "local": local_term}
NEEDS = {name: [GOWALLA] for name in ON_CPU} | {"reference": [ML_100K], "growth": []}
NEEDS |= {name: [name.partition("-")[0]] for name in ON_GPU} | {"features": ["citeulike"], "local": [GOWALLA]}
"""The data sets of each row."""


def main() -> int:
    names = [*{**ON_CPU, **ON_GPU}]
    options: dict[str, Any] = {"seed": 2024, "threads": 2, "data_path": measure.DATA, "device": ("cpu", "cuda")}
    args = measure.arguments(__doc__, json=Path, only=names, repeats=5, reference=Path, **options)
    possible: dict[str, Any] = ON_CPU if args.device == "cpu" else ON_GPU
    args.only = list(possible) if args.only == names else args.only
    if other := set(args.only) - set(possible):
        raise UserError(f"--only {' '.join(sorted(other))}: not with --device {args.device}")
    measure.check_data(args.data_path, sorted({dataset for name in args.only for dataset in NEEDS[name]}))
    settings = {"seed": args.seed, "repeats": args.repeats}
    if args.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: there is no CUDA device")
        about, gpu = {**measure.here(), "settings": settings}, torch.cuda.get_device_name()
        about["machine"] = {"gpu": gpu, "cuda": torch.version.cuda, **about["machine"]}
        name = f"{measure.slug(gpu)}-gpu"
    else:
        measure.use_threads(args.threads)
        about = {**measure.here("numba"), "settings": {"threads": args.threads, **settings}}
        name = f"{about['machine']['slug']}-speed"
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        rows = {row: partial(function, bench) for row, function in possible.items()}
        return measure.measure_to_file(rows, args, name, about)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main, {"run": _run_once, "imports": _import_only}))
