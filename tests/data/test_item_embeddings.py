"""Ready embeddings of items: what a run makes of them, and one line for each wrong file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recbole_onebp
from recbole_onebp import Recommender, cli
from recbole_onebp.data.item_embeddings import read_embeddings
from recbole_onebp.data.item_features import item_fields
from recbole_onebp.util.errors import UserError
from support.films import N_FILMS, N_GENRES, write_films

TOKENS = np.array(["[PAD]", "f0", "f1", "f2", "f3"])
PICTURES = np.eye(N_GENRES, dtype=np.float32)[np.arange(N_FILMS) % N_GENRES]
"""Of a film: its genre, which decides who takes it."""


def write(folder: Path, rows: np.ndarray, ids: str | list[str]) -> Path:
    path = folder / "films.picture.npy"
    np.save(path, rows, allow_pickle=True)
    text = ids if isinstance(ids, str) else "".join(f"{one}\n" for one in ids)
    path.with_suffix(".ids").write_text(text)
    return path


@pytest.fixture
def films(tmp_path):
    """Films with the genre as a ready embedding, and without a ``.item`` file."""
    keys = write_films(tmp_path)
    (tmp_path / "films" / "films.item").unlink()
    write(tmp_path / "films", PICTURES, [f"f{film}" for film in range(N_FILMS)])
    sizes = {"embedding_size": 8, "n_shared_negatives": 16, "train_batch_size": 32, "learning_rate": 0.02, "epochs": 10}
    return {**keys, **sizes, "item_features": "all", "local": "none"}


def test_rows_are_those_of_the_ids(tmp_path):
    path = write(tmp_path, np.array([[1, 2], [3, 4], [5, 6]], np.float16), "f3\r\nf9\nf1")
    rows, has_row = read_embeddings(path, TOKENS)
    assert rows.tolist() == [[0, 0], [0, 0], [5, 6], [0, 0], [1, 2]]
    assert has_row.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (np.ones((2, 3)), ["f0"], r"films\.picture\.ids: 1 ids for the 2 rows of films\.picture\.npy"),
        (np.ones((2, 3)), ["f0", "f0"], r"films\.picture\.ids, line 2: item f0 again"),
        (np.ones((2, 3)), "f0\n\n", r"films\.picture\.ids, line 2: empty"),
        (np.ones((2, 3)), ["x", "y"], "none of its ids is an item of the data set, such as f0"),
        (np.ones((1, 3)), ["[PAD]"], "none of its ids is an item"),
        (
            np.array([[1.0, 2], [3, np.nan]]),
            ["f0", "f1"],
            r"picture\.npy: row 1 \(from 0\), of item f1: a value is not",
        ),
        (np.array([[1.0, np.inf]]), ["f0"], r"picture\.npy: row 0 \(from 0\), of item f0: a value is not a finite"),
        (np.array([[1e300]]), ["f0"], "not a finite float32 number"),
        (np.ones((2, 3), int), ["f0", "f1"], r"int64 \(2, 3\); expected float16 or float32 or float64"),
        (np.ones((2, 3), ">f4"), ["f0", "f1"], "expected float16 or float32 or float64"),
        (np.ones(2), ["f0", "f1"], r"float64 \(2,\); expected"),
        (np.ones((2, 0)), ["f0", "f1"], r"\(2, 0\) is empty; expected a row for each item"),
        (np.array([[{}]]), ["f0"], r"object \(1, 1\); expected"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, rows, ids, message):
    with pytest.raises(UserError, match=message):
        read_embeddings(write(tmp_path, rows, ids), TOKENS)


def test_missing_damaged_and_linked_files_are_one_line(tmp_path):
    path = write(tmp_path, np.ones((2, 3)), ["f0", "f1"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="do not fit an array"):
        read_embeddings(path, TOKENS)
    path = write(tmp_path, np.ones((2, 3)), ["f0", "f1"])
    path.with_suffix(".ids").rename(tmp_path / "ids")
    with pytest.raises(UserError, match=r"films\.picture\.ids: cannot be read: No such file"):
        read_embeddings(path, TOKENS)
    path.with_suffix(".ids").symlink_to(tmp_path / "ids")
    with pytest.raises(UserError, match=r"films\.picture\.ids: is a link"):
        read_embeddings(path, TOKENS)


def test_items_are_made_of_them_without_a_file_of_items(films):
    run = recbole_onebp.build("OneBP", "films", config_dict=films)
    (field,) = item_fields(run.dataset)
    assert (field.name, field.tokens, field.matrix.shape) == ("picture", None, (N_FILMS + 1, N_GENRES))
    np.testing.assert_allclose(field.mean, PICTURES.mean(axis=0), atol=1e-6)
    assert run.fit().test_among["cold"]["recall@5"] > 0.8  # as with genres in test_tower.py: at random it is half


def test_items_without_a_row_have_no_value(films):
    write(Path(films["data_path"]) / "films", PICTURES[:60], [f"f{film}" for film in range(60)])
    (field,) = item_fields(recbole_onebp.build("ContentKNN", "films", config_dict=films).dataset)
    has_values = np.diff(field.matrix.indptr)[1:] > 0
    assert has_values.sum() == 60
    length = np.sqrt((field.matrix.toarray() ** 2).sum(axis=1))[1:][has_values]
    assert np.sqrt((length**2).mean()) == pytest.approx(1, abs=1e-6)


def test_a_bundle_takes_new_items_with_embeddings(films, tmp_path):
    recbole_onebp.build("OneBP", "films", config_dict=films).fit()
    assert cli.main(["export", films["output_dir"], str(tmp_path / "bundle")]) == 0
    rec = Recommender.load(tmp_path / "bundle")
    rec.add_items({"new": {"picture": PICTURES[3].tolist()}})
    lists = [[item for item, _ in rec.recommend([f"u{user}"], k=5)[0]] for user in range(3, 60, N_GENRES)]
    assert sum("new" in items for items in lists) >= 8
    with pytest.raises(UserError, match="item other: picture: expected 6 finite numbers"):
        rec.add_items({"other": {"picture": [1.0, 2.0]}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"item_features": ["genres"]}, "there is no field genres; loaded are picture"),
        ({"item_features": "none", "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]}}, "no file"),
    ],
)
def test_fields_that_are_not_there_are_one_line(films, keys, message):
    with pytest.raises(UserError, match=message):
        recbole_onebp.build("OneBP", "films", config_dict={**films, **keys})


def test_a_field_of_both_files_is_one_line(films, tmp_path):
    write_films(tmp_path / "other")
    for path in (tmp_path / "films").glob("films.picture.*"):
        path.rename(tmp_path / "other" / "films" / path.name.replace("picture", "genres"))
    with pytest.raises(UserError, match=r"films\.item has a field genres too"):
        recbole_onebp.build("OneBP", "films", config_dict={**films, "data_path": str(tmp_path / "other")})


def test_a_run_is_not_resumed_with_other_embeddings(films, tmp_path):
    keys = {**films, "epochs": 2, "output_dir": str(tmp_path / "out")}
    recbole_onebp.build("OneBP", "films", config_dict=keys).fit()
    write(Path(films["data_path"]) / "films", PICTURES + 1, [f"f{film}" for film in range(N_FILMS)])
    with pytest.raises(UserError, match="embeddings picture"):
        recbole_onebp.build("OneBP", "films", config_dict={**keys, "epochs": 3, "resume": "auto"})
