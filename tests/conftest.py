from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import recbole_onebp


def pytest_report_header() -> str:
    return f"recbole_onebp: {Path(recbole_onebp.__file__).parent}"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test leaves behind, it leaves in its own folder; the root logger stays as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's own Config reads sys.argv: give it flags such as pytest's, which mean nothing to it."""
    monkeypatch.setattr("sys.argv", ["pytest", "-q", "--color=no", "tests"])


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


PLAIN: dict[str, Any] = {
    "score": "dot",
    "item_bias": False,
    "negatives": "per_pair",
    "aggregation": "step",
    "aggregation_alpha": 0.0,
    "leave_one_out": False,
    "learning_rate_decay": 1.0,
}
"""The paper's form of OneBP; what hangs on these keys follows."""


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
def tiny(tiny_config: dict[str, Any]) -> Callable[..., recbole_onebp.Run]:
    """Builds a run on the tiny data set: ``tiny(beta=0.5)``, ``tiny("BPR")``."""

    def build(model: str = "OneBP", **overrides: Any) -> recbole_onebp.Run:
        return recbole_onebp.build(model, "tiny", config_dict={**tiny_config, **overrides})

    return build
