"""What a process of the comparison does: look at the data, or train and test one model."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments

from recbole_onebp.experiments.compare.split import Split, write_npz
from recbole_onebp.run.build import build_from, load_config, load_data, read_config
from recbole_onebp.run.run import Run
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_json

__all__ = ["look_at_data", "train_and_test", "warm_up"]


def look_at_data(folder: Path, given: Mapping[str, Any]) -> None:
    """Write ``split.npz`` and ``outcome.json``, with what :meth:`Split.check` says, into ``folder``."""
    with _outcome_of(folder) as outcome:
        config = read_config(None, given)
        dataset, train, valid, test = load_data(config)
        split = Split.of(dataset, _parts(train, None if config["refit"] else valid, test))
        outcome["protocol"] = split.check()
        split.save(folder / "split.npz")


def train_and_test(folder: Path, given: Mapping[str, Any], split_id: str) -> None:
    """One run, into its folder: what ``recbole-onebp train`` writes, ``users.npz`` and, last, ``outcome.json``.

    The epoch is chosen on validation by the trainer; the test part is evaluated when that is done.
    """
    with _outcome_of(folder) as outcome:
        warm_up(given)
        config, run_folder = load_config(None, {**given, "output_dir": str(folder), "resume": "auto"})
        logs.start(run_folder.log)
        run = build_from(config, run_folder)
        split = Split.of(run.dataset, _parts(run.train_data, run.valid_data, run.test_data))
        if split.id != split_id:
            raise UserError("its data are split in another way than those of the other models")
        run.fit()
        _save_users(folder / "users.npz", run)
        on_gpu = config["device"].type == "cuda"
        outcome["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0


def warm_up(given: Mapping[str, Any]) -> None:
    """Train the model for an epoch on made-up data: what is compiled and loaded once is in nobody's seconds."""
    rng = np.random.default_rng(0)
    keys = {key: value for key, value in given.items() if key not in (*dataset_arguments, *evaluation_arguments)}
    # A model that cannot is told so by its real data.
    with suppress(Exception), TemporaryDirectory() as path:
        (Path(path) / "warm_up").mkdir()
        rows = (f"{user}\t{item}\n" for user in range(30) for item in rng.permutation(200)[:20])
        (Path(path) / "warm_up" / "warm_up.inter").write_text("user_id:token\titem_id:token\n" + "".join(rows))
        own = {"dataset": "warm_up", "data_path": path, "output_dir": path, "epochs": 1, "refit": False, "resume": None}
        build_from(*load_config(None, {**keys, **own})).fit()


def _parts(train: Any, valid: Any, test: Any) -> dict[str, Any]:
    return {"train": train._dataset, "valid": valid and valid._dataset, "test": test._dataset}


def _save_users(path: Path, run: Run) -> None:
    """The test metrics of every user ``(n,)``, and the lists they come from ``(n, k)``, as internal ids."""
    per_user = run.per_user_metrics("test")
    users, lists = _top_items(run, max(run.config["topk"]))
    metrics = {str(name): per_user[name].to_numpy(np.float64) for name in per_user}
    write_npz(path, {"users": users, "lists": lists, **metrics})


@torch.no_grad()
def _top_items(run: Run, k: int) -> tuple[Any, Any]:
    """Test users and their k best items, what they took before left out, by RecBole's own evaluation step."""
    trainer = run.trainer
    trainer.model.eval()
    users, lists = [], []
    for batch in run.test_data:
        interaction, scores, _, _ = trainer._full_sort_batch_eval(batch)
        users.append(interaction[run.dataset.uid_field].cpu().numpy())
        lists.append(torch.topk(scores, k)[1].cpu().numpy())
    return np.concatenate(users).astype(np.int32), np.concatenate(lists).astype(np.int32)


@contextmanager
def _outcome_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Write how a run ended, after everything else; what was printed goes to ``output.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome: dict[str, Any] = {"status": "done"}
    # A process of an earlier, killed comparison may need a moment to end.
    with FileLock(folder / ".worker.lock", timeout=60):
        try:
            yield outcome
        except Exception as error:
            traceback.print_exc()
            memory = isinstance(error, MemoryError) or "memory" in str(error).lower()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            outcome = {"status": "out of memory" if memory else "failed", "reason": " ".join(reason.split())[:300]}
        sys.stdout.flush()
        write_json(folder / "outcome.json", outcome)


def _end_with_parent() -> None:
    """Nobody would see the result, and the next comparison starts this run again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
