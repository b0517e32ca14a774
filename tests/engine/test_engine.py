"""The fast engines against the reference engine: RecBole's loop, autograd and torch's optimizers, same negatives."""

from __future__ import annotations

from itertools import product

import numba
import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_onebp.engine import make_engine
from recbole_onebp.engine.cpu import FusedEngine
from recbole_onebp.engine.cuda import DeviceEngine
from recbole_onebp.util.errors import UserError
from support import fresh
from support.draws import SameDraws

ENGINES = [FusedEngine, DeviceEngine]
EPOCHS = 3


@pytest.fixture(autouse=True)
def rows_miss_steps(monkeypatch):
    """As those of large tables do."""
    monkeypatch.setattr("recbole_onebp.engine.adam.ROWS_A_PLACE", 0)


def assert_same(reference, fast, tolerance=1e-5):
    theirs, ours = reference.model.state_dict(), fast.model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, table in theirs.items():
        torch.testing.assert_close(ours[name], table, rtol=0, atol=tolerance)
        assert not table.dim() or not ours[name][0].any(), "the padding row"
    theirs, ours = (run.trainer.optimizer.state_dict()["state"] for run in (reference, fast))
    assert theirs.keys() == ours.keys()
    for number, state in theirs.items():
        assert float(ours[number]["step"]) == float(state["step"])
        assert ours[number].keys() == state.keys()
        if "ema" in state:
            torch.testing.assert_close(ours[number]["ema"], state["ema"], rtol=0, atol=tolerance)
        for moment in ("exp_avg", "exp_avg_sq"):
            dense = state[moment].to_dense() if state[moment].is_sparse else state[moment]
            torch.testing.assert_close(ours[number][moment], dense, rtol=1e-3, atol=1e-6)


def compare(tiny, engine, **overrides):
    settings = {"learning_rate": 0.01, "beta": 0.9, "temperature": 0.5, "n_shared_negatives": 16, **overrides}
    reference, fast = tiny(**settings, engine="reference"), tiny(**settings, engine="fast")
    fast.trainer._engine = engine(fast.model, fast.trainer.optimizer, fast.trainer._schedule_of(fast.train_data))
    for epoch in range(EPOCHS):
        expected = reference.trainer._train_epoch(SameDraws(fast, epoch), epoch)
        assert fast.trainer._train_epoch(fast.train_data, epoch) == pytest.approx(expected, abs=1e-4)
    assert_same(reference, fast)
    return fast


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "optimizer", [{"learner": "adam"}, {"learner": "adam", "weight_decay": 0.01}, {"learner": "sparse_adam"}]
)
@pytest.mark.parametrize(("score", "negatives"), list(product(["dot", "cosine"], ["per_pair", "shared"])))
def test_tables_and_moments_agree(tiny, engine, optimizer, score, negatives):
    compare(tiny, engine, score=score, negatives=negatives, item_bias=True, **optimizer)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options", [{"duplicates": "last"}, {"duplicates": "mean"}, {"aggregation": "epoch"}, {"backprop": "two"},
                {"backprop": "two", "learner": "sparse_adam"}]
)  # fmt: skip
@pytest.mark.parametrize(("score", "negatives"), [("dot", "per_pair"), ("cosine", "shared")])
def test_all_rules_for_moving_users_agree(tiny, engine, options, score, negatives):
    compare(tiny, engine, score=score, negatives=negatives, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options",
    [
        {"aggregation_alpha": 0.5},
        {"aggregation_alpha": 0.5, "duplicates": "mean"},
        {"aggregation_alpha": 0.5, "aggregation": "epoch"},
        {"aggregation": "interval", "aggregation_interval": 3},
        {"aggregation": "interval", "aggregation_interval": 5, "beta": 0.0, "aggregation_alpha": 0.5},
        {"aggregation": "interval", "aggregation_interval": 3, "beta": 0.0, "leave_one_out": True},
        {"aggregation": "epoch", "beta": 0.0, "aggregation_alpha": 0.5, "leave_one_out": True},
        {"aggregation": "interval", "aggregation_interval": 1, "beta": 0.5, "learner": "sparse_adam"},
        {"learning_rate_decay": 0.5},
    ],
)
@pytest.mark.parametrize(("score", "negatives"), list(product(["dot", "cosine"], ["per_pair", "shared"])))
def test_aggregation_weights_leaving_out_and_decay_agree(tiny, engine, options, score, negatives):
    size = 32 if negatives == "shared" else 160  # 10 steps an epoch
    compare(tiny, engine, score=score, negatives=negatives, train_batch_size=size, item_bias=True, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training_history": "all"},
        {"recency": "none", "training_recency": 0.0},
        {"half_weight_at": 0.0},
        {"negative_weight": 1.25},
    ],
)
@pytest.mark.parametrize(("score", "negatives"), list(product(["dot", "cosine"], ["per_pair", "shared"])))
def test_data_in_order_agree(timed, engine, options, score, negatives):
    size = 32 if negatives == "shared" else 160
    compare(timed, engine, score=score, negatives=negatives, train_batch_size=size, beta=0.0, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "interval", "aggregation_interval": 7, "beta": 0.0, "leave_one_out": True},
        {"aggregation": "interval", "aggregation_interval": 5},
        {},
        {"backprop": "two", "learner": "sparse_adam"},
    ],
)
def test_averages_agree(tiny, monkeypatch, engine, options):
    monkeypatch.setattr("recbole_onebp.engine.adam.MOST_MISSED", 4)
    run = compare(tiny, engine, negatives="shared", train_batch_size=32, item_bias=True, ema_decay=0.9, **options)
    assert len(run.trainer._schedule) == 10, "so three averages an epoch"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"leave_one_out": False}, {"score": "dot", "weight_transform": "log1p"}])
@pytest.mark.parametrize("negatives", ["per_pair", "shared"])
def test_weights_of_interactions_agree(weighted, engine, options, negatives):
    size = 32 if negatives == "shared" else 160
    compare(weighted, engine, negatives=negatives, train_batch_size=size, beta=0.0, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"training_history": "all"}, {"half_weight_at": 0.0}])
def test_weights_of_interactions_in_order_agree(timed, engine, options):
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp", "plays"]}, "WEIGHT_FIELD": "plays"}
    compare(timed, engine, train_batch_size=32, beta=0.0, **columns, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_negatives", [1, 16])
@pytest.mark.parametrize("negatives", ["per_pair", "shared"])
def test_heavier_negatives_agree(tiny, engine, negatives, n_negatives):
    """With one shared negative, all negatives of some pairs are masked."""
    args = {"distribution": "uniform", "sample_num": n_negatives}
    sizes = {"n_shared_negatives": n_negatives, "train_neg_sample_args": args, "train_batch_size": 32 * n_negatives}
    compare(tiny, engine, negatives=negatives, negative_weight=1.25, item_bias=True, **sizes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("negatives", ["per_pair", "shared"])
def test_popularity_and_log_q_agree(tiny, engine, negatives):
    args = {"distribution": "popularity", "sample_num": 3, "alpha": 0.5}
    compare(tiny, engine, negatives=negatives, logq_correction=negatives == "shared", train_neg_sample_args=args)


def test_log_q_makes_a_difference_only_where_shares_differ(tiny):
    def loss(**options):
        run = tiny(negatives="shared", learning_rate=0.01, **options)
        return run.trainer._train_epoch(run.train_data, 0)

    popular = {"train_neg_sample_args": {"distribution": "popularity", "alpha": 1.0}}
    assert loss(logq_correction=True) == pytest.approx(loss(), abs=1e-4)
    assert abs(loss(logq_correction=True, **popular) - loss(**popular)) > 0.01


@pytest.mark.parametrize("options", [{}, {"aggregation": "interval", "beta": 0.0, "leave_one_out": True}])
@pytest.mark.parametrize("negatives", ["per_pair", "shared"])
def test_the_number_of_threads_does_not_matter(tiny, negatives, options):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only")
    tables, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run = tiny(negatives=negatives, item_bias=True, **options)
            run.trainer._train_epoch(run.train_data, 0)
            tables.append({name: table.clone() for name, table in run.model.state_dict().items()})
    finally:
        torch.set_num_threads(before)
    if negatives == "per_pair":
        assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])
    else:  # torch's matrix products may sum in another order
        for name in tables[0]:
            torch.testing.assert_close(tables[0][name], tables[1][name], rtol=0, atol=1e-6)


def test_an_epoch_leaves_torchs_number_of_threads():
    """In a process of its own, because numba starts its threads once."""
    done = fresh.python(
        "import os, numba; os.environ['NUMBA_NUM_THREADS'] = '2'; numba.config.reload_config()\n"
        "import torch; torch.set_num_threads(1); import recbole_onebp\n"
        "run = recbole_onebp.build('OneBP', 'ml-100k', config_dict={'train_batch_size': 40_000, 'output_dir': 'out'})\n"
        "run.trainer._train_epoch(run.train_data, 0); print('threads:', torch.get_num_threads())"
    )
    assert "threads: 1" in done.stdout, done.stderr


ONE_STEP = """
import hashlib
import numpy as np
from recbole_onebp.engine import kernels

rng = np.random.default_rng(0)
pairs, negatives, size = 64, 100, 24
user, item, negative = (rng.integers(1, 30, n).astype(np.int32) for n in (pairs, pairs, negatives))
users, items, scores = (rng.normal(size=(pairs, n)).astype(np.float32) for n in (size, size, negatives))
none, loss, coefficient = np.empty(0, np.float32), np.empty(pairs, np.float32), np.empty(pairs, np.float32)
links, rows = kernels.Links(np.full(30, -1, np.int32), np.empty(negatives, np.int32)), np.empty(30, np.int32)
kernels.link(negative, links, rows)
history = kernels.History(2 * np.arange(31), rng.integers(1, 30, 60), none, none, none)
logits = kernels.Logits(none, np.float32(2), pairs, np.float32(0))
kernels.shared_scores(user, item, negative, history, links, scores, users, items, logits, none, loss, coefficient)
links.head[:] = -1
rows = rows[: kernels.link(user, links, rows)]
kernels.move_users(rows, links, item, items, none, True, users, 0.9, kernels.MEAN)
print(hashlib.sha256(b"".join(array.tobytes() for array in (scores, coefficient, users))).hexdigest())
"""


def test_compiled_and_cached_loops_give_the_same_bits_on_any_processor(tmp_path):
    """numba optimises each copy of a loop separately: the copy that was compiled is not the copy in the cache."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    bits, n_cached = [], []
    for variables in ({}, {}, plain):  # compiles, loads the cache, compiles again
        environment = {"NUMBA_CACHE_DIR": str(tmp_path), **variables}
        # numba was imported before, and has compiled nothing.
        first = f"import os, numba; os.environ.update({environment}); numba.config.reload_config()\n"
        done = fresh.python(first + ONE_STEP)
        assert done.returncode == 0, done.stderr
        bits.append(done.stdout)
        n_cached.append(len(list(tmp_path.rglob("*.nbc"))))
    assert len(bits[0]) == 65
    assert bits == bits[:1] * 3
    assert n_cached == [3, 3, 6]  # a copy of each of the three functions, for each processor


def test_order_and_negatives_depend_on_epoch_and_seed_only(tiny):
    schedule, again, other = (run.trainer._schedule_of(run.train_data) for run in (tiny(), tiny(), tiny(seed=7)))
    for one, two in zip(schedule.batches(4), again.batches(4), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(schedule.order(4), schedule.order(5))
    assert not np.array_equal(schedule.order(4), other.order(4))
    assert sorted(schedule.order(4)) == list(range(300))
    assert np.array_equal(tiny(shuffle=False).trainer._schedule_of(tiny().train_data).order(4), np.arange(300))


def test_the_batch_size_sets_the_number_of_pairs_per_step(tiny):
    sizes = [len(batch.user) for batch in tiny(train_batch_size=160).trainer._schedule_of(tiny().train_data).batches(0)]
    assert sizes == [32] * 9 + [12]
    sizes = [
        len(b.user)
        for b in tiny(train_batch_size=160, negatives="shared").trainer._schedule_of(tiny().train_data).batches(0)
    ]
    assert sizes == [160, 140]


def test_auto_chooses_the_fast_engine_where_possible(tiny):
    assert tiny().trainer.engine == "fast"
    assert tiny(engine="reference").trainer.engine == "reference"
    for options in (
        {"learner": "sgd"},
        {"enable_amp": True},
        {"clip_grad_norm": {"max_norm": 1.0}},
        {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 2, "dynamic": True, "candidate_num": 2}},
    ):
        assert tiny(**options).trainer.engine == "reference"
        with pytest.raises(UserError, match="engine: fast cannot be combined with"):
            tiny(engine="fast", **options)


def test_the_device_chooses_the_engine(tiny):
    run = tiny()
    schedule = run.trainer._schedule_of(run.train_data)
    assert isinstance(make_engine(run.model, run.trainer.optimizer, schedule), FusedEngine)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregation": "interval", "aggregation_interval": 3, "beta": 0.5},
        {"aggregation": "interval", "aggregation_interval": 3, "beta": 0.0, "leave_one_out": True},
        {"learning_rate_decay": 0.5},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, options):
    """Three epochs without interruption equal two epochs, a checkpoint, and one more epoch."""
    straight = tiny(output_dir=str(tmp_path / "a"), **options)
    for epoch in range(3):
        straight.trainer._train_epoch(straight.train_data, epoch)
    first = tiny(output_dir=str(tmp_path / "b"), recbole_checkpoint=True, **options)
    for epoch in range(2):
        first.trainer._train_epoch(first.train_data, epoch)
    first.trainer._save_checkpoint(1)
    second = tiny(output_dir=str(tmp_path / "c"), **options)
    second.trainer.resume_checkpoint(first.trainer.saved_model_file)
    second.trainer._train_epoch(second.train_data, 2)
    for name, table in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], table)


def test_a_nan_loss_is_an_error(tiny):
    run = tiny()
    run.model.item_table.data[5] = torch.nan
    with pytest.raises(ValueError, match="loss is nan"):
        run.trainer._train_epoch(run.train_data, 0)


def test_the_reference_engine_continues_after_the_fast_one(tiny):
    """Both use torch's optimizer state."""
    run = tiny()
    run.trainer._train_epoch(run.train_data, 0)
    run.trainer.engine = "reference"
    run.trainer._train_epoch(run.train_data, 1)
    (state,) = run.trainer.optimizer.state.values()
    assert float(state["step"]) == 20


def test_the_bias_is_part_of_every_score(tiny):
    run = tiny(item_bias=True, temperature=0.5, epochs=1)
    model = run.model
    model.item_bias.data[7] = 4.0
    users = Interaction({"user_id": torch.tensor([1, 2])})
    full = model.full_sort_predict(users).view(2, -1)
    plain = model.user_table[1:3] @ model.item_table.T
    torch.testing.assert_close(full - plain, torch.zeros(2, 41).index_fill(1, torch.tensor([7]), 2.0))
    pairs = Interaction({"user_id": torch.tensor([1, 1]), "item_id": torch.tensor([7, 8])})
    torch.testing.assert_close(model.predict(pairs), full[0, [7, 8]])
