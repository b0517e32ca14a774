"""Small interactions, and a recommender of them."""

from __future__ import annotations

import pandas as pd
import pytest

from recbole_onebp import fit
from recbole_onebp.dataframe import FittedRecommender
from support.interactions import FAST, made


@pytest.fixture
def frame() -> pd.DataFrame:
    return made()


@pytest.fixture
def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["user_id", "item_id"]]


@pytest.fixture(scope="module")
def rec() -> FittedRecommender:
    return fit(made(), **FAST)
