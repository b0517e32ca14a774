"""Loading of bundles: damaged files are refused."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_onebp import Recommender
from recbole_onebp.serving.bundle import read_bundle, read_fields
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return made_bundle(tmp_path_factory.mktemp("pristine") / "bundle", bias=True, alpha=0.5)


def answers_of(path, verify=True):
    rec = Recommender.load(path, verify=verify)
    return rec.recommend(rec.user_ids, k=5), rec.recommend_history([["i1", "i2"]], k=5), rec.title("i7")


def test_not_a_bundle(tmp_path):
    with pytest.raises(
        UserError, match=r"not a bundle: there is no manifest\.json; create one with recbole-onebp export"
    ):
        Recommender.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not the manifest of a bundle"):
        Recommender.load(tmp_path)


def test_another_format_version(pristine, tmp_path):
    path = shutil.copytree(pristine, tmp_path / "copy")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(UserError, match="a bundle of format version 2; this recbole_onebp reads version 1"):
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
    "history_start.npy", "history_item.npy", "item_ids.json", "user_ids.json", "item_fields.json",
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
