"""YAML that would take long, or much memory, or an exception of its own."""

from __future__ import annotations

import os
from contextlib import suppress
from time import perf_counter

import pytest

from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError


def unfolding(depth, merge=False):
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [1]"]
    for number in range(1, depth):
        nine = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {{<<: [{nine}]}}" if merge else f"a{number}: &a{number} [{nine}]")
    return "\n".join(lines)


@pytest.mark.parametrize("text", [unfolding(9), unfolding(9, merge=True), "a: &a [*a]", "[" * 500_000, "? " * 400_000,
                                  "{a: " * 200_000, "".join(" " * n + "- \n" for n in range(1000))])  # fmt: skip
def test_a12_aliases_and_depth_are_bounded_before_they_are_expanded(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    start = perf_counter()
    with pytest.raises(UserError, match=r"more than|not YAML"):
        safe_yaml.read_plain(tmp_path / "config.yaml")
    assert perf_counter() - start < 5  # about 0.1 s, on a machine that does nothing else


@pytest.mark.parametrize("tag", ["bool", "int", "float", "timestamp", "binary", "omap", "pairs", "set", "map", "seq",
                                 "null", "python/tuple", "python/object/apply:os.system"])  # fmt: skip
@pytest.mark.parametrize("value", ["x", "''", "[1]", "{}", "[{a: 1, b: 2}]", "=", "99999-99-99"])
def test_a12_tags_before_any_value(tag, value):
    with suppress(UserError):  # no other exception
        safe_yaml.load(f"a: !!{tag} {value}", "a file")


def test_a12_a_config_is_a_plain_file(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="not a plain file"):
        safe_yaml.read_plain(tmp_path / "config.yaml")
