"""The package as it lies on disk: what imports what, and where the YAML files are found."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_onebp
from recbole_onebp.files import whole_folder, write_atomically
from recbole_onebp.resources import properties_dir, property_file
from recbole_onebp.run_folder import RunFolder

PACKAGE = Path(recbole_onebp.__file__).parent

# Lower may not import higher; modules of one layer may not import one another, except where they are one package.
LAYERS = [
    {"errors", "files", "functional", "lanes", "resources", "logs"},
    {"interactions", "yaml_text"},
    {"data_cache"},
    {"compat", "keys", "run_folder", "data_checks", "ranking", "lean_dataset", "parts", "sampling", "distributed"},
    {"config", "datasets", "evaluation", "recbole_data"},
    {"model", "checkpoint"},
    {"engine"},
    {"trainer"},
    {"registration", "recbole_models"},
    {"quick_start"},
    {"doctor", "compare", "serving", "tune"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Seen from below by design: each is imported inside a function, when RecBole or a user asks for it.
LATE = {
    ("compat", "registration"),
    ("registration", "trainer"),
    ("__init__", "model"),
    ("__init__", "trainer"),
    ("__init__", "quick_start"),
}


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "recbole_onebp":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_imports_point_one_way():
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        seen.add(name)
        for imported in imports_of(path) - {name}:
            if (name, imported) in LATE or name == "__init__":
                continue
            assert imported in RANK, f"{imported}, imported by {name}, has no layer"
            assert RANK[imported] < RANK[name], f"{name} imports {imported}, which lies above it"
    assert seen - {"__init__"} == set(RANK)


def test_the_picture_shows_the_imports():
    """docs/architecture.md draws every import: ``a --> b`` at the top of a module, ``a -.-> b`` inside a function."""
    picture = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    drawn = set(re.findall(r"^ *(\w+) (?:-->|-\.->) (\w+)", picture, flags=re.MULTILINE))
    actual = {
        (module_name(path), imported)
        for path in PACKAGE.rglob("*.py")
        for imported in imports_of(path) - {module_name(path)}
    }
    by_name = {("registration", name) for name in ("trainer", "lean_dataset", "recbole_data", "evaluation", "ranking")}
    assert drawn == actual | by_name


def test_functions_of_the_method_need_no_recbole():
    code = "import sys; import recbole_onebp.functional; assert 'recbole' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    """Another process puts its own in place while ours is put there."""
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
