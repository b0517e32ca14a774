"""A wheel, a clone and an editable install contain and find the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import wrapt

CLONE = Path(__file__).parent.parent
FIND = (
    "import recbole_onebp; from recbole_onebp.config.properties import property_file; "
    "print(recbole_onebp.__file__, property_file('model', 'OneBP'))"
)


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def python(code: str, path: Path, cwd: Path, *flags: str) -> list[str]:
    """The words that the code prints, with ``path`` first on the module search path."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=environment, cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.split()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the sources, because a build writes next to them."""
    copy = tmp_path_factory.mktemp("sources") / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "runs")
    data = {str(CLONE): {"dataset"}}  # only at the top: properties/dataset/ belongs to the package
    shutil.copytree(CLONE, copy, ignore=lambda folder, names: ignored(folder, names) | data.get(str(folder), set()))
    return copy


def test_wheel(sources, tmp_path):
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, sources)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(sources))
        for kind in ("**/*.py", "serving/http/page/*")
        for path in sources.glob(f"recbole_onebp/{kind}")
    } | {
        f"recbole_onebp/{path.relative_to(sources)}" for path in (sources / "properties").rglob("*.yaml")
    }  # fmt: skip
    assert expected | {"recbole_onebp/py.typed"} <= names
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/", "properties/"))}
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    module, found = python(FIND, tmp_path / "site", tmp_path)
    assert Path(found) == Path(module).parent / "properties" / "model" / "OneBP.yaml"
    assert str(tmp_path / "site") in found


def test_editable_install(sources, tmp_path):
    pip("install", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", "--editable", sources)
    # -S hides the packages of the environment, such as the installed wheel; addsitedir reads .pth files.
    shutil.copytree(Path(wrapt.__file__).parent, tmp_path / "site" / "wrapt")
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n{FIND}"
    _, found = python(code, tmp_path, tmp_path, "-S")
    assert Path(found) == sources / "properties" / "model" / "OneBP.yaml"


def test_clone(tmp_path, tiny_config):
    """``python run_recbole_onebp.py`` runs the clone that contains it, from any folder."""
    # The reference engine: the loops of the fast one would be compiled anew, because the clone is in another folder.
    values = {**tiny_config, "model": "OneBP", "dataset": "tiny", "epochs": 1, "engine": "reference"}
    command = [sys.executable, CLONE / "run_recbole_onebp.py", *(f"--{key}={value}" for key, value in values.items())]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs_run"] == 1
    _, found = python(FIND, CLONE, tmp_path)
    assert Path(found) == CLONE / "properties" / "model" / "OneBP.yaml"
