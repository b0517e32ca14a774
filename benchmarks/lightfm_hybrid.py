"""LightFM's hybrid of ids and features, for ``features.py``.

Source: Kula, "Metadata Embeddings for User and Item Cold-start Recommendations", arXiv 1507.08439.
``pip install lightfm-next`` builds it with a C compiler.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter, process_time
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_onebp.data.item_features import item_fields
from recbole_onebp.run.record import floats
from recbole_onebp.run.run import Run
from recbole_onebp.util.errors import UserError


class Scores(torch.nn.Module):
    """Inner products of users ``(n_users, d)`` and items ``(n_items, d)``, for RecBole's evaluation."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self.users, self.items = users, items

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the users with all items, flattened."""
        return (self.users[interaction["user_id"]] @ self.items.T).view(-1)


def train(run: Run, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train on the data of a run, choose the epoch on its validation part, and test once.

    WARP with LightFM's own defaults; the values of an item are weighted as OneBP's are.
    """
    try:
        from lightfm import LightFM
    except ImportError:
        raise UserError("--lightfm: LightFM is not installed; pip install lightfm-next") from None
    dataset, trainer = run.train_data._dataset, run.trainer
    taken = sp.coo_array(dataset.inter_matrix(form="coo").astype(np.float32))
    taken.data[:] = 1
    fields = item_fields(dataset)
    features = sp.csr_array(sp.hstack([sp.eye_array(dataset.item_num), *(field.matrix for field in fields)]))
    model = LightFM(args.settings.get("embedding_size", 64), loss="warp", random_state=seed)
    begin, seconds = process_time(), list[float]()
    best: tuple[float, int, Scores, dict[str, float]] = (-1.0, 0, Scores(torch.empty(0), torch.empty(0)), {})
    while len(seconds) < min(args.epochs, best[1] + 1 + 5):
        start = perf_counter()
        model.fit_partial(taken, item_features=sp.csr_matrix(features), epochs=1, num_threads=args.threads)
        seconds.append(perf_counter() - start)
        bias, items = model.get_item_representations(features)
        _, users = model.get_user_representations()  # the bias of a user changes no ranking
        parts = np.column_stack((users, np.ones(len(users)))), np.column_stack((items, bias))
        trainer.model = Scores(*(torch.from_numpy(part.astype(np.float32)) for part in parts))
        valid = trainer.evaluate(run.valid_data, load_best_model=False)
        if valid[trainer.valid_metric] > best[0]:
            best = valid[trainer.valid_metric], len(seconds) - 1, trainer.model, floats(valid)
    trainer.model = best[2]
    kinds = {items: run.test_data.among(items) for items in ("all", "warm", "cold")}
    test = {items: floats(trainer.evaluate(part, load_best_model=False)) for items, part in kinds.items()}
    return {
        "epochs": best[1] + 1,
        "valid": best[3],
        "test": test,
        "epoch_seconds": statistics.median(seconds),
        "processor_seconds": process_time() - begin,
    }
