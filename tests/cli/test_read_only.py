"""Folders that may be read and not written: one line each, or it works without writing there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import write_inter
from recbole_onebp.cli import main
from recbole_onebp.serving.http.events import EventStore
from support.bundles import made_bundle
from support.limits import permissions_hold
from support.sources import run

TRAIN = ("train", "--model=OneBP", "--dataset=tiny", "--epochs=1", "--embedding_size=4", "--topk=[5]",
         "--valid_metric=NDCG@5", "--show_progress=False")  # fmt: skip
PLAN = "dataset: tiny\ndata_path: dataset\nepochs: 1\ntopk: [5]\nvalid_metric: NDCG@5\nmodels:\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_path):
    """A data set, a run, its bundle, events and other input."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(Path(tiny_path) / "tiny", "dataset/tiny")
        assert main([*TRAIN, "--output_dir=run"]) == 0
        made_bundle(Path("bundle"))
        EventStore(Path("events")).close()
        Path("mine.csv").write_text("user,item\na,x\n")
        Path("compare.yaml").write_text(f"{PLAN}- OneBP\nseeds: [1]\n")
        Path("tune.yaml").write_text(f"{PLAN}- {{model: OneBP, space: {{beta: [0.5, 0.9]}}}}\ntrials: 1\n")
        Path("folder").mkdir()
    return folder


@pytest.fixture
def read_only(made, tmp_path):
    """Nothing of what was made, nor the folder that holds it, can be written."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    places = [tmp_path, *tmp_path.rglob("*")]
    modes = [place.stat().st_mode for place in places]
    for place, mode in zip(places, modes, strict=True):
        place.chmod(mode & ~0o222)
    with permissions_hold():
        yield
    for place, mode in zip(places, modes, strict=True):
        place.chmod(mode)


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (TRAIN, "output_dir: runs/tiny-OneBP-"),
        ((*TRAIN, "--output_dir=new"), "output_dir: new"),
        ((*TRAIN, "--output_dir=folder"), "output_dir: folder"),
        ((*TRAIN, "--output_dir=run", "--resume=auto"), "output_dir: run"),
        (("export", "run", "new"), "new: "),
        (("export", "run", "bundle", "--force"), "bundle: "),
        (("recommend", "bundle", "--all_users", "--out=folder/lists.csv"), "folder/lists.csv: "),
        (("serve", "bundle", "--port=0"), "bundle.events: "),
        (("serve", "bundle", "--port=0", "--events=folder"), "folder: "),
        (("serve", "bundle", "--port=0", "--events=events"), "events: "),
        (("repair-events", "events"), "events: "),
        (("convert", "mine.csv"), "dataset/mine: "),
        (("fetch", "gowalla"), "dataset/gowalla: "),
        (("compare", "compare.yaml", "--output_dir=new"), "new: "),
        (("tune", "tune.yaml", "--output_dir=new"), "new: "),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[:1] + value[-1:]),
)
def test_what_cannot_be_written_is_one_line(arguments, where, capsys):
    code, _, error = run(*arguments, capsys=capsys)
    assert code == 2
    assert where in error
    assert "cannot be written: Permission denied" in error


@pytest.mark.usefixtures("read_only")
def test_what_is_only_read_needs_no_write(capsys, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert run(*TRAIN, f"--output_dir={out / 'run'}", capsys=capsys)[0] == 0
    assert run(*TRAIN, f"--output_dir={out / 'resumed'}", "--resume=run", capsys=capsys)[0] == 0
    assert run("export", "run", out / "bundle", capsys=capsys)[0] == 0
    assert run("recommend", "bundle", "--users=u1", "--k=2", capsys=capsys)[0] == 0


def test_what_cannot_be_read_is_one_line(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    write_inter(tmp_path / "dataset" / "closed", [("a", "x")])
    cases = {
        "dataset/closed/closed.inter": ("train", "--model=OneBP", "--dataset=closed", "--output_dir=out"),
        "run/result.json": ("export", "run", "new"),
        "bundle/manifest.json": ("recommend", "bundle", "--users=u1"),
        "mine.csv": ("convert", "mine.csv"),
        "compare.yaml": ("compare", "compare.yaml", "--output_dir=new"),
    }
    for name, arguments in cases.items():
        Path(name).chmod(0)
        with permissions_hold():
            code, _, error = run(*arguments, capsys=capsys)
        assert code == 2
        assert f"{name}: cannot be read: Permission denied" in error
