"""Processes of one host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from recbole_onebp.distributed import MEETING_FILE, launch
from support import tasks


@pytest.fixture
def environments(monkeypatch):
    """The variables of the processes that would be started."""
    found = []

    def supervise(calls, _jobs, _done):
        found.extend({**dict(call.environment)} for call in calls)
        for environment in found:
            if MEETING_FILE in environment:
                assert stat.S_IMODE(Path(environment[MEETING_FILE]).parent.stat().st_mode) == 0o700

    monkeypatch.setattr(launch, "supervise", supervise)
    return found


@pytest.mark.skipif(not os.path.exists("/sys/class/net/lo"), reason="another name of the interface")
def test_a19_one_host_opens_no_port_to_others(environments):
    assert launch.launch(len, [], 2, 2, 0, "localhost", None) == 0
    for environment in environments:
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"
        assert "MASTER_PORT" not in environment


def test_a19_several_hosts_meet_at_a_port(environments):
    assert launch.launch(len, [], 1, 2, 1, "10.0.0.1", 5678) == 0
    assert environments[0]["MASTER_ADDR"], environments[0]["MASTER_PORT"] == ("10.0.0.1", "5678")
    assert MEETING_FILE not in environments[0]


@pytest.mark.process
def test_a19_the_processes_listen_on_loopback_alone(tmp_path):
    """Both processes name the addresses on which they listen, from Linux's own list."""
    code = launch.launch(tasks.listen, [str(tmp_path)], 2, 2, 0, "localhost", None)
    assert code == 0
    found = {path.read_text() for path in tmp_path.iterdir()}
    assert found <= {"", "0100007F"}, "hexadecimal 127.0.0.1"
