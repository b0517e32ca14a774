from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

# One thread per process, because tests run side by side. The variables are read when numpy and torch are first
# imported, and child processes inherit them. numba follows torch's number. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# numba's first parallel loop starts a thread per core, and from then on torch counts them all. By default OpenMP's
# threads wait for each other in busy loops: with two processes on two cores, a loop of microseconds then takes 5 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

import recbole_onebp
from recbole_onebp.run.folder import RunFolder

TESTS = Path(__file__).parent

UNIT = {
    "evaluation/test_topk.py",
    "serving/test_events.py",
    "test_functional.py",
    "test_layout.py",
    "util/test_simd.py",
}
"""Files whose tests are all marked ``unit``."""

PROCESS = {"distributed/test_distributed.py", "serving/test_page.py", "test_packaging.py"}
"""Files whose tests are all marked ``process``.  Single tests elsewhere carry the mark themselves."""

FIRST = [
    "engine/test_engine.py",
    "serving/test_server.py",
    "serving/test_service.py",
    "serving/test_workers.py",
    "serving/test_page.py",
    "serving/test_protocol.py",
    "distributed/test_distributed.py",
    "experiments/test_tune.py",
    "test_cases.py",
    "test_packaging.py",
]
"""Files that workers take first.

The first one compiles most of numba's loops, which takes half a minute; those beside it train nothing, so the others
find the loops in the cache.  All of them are long: none should be the last.
"""


_DRAW_CURVES = RunFolder.draw_curves


def pytest_report_header() -> str:
    return f"recbole_onebp: {Path(recbole_onebp.__file__).parent}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m unit`` other test files are not even imported: most of them need RecBole."""
    only_unit = config.getoption("markexpr").split(" and ")[0] == "unit"
    is_test = collection_path.name.startswith("test_")
    return True if only_unit and is_test and _name_of(collection_path) not in UNIT else None


def pytest_itemcollected(item: pytest.Item) -> None:
    if _name_of(item.path) in UNIT:
        item.add_marker("unit")
    if _name_of(item.path) in PROCESS:
        item.add_marker("process")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(_name_of(item.path), len(FIRST)))


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collections: torch and RecBole make one take a third of a second."""
    gc.collect()
    gc.freeze()


def _name_of(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


@contextmanager
def root_logger_restored() -> Iterator[None]:
    """After the block the root logger is as before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _unit_tests_import_no_recbole(request: pytest.FixtureRequest) -> Iterator[None]:
    """In a process that has not imported RecBole, a test marked ``unit`` does not import it either."""
    before = "recbole" in sys.modules
    yield
    if request.node.get_closest_marker("unit"):
        assert before or "recbole" not in sys.modules


@pytest.fixture(autouse=True)
def _torch_in_one_thread() -> None:
    """numba's first parallel loop gives torch a thread per core, as said above; later tests would be slow."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in its own folder; afterwards the root logger is as before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with root_logger_restored():
        yield


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_the_root_logger() -> Iterator[None]:
    """Also what fixtures of a module have run sets it."""
    with root_logger_restored():
        yield


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's own Config reads sys.argv. The flags stand for any that RecBole does not know, such as pytest's."""
    monkeypatch.setattr("sys.argv", ["pytest", "-q", "--color=no", "tests"])


@pytest.fixture(scope="session", autouse=True)
def _recbole_in_a_hurry() -> Iterator[None]:
    """RecBole parses its own YAML files and ours anew for each configuration, which takes longer than a small run.

    ``run_recbole`` watches the processors for a second, to log how busy they are.
    """
    if "recbole.config.configurator" not in sys.modules:
        yield
        return
    from recbole.config import Config

    read, contents = Config._update_internal_config_dict, dict[str, Any]()

    def read_once(config: Config, file: str | Path) -> Any:
        name = str(file)
        if name not in contents:
            contents[name] = deepcopy(read(config, file))
        content = deepcopy(contents[name])
        config.internal_config_dict.update(content or {})
        return content

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Config, "_update_internal_config_dict", read_once)
        patched.setattr("psutil.cpu_percent", lambda interval: 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Runs draw no picture of their curves, which takes longer than a small run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "draw_curves", lambda *_: None)
        yield


@pytest.fixture
def draws_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at this picture."""
    monkeypatch.setattr(RunFolder, "draw_curves", _DRAW_CURVES)


def write_inter(folder: Path, rows: list[tuple[Any, ...]], header: str = "user_id:token\titem_id:token") -> Path:
    """An atomic interaction file in ``folder``, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}.inter"
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_path with the data set ``tiny``: 30 users in two camps, 40 items, each user 12 of its camp's 20 items."""
    data_path = tmp_path_factory.mktemp("data")
    rng = random.Random(1)
    rows = [
        (f"u{user}", f"i{item}")
        for user in range(30)
        for item in rng.sample(range(0, 20) if user % 2 else range(20, 40), 12)
    ]
    write_inter(data_path / "tiny", rows)
    return str(data_path)


@pytest.fixture(scope="session")
def timed_path(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_path with ``tiny``, and a time and a number of plays for each interaction.  The rows are not in order of
    time.
    """
    data_path = tmp_path_factory.mktemp("timed")
    rows = [line.split("\t") for line in (Path(tiny_path) / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    times = random.Random(2).sample(range(1000), len(rows))
    plays = [random.Random(3 + place).choice((1, 2, 5, 300)) for place in range(len(rows))]
    header = "user_id:token\titem_id:token\ttimestamp:float\tplays:float"
    write_inter(data_path / "tiny", [(*row, *more) for row, *more in zip(rows, times, plays, strict=True)], header)
    return str(data_path)


PLAIN: dict[str, Any] = {
    "score": "dot",
    "item_bias": False,
    "negatives": "per_pair",
    "aggregation": "step",
    "aggregation_alpha": 0.0,
    "leave_one_out": False,
    "learning_rate_decay": 1.0,
    "ema_decay": 0.0,
}
"""The method as published; the defaults that depend on these keys follow them."""


@pytest.fixture
def tiny_config(tiny_path: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "data_path": tiny_path,
        "load_col": {"inter": ["user_id", "item_id"]},
        "output_dir": str(tmp_path / "run"),
        "embedding_size": 8,
        "train_batch_size": 160,
        "epochs": 3,
        "metrics": ["Recall", "NDCG"],
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "show_progress": False,
        **PLAIN,
    }


@pytest.fixture
def timed(tiny_config: dict[str, Any], timed_path: str) -> Callable[..., recbole_onebp.Run]:
    """Builds a run on the tiny data in order of time, with the defaults that follow from that."""
    order = {"order": "TO", "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "mode": "full"}
    in_time = {"data_path": timed_path, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "eval_args": order}
    own = {key: value for key, value in tiny_config.items() if key not in PLAIN}

    def build(model: str = "OneBP", **overrides: Any) -> recbole_onebp.Run:
        return recbole_onebp.build(model, "tiny", config_dict={**own, **in_time, **overrides})

    return build


@pytest.fixture
def weighted(timed: Callable[..., recbole_onebp.Run]) -> Callable[..., recbole_onebp.Run]:
    """Builds a run on the tiny data, split at random, whose interactions have weights."""
    columns = {"load_col": {"inter": ["user_id", "item_id", "plays"]}, "WEIGHT_FIELD": "plays"}
    split = {"order": "RO", "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "mode": "full"}
    return lambda **overrides: timed(**{**columns, "eval_args": split, **overrides})


@pytest.fixture
def tiny(tiny_config: dict[str, Any]) -> Callable[..., recbole_onebp.Run]:
    """Builds a run on the tiny data set: ``tiny(beta=0.5)``, ``tiny("BPR")``."""

    def build(model: str = "OneBP", **overrides: Any) -> recbole_onebp.Run:
        return recbole_onebp.build(model, "tiny", config_dict={**tiny_config, **overrides})

    return build
