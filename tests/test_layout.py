"""The package as it lies on disk: what imports what, and where the YAML files are found."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import recbole_onebp
from recbole_onebp.config.properties import properties_dir, property_file
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.util.files import whole_folder, write_atomically
from support import fresh

PACKAGE = Path(recbole_onebp.__file__).parent

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("recbole_onebp.")}
    return found - {"__version__"}


def layers() -> list[str]:
    """The folders and modules of docs/architecture.md, from the top down."""
    return re.findall(r"^\d+\. `(\w+)`", ARCHITECTURE.read_text(), flags=re.MULTILINE)


def test_imports_point_down():
    """Imports by name (``import_module``), which are late because of import cycles with RecBole, are not seen here."""
    rank = {name: place for place, name in enumerate(layers())}
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        seen.add(name)
        if name in ("__init__", "__main__"):
            continue
        for imported in imports_of(path) - {name}:
            assert rank[imported] > rank[name], f"{path} imports {imported}, which lies above {name}"
    assert seen - {"__init__", "__main__"} == set(rank)


def test_files_named_in_the_architecture_exist():
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", ARCHITECTURE.read_text())
    assert len(named) > 20
    top = ARCHITECTURE.parents[1]
    assert [path for path in named if not ((PACKAGE / path).exists() or (top / path).exists())] == []


def test_every_promise_of_security_names_a_test():
    security = (ARCHITECTURE.parents[1] / "SECURITY.md").read_text()
    rows = [line for line in security.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 25
    for row in rows:
        names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert names, row
        for file, name in names:
            assert f"def {name}(" in (ARCHITECTURE.parents[1] / file).read_text(), name


def test_functions_of_the_method_need_no_recbole():
    fresh.check("import sys; import recbole_onebp.functional; assert 'recbole' not in sys.modules")


def test_properties_are_found():
    assert (properties_dir() / "model" / "OneBP.yaml").is_file()
    assert property_file("preset", "paper") is not None
    assert property_file("preset", "absent") is None


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")

    def half(file):
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_of_two_that_write_one_folder_one_stays_and_nothing_else(tmp_path, monkeypatch):
    """Another process puts its own in place while ours is put there, where folders cannot be exchanged in one step."""
    monkeypatch.setattr("recbole_onebp.util.files._exchange", lambda _one, _other: False)
    path = tmp_path / "entry"
    path.mkdir()
    rename = os.rename

    def late(temporary, target):
        Path(target).mkdir()
        (Path(target) / "theirs").touch()
        rename(temporary, target)

    def make():
        with whole_folder(path, replace=True) as made:
            (made / "ours").touch()
            monkeypatch.setattr(os, "rename", late)

    with pytest.raises(OSError, match="not empty"):
        make()
    assert [file.name for file in tmp_path.rglob("*")] == ["entry", "theirs"]


def test_config_holds_only_plain_values(tmp_path):
    import torch
    import yaml

    RunFolder(tmp_path).start({"device": torch.device("cpu"), "topk": (5, 10), "eval_args": {"split": {"a": 1}}})
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written == {"device": "cpu", "topk": [5, 10], "eval_args": {"split": {"a": 1}}}
