"""Loading of bundles: damaged files are refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_onebp import Recommender
from recbole_onebp.serving.bundle import read_bundle, read_fields
from recbole_onebp.util import files
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.hostile import KINDS, little_time, replace_file, reseal


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine") / "bundle"
    return made_bundle(path, bias=True, alpha=0.5, local=0.5, weights="log1p")


def answers_of(path, verify=True):
    rec = Recommender.load(path, verify=verify)
    return rec.recommend(rec.user_ids, k=5), rec.recommend_history([["i1", "i2"]], k=5), rec.title("i7")


def test_not_a_bundle(tmp_path):
    with pytest.raises(
        UserError, match=r"not a bundle: there is no manifest\.json; create one with recbole-onebp export"
    ):
        Recommender.load(tmp_path)
    with pytest.raises(UserError, match="no such folder; create one with recbole-onebp export"):
        Recommender.load(tmp_path / "none")
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=f"not a bundle but a run; create one with recbole-onebp export {tmp_path} "):
        Recommender.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not the manifest of a bundle"):
        Recommender.load(tmp_path)


def test_a21_a_name_that_no_folder_can_have(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="not a bundle"):
            Recommender.load(tmp_path / name)


def test_another_format_version(pristine, tmp_path):
    path = shutil.copytree(pristine, tmp_path / "copy")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 4}))
    with pytest.raises(UserError, match="a bundle of format version 4; this recbole_onebp reads 1, 2 and 3"):
        Recommender.load(path)


def test_an_edited_manifest(pristine, tmp_path):
    path = shutil.copytree(pristine, tmp_path / "copy")
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"beta": 0.9', '"beta": 0.8'))
    with pytest.raises(UserError, match=r"manifest\.json: damaged: it does not match its checksum"):
        Recommender.load(path)


def test_a_missing_file(pristine, tmp_path):
    path = shutil.copytree(pristine, tmp_path / "copy")
    (path / "item_ids.json").unlink()
    with pytest.raises(UserError, match=r"item_ids\.json: cannot be read: No such file"):
        Recommender.load(path)


def test_the_card_may_be_edited(pristine, tmp_path):
    path = shutil.copytree(pristine, tmp_path / "copy")
    (path / "MODEL_CARD.md").write_text("Mine.")
    assert answers_of(path) == answers_of(pristine)


FILES = st.sampled_from([
    "manifest.json", "item_encodings.npy", "item_bias.npy", "item_weight.npy", "user_encodings.npy",
    "history_start.npy", "history_item.npy", "item_ids.json", "user_ids.json", "item_fields.json", "local.indptr.npy",
    "local.indices.npy", "local.values.npy", "history_weight.npy",
])  # fmt: skip
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(pristine, name, change):
    path = pristine.parent / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(pristine, path)
    (path / name).write_bytes(change((path / name).read_bytes()))
    return path


def outcome(function, *arguments):
    """The result of a function, and the message of its UserError."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)


@FUZZ
@given(name=FILES, data=st.data())
def test_a_truncated_file_is_refused(pristine, name, data):
    size = (pristine / name).stat().st_size
    kept = data.draw(st.integers(0, size - 1 - (name == "manifest.json")))  # its last byte is the end of the line
    path = damaged(pristine, name, lambda content: content[:kept])
    with pytest.raises(UserError, match=name):
        Recommender.load(path)
    with pytest.raises(UserError, match=name):
        Recommender.load(path, verify=False)


@FUZZ
@given(name=FILES, data=st.data())
def test_a_flipped_bit_is_refused_or_harmless(pristine, name, data):
    size = (pristine / name).stat().st_size
    bits = data.draw(st.sets(st.integers(0, 8 * size - 1), min_size=1, max_size=3))

    def flip(content):
        content = bytearray(content)
        for bit in bits:
            content[bit // 8] ^= 1 << bit % 8
        return bytes(content)

    path = damaged(pristine, name, flip)
    found, refusal = outcome(answers_of, path)
    if refusal is None:
        assert name == "manifest.json"  # white space between its words
        assert found == answers_of(pristine)
    else:
        assert str(path) in refusal


@FUZZ
@given(name=FILES, data=st.data())
def test_damaged_headers_are_refused_without_checksums(pristine, name, data):
    """Without checksums the loader still checks format and shape."""
    head = data.draw(st.binary(min_size=1, max_size=80))
    path = damaged(pristine, name, lambda content: head + content[len(head) :])
    bundle, refusal = outcome(lambda: read_bundle(path, verify=False))
    if refusal is None:
        _, refusal = outcome(read_fields, bundle)
        assert bundle.item_encodings.shape == (60, 8)
    assert refusal is None or str(path) in refusal


# ------------------------------------------------------------------------------------------ right checksums, wrong rest


def resealed(pristine, tmp_path, change):
    """A copy with ``change(folder, manifest)`` applied and the checksums made right again."""
    path = Path(shutil.copytree(pristine, tmp_path / "copy"))
    manifest = json.loads((path / "manifest.json").read_text())
    change(path, manifest)
    reseal(path, manifest)
    return path


def refused(path):
    with little_time(), pytest.raises(UserError) as error:
        read_fields(Recommender.load(path).bundle)
    return str(error.value)


@pytest.mark.parametrize("name", ["../item_ids.json", "/dev/zero", "a/b", "..", "", "a\\b", "\0", "x" * 300])
def test_a10_a_name_that_leaves_the_folder(pristine, tmp_path, name):
    path = resealed(pristine, tmp_path, lambda path, manifest: manifest["files"].update({name: FILE}))
    assert "is not the name of a file in the same folder" in refused(path)


FILE = {"bytes": 0, "sha256": "0" * 64}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["item_ids.json", "item_encodings.npy", "history_start.npy", "local.values.npy"])
def test_a10_a_file_that_is_not_plain(pristine, tmp_path, name, kind):
    assert name in refused(resealed(pristine, tmp_path, lambda path, _: replace_file(path / name, kind)))


def test_a10_a_device_as_the_manifest(pristine, tmp_path):
    for kind in KINDS:
        path = Path(shutil.copytree(pristine, tmp_path / kind))
        replace_file(path / "manifest.json", kind)
        assert "manifest.json" in refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", [
    "item_encodings", "user_encodings", "item_bias", "item_weight", "local.values", "history_weight",
])  # fmt: skip
def test_a10_one_row_that_is_no_number_is_refused_by_name(pristine, tmp_path, name, value):
    def change(path, _):
        array = np.load(path / f"{name}.npy")
        array[7] = value
        np.save(path / f"{name}.npy", array)

    path = resealed(pristine, tmp_path, change)
    assert f"{name}.npy" in refused(path)
    with pytest.raises(UserError, match=name):
        read_bundle(path, verify=False)


def with_array(name, change):
    def apply(path, _):
        np.save(path / f"{name}.npy", change(np.load(path / f"{name}.npy")), allow_pickle=True)

    return apply


def with_json(name, value):
    return lambda path, _: (path / f"{name}.json").write_text(json.dumps(value))


def with_value(**values):
    return lambda _, manifest: manifest.update(values)


def with_number(place, number):
    def change(array):
        array[place] = number
        return array

    return change


def diagonal(path, _):
    """The first entry is that of the item itself."""
    start, item = np.load(path / "local.indptr.npy"), np.load(path / "local.indices.npy")
    item[0] = np.flatnonzero(np.diff(start))[0]
    np.save(path / "local.indices.npy", item)


ITEMS = [f"i{number}" for number in range(60)]
LOCAL = {"weight": 0.5, "recency": 0.0, "neighbors": 7, "reg": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_array("history_start", with_number(0, 1)), "history_start.npy: expected numbers that ascend"),
        (with_array("history_start", with_number(3, 0)), "history_start.npy: expected numbers that ascend"),
        (with_array("history_start", with_number(-1, 5)), "history_start.npy: expected numbers that ascend"),
        (with_array("history_start", with_number(-1, 2**62)), "history_start.npy: expected numbers that ascend"),
        (with_array("history_item", with_number(0, 60)), "history_item.npy: expected rows of the 60 items"),
        (with_array("history_item", with_number(0, -1)), "history_item.npy: expected rows of the 60 items"),
        (with_array("item_weight", with_number(0, 0)), "item_weight.npy: expected weights above 0"),
        (with_array("item_weight", with_number(0, -1)), "item_weight.npy: expected weights above 0"),
        (with_array("item_bias", lambda array: array[:-1]), "item_bias.npy: float32 (59,); expected float32 (60,)"),
        (with_array("item_encodings", lambda array: array[:-1]), "history_item.npy: expected rows of the 59 items"),
        (with_array("user_encodings", lambda array: array[:, :-1]), "user_encodings.npy: float32 (20, 7)"),
        (with_array("item_encodings", lambda array: array.astype(object)), "item_encodings.npy"),
        (with_array("item_encodings", lambda array: array.astype(">f4")), "item_encodings.npy"),
        (with_array("local.indptr", with_number(0, 1)), "local.indptr.npy: expected numbers that ascend from 0"),
        (with_array("local.indptr", with_number(9, 0)), "local.indptr.npy: expected numbers that ascend from 0"),
        (with_array("local.indptr", with_number(-1, 2**62)), "local.indptr.npy: expected numbers that ascend from 0"),
        (
            with_array("local.indptr", lambda array: np.concatenate(([0], np.full(60, array[-1])))),
            "local.indptr.npy: expected fewer than 60 entries for each item",
        ),
        (with_array("local.indptr", lambda array: array[:-1]), "local.indptr.npy: int64 (60,); expected int64 (61,)"),
        (with_array("local.indptr", lambda array: array.astype(np.int32)), "local.indptr.npy: int32"),
        (with_array("local.indices", with_number(-1, 60)), "local.indices.npy: expected rows of the 60 items"),
        (with_array("local.indices", with_number(0, -1)), "local.indices.npy: expected rows of the 60 items"),
        (
            with_array("local.indices", lambda array: array[::-1]),
            "local.indices.npy: expected ascending items for each",
        ),
        (with_array("local.indices", lambda array: array.astype(np.int64)), "local.indices.npy: int64"),
        (diagonal, "local.indices.npy: expected ascending items for each item, without the item itself"),
        (with_array("local.values", lambda array: array[:-1]), "local.values.npy: float32"),
        (
            with_array("history_weight", with_number(0, 0)),
            "history_weight.npy: expected weights that are each a number",
        ),
        (with_array("history_weight", with_number(0, -1)), "history_weight.npy: expected weights that are each a"),
        (with_array("history_weight", lambda array: array[:-1]), "history_weight.npy: float32"),
        (with_value(weights=None), "the manifest has only one of weights and history_weight.npy"),
        (
            lambda _, manifest: manifest["files"].pop("history_weight.npy"),
            "the manifest has only one of weights and history_weight.npy",
        ),
        (with_value(weights={"transform": "exp", "default": 1.0}), "weights: "),
        (with_value(weights={"transform": ["raw"], "default": 1.0}), "weights: "),
        (with_value(weights={"transform": "raw", "default": 0}), "weights: "),
        (with_value(weights="raw"), "weights: 'raw' is not allowed; expected null, or a transform, one of raw, log1p"),
        (with_value(local=None), "manifest.json: lists local.indptr.npy, but has no local"),
        (with_value(local={}), "local: {} is not allowed; expected null, or weight above 0"),
        (with_value(local={**LOCAL, "weight": 0}), "local: "),
        (with_value(local={**LOCAL, "weight": 1e13}), "local: "),
        (with_value(local={**LOCAL, "recency": -1}), "local: "),
        (with_value(local={**LOCAL, "neighbors": 2.5}), "local: "),
        (with_value(local={**LOCAL, "reg": "1"}), "local: "),
        (
            lambda _, manifest: manifest["files"].pop("local.values.npy"),
            "does not list all of local.indptr.npy, local.",
        ),
        (with_value(score="cosine"), "item_encodings.npy: expected rows of length 1"),
        (with_value(score="sum"), "score: 'sum' is not allowed; expected dot or cosine"),
        (with_value(aggregation="mean"), "aggregation: 'mean' is not allowed"),
        (with_value(aggregation={"rule": "mean", "beta": 2, "alpha": 0}), "aggregation: "),
        (with_value(aggregation={"rule": "mean", "beta": True, "alpha": 0}), "aggregation: "),
        (with_value(embedding_size=True), "embedding_size: True is not allowed"),
        (with_value(embedding_size=2**40), "embedding_size: "),
        (with_value(title_field=5), "title_field: 5 is not allowed"),
        (with_value(title_field="name"), "has no field 'name', the title_field"),
        (with_value(ordered="no"), "ordered: 'no' is not allowed"),
        (with_value(n_users=21), "n_users: 21, but the arrays have 20"),
        (with_value(dtype="float16"), "item_encodings.npy: float32, but the manifest says float16"),
        (with_value(files=[]), "files: [] is not allowed"),
        (with_value(created="\x1b[2J"), r"created: '\x1b[2J' is not allowed"),
        (lambda _, manifest: manifest.pop("aggregation"), "has no aggregation"),
        (with_json("item_ids", ITEMS[:-1]), "item_ids.json: damaged: expected a list of 60 distinct ids"),
        (with_json("item_ids", [*ITEMS[:-1], "i0"]), "item_ids.json: damaged: expected a list of 60 distinct ids"),
        (with_json("item_ids", [*ITEMS[:-1], 59]), "item_ids.json: damaged: expected a list of 60 distinct ids"),
        (with_json("item_ids", [*ITEMS[:-1], "\ud800"]), "item_ids.json: damaged: expected a list of 60 distinct ids"),
        (with_json("item_ids", [*ITEMS[:-1], "x" * 200_000]), "at most 126976 are read"),
        (with_json("item_fields", {"title": ITEMS[:-1]}), "item_fields.json: damaged: expected fields with 60 values"),
        (with_json("item_fields", {"title": ITEMS, "x": ["x" * 2_000_000]}), "at most 1048576 are read"),
        (with_json("item_ids", json.loads("[" * 65 + "]" * 65)), "nested more than 64 deep"),
    ],
)
def test_a10_what_does_not_fit(pristine, tmp_path, change, words):
    assert words in refused(resealed(pristine, tmp_path, change))


# ------------------------------------------------------------------------------------------------------------ replacing


def test_a15_only_a_bundle_is_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UserError, match="exists already and is not a bundle"):
        made_bundle(mine, replace=True)
    bundle = made_bundle(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(UserError, match="exists already and is not a folder"):
        made_bundle(tmp_path / "link", replace=True)
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of a bundle"):
        made_bundle(bundle, replace=True)
    (bundle / "notes.txt").unlink()
    (bundle / "manifest.json").write_text("damaged")
    made_bundle(bundle, replace=True, n_items=70)
    assert Recommender.load(bundle).n_items == 70
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "link", "mine"]


def test_a18_what_a_killed_export_leaves_is_removed_by_the_next(tmp_path):
    """Only folders of processes that have ended, and only ours."""
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    gone, stays = [], []
    for name, is_ours in ((f"{dead}.tmp", True), (f"{dead}.old", True), (f"{dead}0.tmp", False), ("1.tmp", True)):
        folder = tmp_path / f".bundle.{name}"
        folder.mkdir()
        (folder / "item_ids.json").write_text("[]")
        if is_ours:
            files.mark_folder(folder, "bundle")
        (gone if is_ours and name != "1.tmp" else stays).append(folder)
    made_bundle(tmp_path / "bundle", replace=True)
    assert not any(folder.exists() for folder in gone)
    assert all((folder / "item_ids.json").exists() for folder in stays)


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("moment", range(4))
def test_a18_a_killed_replacement_leaves_a_bundle(tmp_path, monkeypatch, swaps, moment):
    """The process ends at the n-th of the calls that rename or remove."""
    bundle = made_bundle(tmp_path / "bundle")
    child = os.fork()
    if child == 0:
        left = moment

        def ending(call):
            def counted(*arguments, **keywords):
                nonlocal left
                if left == 0:
                    os._exit(0)
                left -= 1
                return call(*arguments, **keywords)

            return counted

        try:
            files._exchange = ending(files._exchange) if swaps else lambda *_: False
            os.replace, os.rename, shutil.rmtree = map(ending, (os.replace, os.rename, shutil.rmtree))
            made_bundle(bundle, replace=True, n_items=70)
        finally:
            os._exit(0)
    os.waitpid(child, 0)  # not wait(): the process of the tests may have other children
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert Recommender.load(bundle).n_items in (60, 70)
    made_bundle(bundle, replace=True, n_items=80)
    assert Recommender.load(bundle).n_items == 80
