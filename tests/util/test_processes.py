"""Child processes: how they end, what they find in their environment, and that they end with their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recbole_onebp.distributed.launch import launch
from recbole_onebp.util.errors import LostRankError, UserError
from recbole_onebp.util.processes import Call, share_cores, supervise, thread_limits
from support import tasks


def test_how_a_child_ended(tmp_path):
    functions = (tasks.crash, tasks.be_killed, tasks.leave, tasks.refuse)
    endings = {}
    calls = [Call(function.__name__, function, (tmp_path,)) for function in functions]
    supervise(calls, 2, lambda call, ending: endings.update({call.name: ending}))
    assert {name: str(ending) for name, ending in endings.items()} == {
        "crash": "was ended by SIGSEGV",
        "be_killed": "was ended by SIGKILL, possibly out of memory",
        "leave": "ended with exit code 3",
        "refuse": "ended with exit code 1",
    }
    assert not any(ending.ok for ending in endings.values())
    assert isinstance(endings["refuse"].error, UserError)
    assert str(endings["refuse"].error) == "the disk is full"


def test_the_environment_is_the_childs_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    limits = thread_limits(1000)
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
    before = dict(os.environ)
    supervise([Call("", tasks.environment, (tmp_path, names), limits)], 1, lambda *_: None)
    assert dict(os.environ) == before
    values = json.loads((tmp_path / "outcome.json").read_text())["values"]
    assert values == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}
    assert thread_limits(1) == {}


def test_an_error_of_the_caller_kills_the_children(tmp_path):
    def fail(_call, _ending):
        pid = int((tmp_path / "pid").read_text())
        raise RuntimeError(str(pid))

    calls = [Call("long", tasks.sleep, (tmp_path,)), Call("short", tasks.await_file, (tmp_path / "pid",))]
    with pytest.raises(RuntimeError) as caught:
        supervise(calls, 2, fail)
    assert not psutil.pid_exists(int(str(caught.value)))


def test_a_child_ends_with_its_parent(tmp_path):
    code = (
        "from pathlib import Path; from support import tasks\n"
        "from recbole_onebp.util.processes import Call, supervise\n"
        f"supervise([Call('', tasks.sleep, (Path({str(tmp_path)!r}),))], 1, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    pid, deadline = tmp_path / "pid", time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = psutil.Process(int(pid.read_text()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []


def test_the_supervisor_needs_no_numpy():
    code = "import sys, recbole_onebp.util.processes; assert not {'numpy', 'torch', 'pydantic'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    where = {"nproc": 2, "world_size": 3, "group_offset": 1, "ip": "localhost", "port": None}
    assert launch(tasks.rank, ["write"], **where) == 0
    ranks = [json.loads(Path(f"{rank}.json").read_text()) for rank in (1, 2)]
    assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) for one in ranks] == [
        ("1", "0", "3", "2"), ("2", "1", "3", "2")
    ]  # fmt: skip
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"]
    assert launch(tasks.rank, ["refuse"], **where) == 2
    with pytest.raises(LostRankError, match=r"rank 2 of 3 was ended by SIGKILL, .*; the last checkpoint is intact"):
        launch(tasks.rank, ["die"], **where)


def test_threads_soon_give_up_their_cores_unless_the_user_says_how_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    share_cores()
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000  # libgomp's default
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
