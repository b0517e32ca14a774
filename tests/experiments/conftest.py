"""Fixtures of the tests that start processes."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import numba
import pytest

from recbole_onebp.util import processes
from support import fresh


@pytest.fixture
def forked(monkeypatch):
    """The processes of a search or comparison are forks of one that has the large libraries, not new Pythons.

    numba is one of them and has read its number of threads, so they must not get another one: numba refuses that once a
    loop has run.
    """
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(numba.config.NUMBA_NUM_THREADS))
    context = multiprocessing.get_context(fresh.START_METHOD)
    monkeypatch.setattr(processes, "multiprocessing", SimpleNamespace(get_context=lambda _method: context))
