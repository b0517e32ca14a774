"""The GPU against the CPU; skipped without a GPU."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import recbole_onebp
from recbole_onebp.cli import main
from recbole_onebp.engine.cuda import DeviceEngine
from recbole_onebp.engine.cuda_tower import DeviceTowerEngine
from recbole_onebp.serving.recommender import Recommender
from support.draws import SameDraws
from support.films import write_films

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EPOCHS = 3
INTERVAL = {"aggregation": "interval", "aggregation_interval": 3, "beta": 0.0, "leave_one_out": True}


@pytest.fixture
def both(tiny):
    """The same run on the CPU with the reference engine, and on the GPU with the fast engine."""

    def build(**overrides):
        settings = {"learning_rate": 0.01, "beta": 0.9, "temperature": 0.5, "n_shared_negatives": 16, **overrides}
        return tiny(**settings, engine="reference", use_gpu=False), tiny(**settings, engine="fast", use_gpu=True)

    return build


@pytest.mark.parametrize("learner", ["adam", "sparse_adam"])
@pytest.mark.parametrize("options", [{}, {"duplicates": "last"}, {"backprop": "two"}, INTERVAL])
@pytest.mark.parametrize(("score", "negatives"), list(product(["dot", "cosine"], ["per_pair", "shared"])))
def test_tables_agree_with_the_reference_engine_on_the_cpu(both, learner, options, score, negatives):
    size = 32 if negatives == "shared" else 160  # 10 steps per epoch; all but two are replayed
    on_cpu, on_gpu = both(
        learner=learner, score=score, negatives=negatives, train_batch_size=size, item_bias=True, **options
    )
    for epoch in range(EPOCHS):
        expected = on_cpu.trainer._train_epoch(SameDraws(on_gpu, epoch), epoch)
        assert on_gpu.trainer._train_epoch(on_gpu.train_data, epoch) == pytest.approx(expected, abs=1e-4)
    assert isinstance(on_gpu.trainer._engine, DeviceEngine)
    for name, table in on_gpu.model.state_dict().items():
        assert table.device.type == "cuda"
        torch.testing.assert_close(table.cpu(), on_cpu.model.state_dict()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"learner": "sparse_adam", "id_dropout": 0.5}])
def test_items_with_features_agree_with_the_reference_engine_on_the_cpu(tmp_path, options):
    settings = {"item_features": "all", "embedding_size": 8, "n_shared_negatives": 16, "train_batch_size": 32}
    settings |= {**write_films(tmp_path), "local": "none", "learning_rate": 0.02, **options}
    on_cpu, on_gpu = (
        recbole_onebp.build("OneBP", "films", config_dict={**settings, "engine": engine, "use_gpu": engine == "fast"})
        for engine in ("reference", "fast")
    )
    for epoch in range(EPOCHS):
        expected = on_cpu.trainer._train_epoch(SameDraws(on_gpu, epoch), epoch)
        assert on_gpu.trainer._train_epoch(on_gpu.train_data, epoch) == pytest.approx(expected, abs=1e-4)
    assert isinstance(on_gpu.trainer._engine, DeviceTowerEngine)
    for name, table in on_gpu.model.state_dict().items():
        torch.testing.assert_close(table.cpu(), on_cpu.model.state_dict()[name], rtol=0, atol=1e-4)


def test_replayed_steps_use_the_learning_rate_of_the_epoch(both):
    on_cpu, on_gpu = both(negatives="shared", train_batch_size=32, learning_rate_decay=0.5)
    for epoch in range(EPOCHS):
        on_cpu.trainer._train_epoch(SameDraws(on_gpu, epoch), epoch)
        on_gpu.trainer._train_epoch(on_gpu.train_data, epoch)
    torch.testing.assert_close(on_gpu.model.item_table.cpu(), on_cpu.model.item_table, rtol=0, atol=1e-5)
    assert not any(group["capturable"] for group in on_gpu.trainer.optimizer.param_groups)


@pytest.mark.parametrize("model", ["OneBP", "BPR", "LightGCN", "EASE", "ItemKNN"])
def test_the_fast_evaluators_metrics_are_recboles(tiny, model):
    metrics = {"metrics": ["Recall", "NDCG", "MRR", "Hit", "ItemCoverage"], "metric_decimal_place": 12}
    fast, stock = (tiny(model, use_gpu=True, fast_evaluator=choice, **metrics) for choice in (True, False))
    fast.trainer.fit(fast.train_data, fast.valid_data, verbose=False, saved=False)
    stock.trainer.eval_collector.data_collect(stock.train_data)
    stock.model.load_state_dict(fast.model.state_dict())
    stock.model.load_other_parameter(fast.model.other_parameter())
    found, expected = (run.trainer.evaluate(run.test_data, load_best_model=False) for run in (fast, stock))
    assert found == expected
    assert found["recall@10"] > 0


def test_a_run_from_start_to_export(tmp_path):
    """A run resumed on the GPU equals one on the CPU, up to the order in which atomic operations add."""

    def run(name, epochs=3, **options):
        folder = {"output_dir": str(tmp_path / name), "data_cache": False, "show_progress": False}
        return recbole_onebp.build("OneBP", "ml-100k", config_dict={**folder, "epochs": epochs, **options})

    on_cpu = run("cpu", use_gpu=False).fit()
    run("gpu", epochs=2).fit()
    resumed = run("gpu", resume="auto")
    assert resumed.trainer.start_epoch == 2
    on_gpu = resumed.fit()
    assert (on_cpu.device[:3], on_gpu.device) == ("cpu", torch.cuda.get_device_name())
    assert on_gpu.test == pytest.approx(on_cpu.test, abs=2e-3)
    assert on_gpu.test["recall@10"] > 0.1
    assert main(["export", str(tmp_path / "gpu"), str(tmp_path / "bundle")]) == 0
    assert len(Recommender.load(tmp_path / "bundle").recommend(["196"], k=5)[0]) == 5
