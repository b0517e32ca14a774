"""New items from their features: what the item tower makes of them, in a bundle that needs numpy alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import recbole_onebp
from recbole_onebp import Recommender
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.films import GENRES, write_films


@pytest.fixture(scope="module", params=[{}, {"score": "dot", "item_bias": False}], ids=["cosine", "dot"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    keys = {"epochs": 8, "embedding_size": 16, "item_features": "all", "train_batch_size": 32, **request.param}
    films = write_films(folder)
    recbole_onebp.build("OneBP", "films", config_dict={**films, **keys, "learning_rate": 0.02}).fit()
    export(films["output_dir"], folder / "bundle")
    return folder / "bundle"


def features(film: int) -> dict:
    return {"genres": GENRES[film], "year": 1950 + film}


def test_an_item_from_features_is_like_the_cold_one_with_the_same(bundle):
    rec = Recommender.load(bundle)
    report = rec.add_items({"new": features(85), "empty": {"genres": ["nothing"]}, "f3": features(3)})
    assert (report.added, report.unknown) == (["new"], ["nothing"])
    assert report.refused == {
        "empty": "has no value that counts in the bundle",
        "f3": "is in the bundle already",
    }
    cold, new = (rec.item_ids.index(item) for item in ("f85", "new"))
    rows = rec._items.embeddings.rows(np.array([cold, new]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    if rec._items.bias is not None:
        assert rec._items.bias[new] == pytest.approx(rec._items.bias[cold], abs=1e-5)
    scores = dict(rec.recommend(["u1"], k=100, exclude_seen=False)[0])
    local = sum(part.local for part in rec.explain("u1", "f85").parts)  # of items that training knew of
    assert scores["new"] == pytest.approx(scores["f85"] - local, abs=1e-4)
    assert rec.update([("u1", "new")]).applied == 1
    assert rec.history("u1")[-1] == "new"


def test_the_card_of_a_model_with_features_says_so(bundle):
    assert "- The model knows who interacted with what, and the features" in (bundle / "MODEL_CARD.md").read_text()


def test_items_from_users_and_from_features_come_together(bundle):
    rec = Recommender.load(bundle)
    report = rec.add_items({"taken": ["u1", "u7"], "described": {"genres": "g1"}, "numbers": {"year": [1990.0]}})
    assert report.added == ["taken", "described", "numbers"]
    assert "taken" in rec.history("u7")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"genre": ["g1"]}, "item new: no field 'genre'; the features of items are genres, year"),
        ({"year": "late"}, "item new: year: 'late' is not allowed: expected numbers"),
        ({"year": [1, 2]}, "item new: year: expected 1 finite numbers, got"),
        ({"year": float("nan")}, "item new: year: expected 1 finite numbers, got nan"),
        ({"genres": [1.5]}, "item new: genres: .* expected a text or a list of texts"),
    ],
)
def test_bad_features_are_one_line_and_add_nothing(bundle, values, message):
    rec = Recommender.load(bundle)
    before = rec.n_items
    with pytest.raises(UserError, match=message):
        rec.add_items({"good": features(1), "new": values})
    assert rec.n_items == before


def test_a_bundle_without_features_says_so(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle"))
    with pytest.raises(UserError, match="items have no features in this bundle; train with item_features"):
        rec.add_items({"new": {"genres": ["g1"]}})


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields[0]["values"].pop(),
        lambda fields: fields[0].update(values=["g0"] * len(fields[0]["values"])),
        lambda fields: fields[0]["weight"].__setitem__(0, 1e30),
        lambda fields: fields[1].pop("mean"),
        lambda fields: fields.append(fields[0]),
        lambda fields: fields.__setitem__(0, 3),
    ],
)
def test_damaged_features_are_one_line(bundle, tmp_path, change):
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "item_values.json"
    fields = json.loads(path.read_text())
    change(fields["fields"])
    text = json.dumps(fields)
    path.write_text(text)
    manifest_path = path.with_name("manifest.json")
    manifest = json.loads(manifest_path.read_text())
    manifest["files"][path.name]["bytes"] = len(text.encode())
    from recbole_onebp.serving.manifest import checksum_of

    manifest.pop("checksum")
    manifest["checksum"] = checksum_of(manifest)
    manifest_path.write_text(json.dumps(manifest))
    rec = Recommender.load(tmp_path / "bundle", verify=False)
    with pytest.raises(UserError, match="damaged: expected fields with as many weights as values"):
        rec.add_items({"new": {"genres": ["g1"]}})
