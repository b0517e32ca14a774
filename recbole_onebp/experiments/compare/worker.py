"""What a process of a comparison does: examine the data, or train and test one model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments

from recbole_onebp.experiments.compare.outcome import recorded
from recbole_onebp.experiments.compare.split import Split, write_npz
from recbole_onebp.run.build import build_from, load_config, load_data, read_config
from recbole_onebp.run.run import Run
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError

__all__ = ["examine_data", "train_and_test", "warm_up"]


def examine_data(folder: Path, given: Mapping[str, Any]) -> None:
    """Write ``split.npz``, and ``outcome.json`` with the summary that :meth:`Split.check` returns, into ``folder``."""
    with recorded(folder) as outcome:
        config = read_config(None, given)
        dataset, train, valid, test = load_data(config)
        split = Split.of(dataset, _parts(train, None if config["refit"] else valid, test))
        outcome["protocol"] = split.check()
        split.save(folder / "split.npz")


def train_and_test(folder: Path, given: Mapping[str, Any], split_id: str) -> None:
    """Make one run in its folder: the files of ``recbole-onebp train``, ``users.npz`` and, last, ``outcome.json``.

    The trainer chooses the epoch on validation; only then is the test part evaluated.
    """
    with recorded(folder) as outcome:
        warm_up(given)
        config, run_folder = load_config(None, {**given, "output_dir": str(folder), "resume": "auto"})
        logs.start(run_folder.log)
        run = build_from(config, run_folder)
        split = Split.of(run.dataset, _parts(run.train_data, run.valid_data, run.test_data))
        if split.id != split_id:
            raise UserError("the data of this model are split differently from those of the other models")
        run.fit()
        _save_users(folder / "users.npz", run)
        on_gpu = config["device"].type == "cuda"
        outcome["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0


def warm_up(given: Mapping[str, Any]) -> None:
    """Train the model for one epoch on made-up data, so that no measured time includes compilation and loading."""
    rng = np.random.default_rng(0)
    keys = {key: value for key, value in given.items() if key not in (*dataset_arguments, *evaluation_arguments)}
    # A model that cannot train on these data is judged by the real ones.
    with suppress(Exception), TemporaryDirectory() as path:
        (Path(path) / "warm_up").mkdir()
        rows = (f"{user}\t{item}\n" for user in range(30) for item in rng.permutation(200)[:20])
        (Path(path) / "warm_up" / "warm_up.inter").write_text("user_id:token\titem_id:token\n" + "".join(rows))
        own = {"dataset": "warm_up", "data_path": path, "output_dir": path, "epochs": 1, "refit": False, "resume": None}
        build_from(*load_config(None, {**keys, **own})).fit()


def _parts(train: Any, valid: Any, test: Any) -> dict[str, Any]:
    return {"train": train._dataset, "valid": valid and valid._dataset, "test": test._dataset}


def _save_users(path: Path, run: Run) -> None:
    """Save the test metrics of every user ``(n,)``, and the recommended lists ``(n, k)`` as internal ids."""
    per_user = run.per_user_metrics("test")
    users, lists = _top_items(run, max(run.config["topk"]))
    metrics = {str(name): per_user[name].to_numpy(np.float64) for name in per_user}
    write_npz(path, {"users": users, "lists": lists, **metrics})


@torch.no_grad()
def _top_items(run: Run, k: int) -> tuple[Any, Any]:
    """Test users and their k best items by RecBole's own evaluation step, which excludes the items seen before."""
    trainer = run.trainer
    trainer.model.eval()
    users, lists = [], []
    for batch in run.test_data:
        interaction, scores, _, _ = trainer._full_sort_batch_eval(batch)
        users.append(interaction[run.dataset.uid_field].cpu().numpy())
        lists.append(torch.topk(scores, k)[1].cpu().numpy())
    return np.concatenate(users).astype(np.int32), np.concatenate(lists).astype(np.int32)
