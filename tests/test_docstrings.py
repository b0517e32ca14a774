"""The examples in the docstrings hold."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import recbole_onebp

ROOT = Path(recbole_onebp.__file__).parent
ON_A_MODEL = {
    "dataframe/estimator.py",
    "dataframe/recommender.py",
    "dataframe/training.py",
    "serving/bundle_state.py",
    "serving/changing_items.py",
    "serving/recommender.py",
}
"""Examples that need a model: ``dataframe`` and ``serving`` have tests for them."""

EXAMPLES = sorted(
    name
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8") and (name := path.relative_to(ROOT).as_posix()) not in ON_A_MODEL
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_hold(name):
    module = import_module(f"recbole_onebp.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__"))
    found = doctest.testmod(module, extraglobs={"recbole_onebp": recbole_onebp})
    assert found.attempted > 0
    assert found.failed == 0
