"""The batches of a schedule for RecBole's loop."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction


class SameDraws:
    """Train data that brings RecBole's loop the very batches of a schedule."""

    def __init__(self, run, epoch):
        self._dataset = run.train_data._dataset
        self._schedule, self._epoch = run.trainer._schedule_of(run.train_data), epoch

    def __len__(self):
        return len(self._schedule)

    def __iter__(self):
        for user, item, negative, *_ in self._schedule.batches(self._epoch):
            shared = negative.ndim == 1
            repeats = 1 if shared else negative.shape[1]
            batch = {
                "user_id": torch.tensor(user).long().repeat(repeats),
                "item_id": torch.tensor(item).long().repeat(repeats),
            }
            if not shared:
                batch["neg_item_id"] = torch.tensor(negative.T.reshape(-1)).long()
            yield Interaction(batch)
