"""Folders that somebody else made: no code in them runs, nothing leads elsewhere, and nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_onebp.cli import main
from recbole_onebp.plugin.patches import numpy_patches, torch_patches
from recbole_onebp.run.checkpoint import store
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import MARKER


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled").absolute(),)


def set_traps(folder, model):
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("Dataset", "OneBPDataset", "SequentialDataset", "KnowledgeBasedDataset"):
        (folder / f"tiny-{kind}.pth").write_bytes(pickle.dumps(Trap()))
    (folder / f"tiny-for-{model}-dataloader.pth").write_bytes(pickle.dumps(Trap()))


@pytest.mark.parametrize("model", ["OneBP", "BPR", "Pop"])
def test_a01_a_new_run_unpickles_nothing_that_lies_in_its_folder(tiny, tmp_path, model):
    set_traps(tmp_path / "run", model)
    tiny(model, epochs=1).fit()
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("resume", ["auto", "path", "checkpoint"])
def test_a01_resuming_unpickles_nothing(tiny, tmp_path, resume):
    run = tmp_path / "run"
    tiny(epochs=1).fit()
    set_traps(run, "OneBP")
    where = {"auto": "auto", "path": str(run), "checkpoint": str(max((run / "checkpoint").iterdir()))}[resume]
    tiny(epochs=2, resume=where).fit()
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path"])
def test_a01_pickled_data_are_refused(tiny, tmp_path, key):
    (tmp_path / "mine.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=f"{key}: names a pickle, which may run code"):
        tiny(epochs=1, **{key: str(tmp_path / "mine.pth")})
    assert not Path("unpickled").exists()


def test_a01_ldiffrec_unpickles_no_array(tiny, tiny_path):
    pytest.importorskip("kmeans_pytorch")
    array = Path(tiny_path) / "tiny" / "item_emb.npy"
    try:
        np.save(array, np.array([Trap()], object), allow_pickle=True)
        with pytest.raises(UserError, match=r"item_emb\.npy: expected a plain array of numbers"):
            tiny("LDiffRec", n_cate=2)
        assert not Path("unpickled").exists()
    finally:
        array.unlink()


def test_a01_arrays_that_recbole_reads_are_plain(tmp_path):
    """The same without the package that LDiffRec needs."""
    np.save(tmp_path / "item_emb.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"item_emb\.npy: expected a plain array of numbers"):
        numpy_patches._load_plain(str(tmp_path / "item_emb.npy"), allow_pickle=True)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("model", ["RaCT", "ConvNCF", "NAIS", "NeuMF"])
def test_a01_pretrained_parameters_run_no_code(tiny, tmp_path, model, legacy):
    keys = {
        "RaCT": {"pre_model_path": None, "train_stage": "critic_pretrain"},
        "ConvNCF": {"pre_model_path": None, "train_method": "after_pretrain"},
        "NAIS": {"pretrain_path": None},
        "NeuMF": {"mf_pretrain_path": None, "mlp_pretrain_path": None, "use_pretrain": True},
    }[model]
    file = tmp_path / "pretrained.pth"
    torch.save({"state_dict": Trap(), "config": Trap()}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"pretrained\.pth: is no checkpoint of RecBole"):
        tiny(model, **{key: str(file) if value is None else value for key, value in keys.items()})
    assert not Path("unpickled").exists()


def test_a01_what_recbole_saves_is_read(tiny, tmp_path):
    run = tiny("BPR", epochs=1, recbole_checkpoint=True)
    run.fit()
    found = torch_patches._load_tensors(str(tmp_path / "run" / "checkpoint.pth"), "cpu")
    assert found["epoch"] == 0
    assert all(torch.equal(found["state_dict"][name], value) for name, value in run.model.state_dict().items())


def test_a01_the_keys_stay_as_they_were_given(tiny):
    run = tiny(epochs=1)
    assert (run.config["dataset_save_path"], run.config["dataloaders_save_path"]) == (None, None)


def test_what_is_saved_is_saved(tiny, tmp_path):
    tiny("BPR", epochs=1, save_dataset=True, save_dataloaders=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"tiny-Dataset.pth", "tiny-for-BPR-dataloader.pth"} <= names


# ---------------------------------------------------------------------------------------------------- whose a folder is


@pytest.mark.parametrize("name", ["checkpoint", "tensorboard", "model.safetensors", "result.json", "config.yaml"])
def test_a15_train_leaves_what_is_not_its_own(tiny_path, tmp_path, capsys, name):
    out = tmp_path / "mine"
    out.mkdir()
    if "." in name:
        (out / name).write_text("mine: true")
    else:
        (out / name).mkdir()
        (out / name / "thesis.txt").write_text("mine")
    before = {path: path.is_file() and path.read_text() for path in out.rglob("*")}
    assert main(["train", "--model=OneBP", "--dataset=tiny", f"--data_path={tiny_path}", f"--output_dir={out}"]) == 2
    assert f"holds {name}, which would be replaced" in capsys.readouterr().err
    assert {path: path.is_file() and path.read_text() for path in out.rglob("*")} == before


def test_a15_a_run_of_an_earlier_version_is_taken_on(tiny, tmp_path):
    tiny(epochs=1).fit()
    (tmp_path / "run" / MARKER).unlink()
    assert tiny(epochs=2, resume="auto").fit().epochs_run == 2
    assert (tmp_path / "run" / MARKER).is_file()


@pytest.mark.parametrize(
    "name", ["checkpoint", "tensorboard", "run.log", "metrics.jsonl", "model.safetensors", ".lock"]
)
def test_a15_links_in_a_strangers_run_are_not_written_through(tiny, tmp_path, name):
    tiny(epochs=1).fit()
    kept, path = tmp_path / "kept", tmp_path / "run" / name
    if path.is_dir():
        shutil.move(path, kept)
        (kept / "epoch-000009-step-000000000").mkdir()
        (kept / "thesis.txt").touch()
    else:
        path.unlink(missing_ok=True)
        kept.write_text("mine")
    path.symlink_to(kept)
    before = sorted(kept.rglob("*")) if kept.is_dir() else kept.read_text()
    with pytest.raises(UserError, match="is a link or a device"):
        tiny(epochs=2, resume="auto")
    assert (sorted(kept.rglob("*")) if kept.is_dir() else kept.read_text()) == before


def test_a15_saving_leaves_what_is_no_checkpoint(tmp_path):
    checkpoints = store.Checkpoints(tmp_path)
    (tmp_path / "thesis").mkdir()
    for epoch in range(4):
        checkpoints.save(f"epoch-{epoch:06d}-step-000000000", {}, None)
    assert len([*tmp_path.iterdir()]) == 3
    assert (tmp_path / "thesis").is_dir()


def test_a_fresh_folder_belongs_to_one_run(monkeypatch):
    now = datetime(2024, 5, 1)
    monkeypatch.setattr("recbole_onebp.run.folder.datetime", type("_", (), {"now": lambda: now}))
    names = [RunFolder.fresh("a", "b").path.name for _ in range(3)]
    assert names == [f"a-b-20240501-000000{number}" for number in ("", "-2", "-3")]


# ----------------------------------------------------------------------- checkpoints with checksums that fit: generator

ODD = [
    None, True, -1, 0, 1, 2**70, 1.5, -0.5, 1e308, "", "x", "/etc/passwd", [], {}, [1], {"a": 1}, [[]] * 3,
    {"$": "tensor", "of": "absent"}, {"$": "tensor", "of": "trainer.model.item_table"}, {"$": "float", "of": "nan"},
    {"$": "float", "of": "inf"}, {"$": []}, {"$": "?", "of": 1}, {"$": "tuple", "of": [1, 2]}, {"$": "tuple", "of": 1},
    {"$": "items", "of": [[1, 2]]}, {"$": "items", "of": [[[], 2]]}, {"$": "items", "of": 5}, {"$": "float", "of": "x"},
]  # fmt: skip
TENSORS = [
    lambda tensor: tensor[:-1] if tensor.dim() else tensor.reshape(1, 1),
    lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.float(),
    lambda tensor: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0,
    lambda tensor: -tensor if tensor.is_floating_point() else tensor + 1,
    lambda _tensor: torch.zeros(0),
    lambda tensor: tensor.unsqueeze(0),
]


def places(value, above=()):
    """Where something stands in nested mappings and lists; of a long list only the beginning."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value[:3]):
        yield (*above, key)
        if isinstance(below, (dict, list)) and len(above) < 9:
            yield from places(below, (*above, key))


def change(draw, path, content, tensors):
    """Change a checkpoint somewhere, and seal it again."""
    if draw.random() < 0.75:
        everywhere = [*places(content["state"])]
        for _ in range(draw.choice([1, 1, 1, 2])):
            place = draw.choice(everywhere if draw.random() < 0.5 else [some for some in everywhere if len(some) < 4])
            at = content["state"]
            with suppress(LookupError, TypeError):  # the first change may have taken the place of the second away
                for key in place[:-1]:
                    at = at[key]
                if draw.random() < 0.15:
                    del at[place[-1]]
                else:
                    at[place[-1]] = draw.choice(ODD)
    else:
        name = draw.choice([*tensors])
        changed = {**tensors, name: draw.choice(TENSORS)(tensors[name]).clone()}
        store.write_tensors(path / "state.safetensors", changed)
        content["files"]["state.safetensors"] = store.sha256(path / "state.safetensors")
    seal(path, content)


def seal(path, content):
    content["checksum"] = store._checksum(content)
    (path / "state.json").write_text(json.dumps(content))


@pytest.mark.parametrize("model", ["OneBP", "LightGCN"])
@pytest.mark.parametrize("number", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_a21_checkpoints_with_right_checksums_and_wrong_content(tiny, tmp_path, model, number):
    """Each is refused in one line or trained on to the end; the generator is the same each time."""
    tiny(model, epochs=2, output_dir=str(tmp_path / "sound")).fit()
    name = max((tmp_path / "sound" / "checkpoint").iterdir()).name
    text = (tmp_path / "sound" / "checkpoint" / name / "state.json").read_text()
    tensors, _ = store.read_tensors(tmp_path / "sound" / "checkpoint" / name / "state.safetensors")
    draw = random.Random(21)
    for _ in range(number):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "run")
        change(draw, tmp_path / "run" / "checkpoint" / name, json.loads(text), tensors)
        with suppress(UserError):
            tiny(model, epochs=3, resume=str(tmp_path / "run" / "checkpoint" / name)).fit()


@pytest.fixture
def checkpoint(tiny, tmp_path):
    tiny(epochs=1).fit()
    return max((tmp_path / "run" / "checkpoint").iterdir())


def refused(tiny, checkpoint, words):
    with pytest.raises(UserError, match=words):
        tiny(epochs=2, resume=str(checkpoint))


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "best.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a10_files_of_a_checkpoint_are_plain_files(tiny, checkpoint, tmp_path, name, kind):
    path = checkpoint / name
    shutil.move(path, tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "moved" if kind == "link" else "/dev/zero")
    refused(tiny, checkpoint, "there is no checkpoint|is a link|not a plain file")


def test_a10_a_tensor_is_taken_once(tiny, checkpoint):
    """A text of a megabyte could otherwise ask for a table of a gigabyte a hundred thousand times."""
    content = json.loads((checkpoint / "state.json").read_text())
    content["state"]["trainer"]["other_parameters"] = {"a": [{"$": "tensor", "of": "trainer.model.item_table"}] * 2}
    seal(checkpoint, content)
    refused(tiny, checkpoint, "damaged: KeyError")


@pytest.mark.parametrize("size", [2**40, 2**63, 17 << 20])
def test_a10_a_header_longer_than_its_file(tmp_path, size):
    (tmp_path / "x.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(store.DamagedError, match="a header of"):
        store.read_tensors(tmp_path / "x.safetensors")


def test_a10_a_file_larger_than_the_memory(tmp_path, monkeypatch):
    store.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1000)})
    monkeypatch.setattr(store.psutil, "virtual_memory", lambda: type("_", (), {"available": 1000}))
    with pytest.raises(UserError, match="more than the free memory"):
        store.read_tensors(tmp_path / "x.safetensors")


def test_a21_other_attributes_of_the_model_are_not_set(tiny, checkpoint):
    content = json.loads((checkpoint / "state.json").read_text())
    content["state"]["trainer"]["other_parameters"] = {"forward": 5}
    seal(checkpoint, content)
    refused(tiny, checkpoint, "forward: not a parameter of OneBP")


def test_a21_a_position_beyond_the_table_of_numpys_generator(tiny, checkpoint):
    content = json.loads((checkpoint / "state.json").read_text())
    content["state"]["generators"]["numpy"]["of"][2] = 10**6
    seal(checkpoint, content)
    refused(tiny, checkpoint, "not a state of numpy's generator")
