"""Where numba keeps what it has compiled."""

from __future__ import annotations

import os
from pathlib import Path

import numba
import pytest

import recbole_onebp
from recbole_onebp.util import compiled


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """What :func:`cache_folder` returns, anew at each call, for a user whose cache is ``tmp_path/cache``."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return compiled.cache_folder.__wrapped__


def test_a20_the_cache_is_the_users_alone(folder, tmp_path):
    found, _ = folder()
    assert found == tmp_path / "cache" / "recbole_onebp" / f"numba-{recbole_onebp.__version__}"
    assert found.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o720])
def test_a20_a_cache_that_others_may_write_is_not_read(folder, mode):
    found, _ = folder()
    found.chmod(mode)
    assert folder() == (None, f"others may write {found}: chmod 700 {found}")


def test_a20_a_cache_of_another_user_is_not_read(folder, monkeypatch):
    found, _ = folder()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert folder() == (None, f"{found} belongs to another user")


def test_a20_a_cache_behind_a_link_is_not_read(folder, tmp_path):
    found, _ = folder()
    found.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    found.symlink_to(tmp_path / "elsewhere")
    assert folder() == (None, f"{found} is a link or a file")


def test_a20_what_the_user_sets_counts(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "mine"))
    assert folder() == (tmp_path / "mine", "set by NUMBA_CACHE_DIR")


@pytest.mark.parametrize("home", ["/proc/none/cache", "relative", "/dev/null/x"])
def test_c06_without_a_folder_there_is_no_cache(folder, monkeypatch, home, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    found, reason = folder()
    assert found is None
    assert reason
    monkeypatch.setattr(compiled, "cache_folder", folder)
    add = compiled.njit(cache=True)(lambda a, b: a + b)
    assert add(1, 2) == 3
    compiled.tell_of_compilation.__wrapped__()
    assert "numba compiles without a cache" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_the_first_run_says_that_it_compiles(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "cache_folder", lambda: (tmp_path, "of this user"))
    compiled.tell_of_compilation.__wrapped__()
    assert "the first run compiles its loops" in caplog.text
    caplog.clear()
    (tmp_path / "loop.nbi").touch()
    compiled.tell_of_compilation.__wrapped__()
    assert not caplog.text


def test_a20_all_loops_are_compiled_here():
    """``numba.njit(cache=True)`` would cache beside the source."""
    package = Path(compiled.__file__).parent.parent
    for path in package.rglob("*.py"):
        if path.name != "compiled.py":
            assert "import njit" not in path.read_text().replace("from recbole_onebp.util.compiled import njit", ""), (
                path
            )
