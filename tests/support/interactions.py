"""Small interactions in order of time, and settings that train on them in a moment."""

from __future__ import annotations

import numpy as np
import pandas as pd

FAST = {"epochs": 2, "embedding_size": 8, "show_progress": False}


def made(n_users: int = 30) -> pd.DataFrame:
    """Ten of 25 items for each user."""
    draw = np.random.default_rng(0)
    item = np.concatenate([draw.choice(25, 10, replace=False) for _ in range(n_users)])
    user = np.repeat(np.arange(n_users), 10)
    return pd.DataFrame({"user_id": user, "item_id": item, "timestamp": 1_600_000_000 + draw.permutation(len(user))})
