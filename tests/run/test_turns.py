"""Training in threads and after a fork."""

from __future__ import annotations

import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from recbole_onebp.run import turns
from support.fresh import python

TRAIN = """
import multiprocessing, sys
import recbole_onebp
import torch
def fit(seed, model):
    keys = {{"data_path": {data_path!r}, "epochs": 1, "show_progress": False, "output_dir": f"{folder}/{{seed}}"}}
    return recbole_onebp.build(model, "tiny", config_dict={{**keys, "seed": seed}}).fit()
def child():
    try:
        fit(2, "{then}")
    except recbole_onebp.util.errors.UserError as error:
        print(error)
        sys.exit(3)
if __name__ == "__main__":
    torch.set_num_threads(2)
    fit(1, "{first}")
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    hangs = process.is_alive()
    process.kill()
    sys.exit(4 if hangs else process.exitcode)
"""


@pytest.mark.process
@pytest.mark.parametrize(("first", "then"), [("OneBP", "OneBP"), ("BPR", "BPR")])
def test_c07_a_forked_child_does_not_hang(tiny_path, tmp_path, first, then):
    done = python(TRAIN.format(data_path=tiny_path, folder=tmp_path, first=first, then=then))
    assert done.returncode == 3, done.stderr
    assert "multiprocessing.get_context('spawn')" in done.stdout


@pytest.mark.parametrize("model", ["OneBP", "BPR"])
def test_c08_runs_in_threads_equal_runs_one_after_the_other(tiny, tmp_path, model):
    def fit(seed):
        engine = {"engine": "reference"} if model == "OneBP" else {}
        run = tiny(model, seed=seed, epochs=2, output_dir=str(tmp_path / f"{seed}"), **engine)
        return run.fit().test, run.trainer.record.epochs[-1]["train_loss"]

    alone = [fit(seed) for seed in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(fit, (1, 2, 3, 4))] == alone


def test_c08_a_run_finds_the_generators_as_it_left_them():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))

    one, other = turns.Turn(), turns.Turn()
    torch.manual_seed(1)
    with one.taken():
        draw()
    with one.taken():
        expected = draw()
    torch.manual_seed(1)
    state = random.getstate(), np.random.get_state()
    one = turns.Turn()
    with one.taken():
        float(torch.rand(()))
    left = torch.get_rng_state()
    with other.taken():
        torch.manual_seed(9)
    with one.taken():
        assert torch.equal(torch.get_rng_state(), left)
        assert float(torch.rand(())) == expected[2]
    assert random.getstate() == state[0]
    assert np.random.get_state()[2] == state[1][2]


def test_the_lock_of_another_thread_is_not_inherited():
    """A child that is forked while another thread trains may train all the same: nobody would release its lock."""
    holds, ended = threading.Event(), threading.Event()

    def hold():
        with turns.one_at_a_time():
            holds.set()
            ended.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(30)
    process = multiprocessing.get_context("fork").Process(target=_enter)
    process.start()
    process.join(20)
    ended.set()
    thread.join()
    assert process.exitcode == 0


def _enter():
    with turns.one_at_a_time():
        pass
