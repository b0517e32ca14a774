"""Whatever a bundle or a run holds, the commands answer or refuse it in one line, soon and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import hostile
from support.bundles import made_bundle

TESTS = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path):
    return made_bundle(
        tmp_path / "pristine", n_users=20, n_items=60, bias=True, alpha=0.5, local=0.5, local_recency=1.0
    )


@pytest.fixture
def run(tiny, tmp_path):
    tiny(epochs=1).fit()
    return tmp_path / "run"


def test_a10_hostile_bundles(bundle, tmp_path):
    path = tmp_path / "hostile"
    hostile.fuzz(40, None, hostile.bundle_changes(bundle, path), lambda: hostile.try_bundle(path))


def test_a01_hostile_runs(run, tmp_path):
    path, mark = tmp_path / "hostile", tmp_path / "mark"
    pickled = hostile.plant_pickles(tmp_path / "saved", mark)
    hostile.fuzz(20, None, hostile.run_changes(run, path, pickled), lambda: hostile.try_run(path, mark))


def in_processes(kind, batches, count, pristine, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    for number in range(batches):
        command = [sys.executable, "-m", "support.hostile", kind, str(number), str(count), str(pristine)]
        done = subprocess.run(
            [*command, str(tmp_path / f"{kind}{number}")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{kind}, batch {number}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.mark.slow
def test_a10_1700_hostile_bundles(bundle, tmp_path):
    in_processes("bundles", 17, 100, bundle, tmp_path)


@pytest.mark.slow
def test_a01_300_hostile_runs(run, tmp_path):
    in_processes("runs", 6, 50, run, tmp_path)
