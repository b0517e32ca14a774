"""Fixtures of the tests that start processes."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest

from recbole_onebp.util import processes
from support import fresh


@pytest.fixture
def forked(monkeypatch):
    """The processes of a search or comparison are forks of one that has the large libraries, not new Pythons."""
    context = multiprocessing.get_context(fresh.START_METHOD)
    monkeypatch.setattr(processes, "multiprocessing", SimpleNamespace(get_context=lambda _method: context))
