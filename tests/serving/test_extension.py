"""``add-items``: a bundle with new items from a file."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.serving.ann import Index
from recbole_onebp.serving.bundle import read_bundle
from recbole_onebp.serving.tables import Embeddings, ItemTable
from support.bundles import made_bundle

NEW = {
    "new 1": {"genres": ["g1", "g3"], "studio": "s 1", "year": 1994},
    "new 2": {"genres": ["g0"], "studio": "s 0"},
}
CSV = 'title,item_id,genres,year,studio\n"Film, the first",new 1,g1 g3,1994,s 1\nSecond,new 2,g0,,s 0\n'
JSON = [{"item_id": "new 1", "title": "Film, the first", **NEW["new 1"]}, {"item_id": "new 2", **NEW["new 2"]}]
FORMS = {
    "items.csv": CSV,
    "items.tsv": "title\titem_id\tgenres\tyear\tstudio\nA\tnew 1\tg1 g3\t1994\ts 1\nB\tnew 2\tg0\t\ts 0\n",
    "items.jsonl": "".join(f"{json.dumps(row)}\n\n" for row in JSON),
}


@pytest.fixture
def bundle(tmp_path):
    return made_bundle(tmp_path / "bundle", features=True, bias=True, alpha=0.5, score="cosine", local=2.0)


def written(tmp_path, text, name="items.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize("name", FORMS)
def test_a_bundle_with_new_items_answers_as_if_they_were_added(bundle, tmp_path, capsys, name):
    assert main(["add-items", str(bundle), written(tmp_path, FORMS[name], name), "--output", str(tmp_path / "b2")]) == 0
    assert capsys.readouterr().out == f"added 2 items; wrote {tmp_path / 'b2'}\n"
    expected, found = Recommender.load(bundle), Recommender.load(tmp_path / "b2")
    assert expected.n_items == 60
    expected.add_items(NEW)
    assert found.item_ids == expected.item_ids
    for user in ("u1", "u2"):
        assert found.recommend([user], k=62) == expected.recommend([user], k=62)
    for rec in (expected, found):
        rec.update([("u1", "new 1"), ("fresh", "new 2"), ("fresh", "i3")])
    assert found.recommend(["u1", "fresh"], k=62) == expected.recommend(["u1", "fresh"], k=62)
    assert found.explain("u1", "new 2").score == expected.explain("u1", "new 2").score
    assert (
        found.title("new 1")
        == {"items.csv": "Film, the first", "items.tsv": "A", "items.jsonl": "Film, the first"}[name]
    )
    assert found.fields("new 1")["genres"] == "g1 g3"
    assert found.fields("new 2")["year"] == ""
    assert found.bundle.manifest["n_items"] == 62
    assert (tmp_path / "b2" / "MODEL_CARD.md").read_text() == (bundle / "MODEL_CARD.md").read_text()


def test_the_bundle_itself_is_replaced_and_takes_more(bundle, tmp_path):
    open_before = Recommender.load(bundle)
    assert main(["add-items", str(bundle), written(tmp_path, CSV)]) == 0
    more = 'item_id,genres\nnewer,g2\n"new 1",g2\n'
    assert main(["add-items", str(bundle), written(tmp_path, more)]) == 0
    assert Recommender.load(bundle).item_ids[60:] == ["new 1", "new 2", "newer"]
    assert len(open_before.recommend(["u1"])[0]) == 10  # the old files stay open


def test_what_cannot_be_added_is_named(bundle, tmp_path, capsys):
    text = "item_id,genres\ni3,g1\nempty,nothing\nnew,g1 other\n"
    assert main(["add-items", str(bundle), written(tmp_path, text)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "not added: item i3 is in the bundle already", "not added: item empty has no value that counts in the bundle",
        "unknown value: nothing", "unknown value: other",
    ]  # fmt: skip
    assert Recommender.load(bundle).item_ids[60:] == ["new"]


def test_float16_is_kept(tmp_path):
    path = made_bundle(tmp_path / "bundle", features=True, dtype="float16", score="cosine")
    assert main(["add-items", str(path), written(tmp_path, CSV)]) == 0
    assert read_bundle(path).item_encodings.dtype == np.float16


def test_files_with_the_old_items_alone_are_left_out(tmp_path, capsys):
    pytest.importorskip("faiss")
    table = ItemTable(Embeddings(read_bundle(made_bundle(tmp_path / "made")).item_encodings), None)
    path = made_bundle(tmp_path / "bundle", features=True, others={"index.faiss": Index.build(table).save})
    assert main(["add-items", str(path), written(tmp_path, CSV)]) == 0
    assert "left out: index.faiss" in capsys.readouterr().err
    assert not (path / "index.faiss").exists()
    assert Recommender.load(path).n_items == 62


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "item_id,genre\nx,g1\n", "a.csv, line 2: unknown column 'genre'; did you mean genres?"),
        ("a.csv", "item,genres\nx,g1\n", "a.csv, line 2: unknown column 'item'; did you mean item_id?"),
        ("a.csv", "genres\ng1\n", "a.csv, line 2, column item_id: 'None' is no id"),
        ("a.csv", "item_id,genres\n,g1\n", "a.csv, line 2, column item_id: '' is no id"),
        ("a.csv", "item_id,genres\nx,g1\n\nx,g2\n", "line 4, column item_id: item x is also in"),
        ("a.csv", "item_id,genres\nx,g1,g2\n", "a.csv, line 2: has 3 columns; expected 2"),
        ("a.csv", "item_id,genres,genres\nx,g1,g2\n", "a.csv, line 1: column 'genres' occurs twice"),
        ("a.csv", 'item_id,genres\nx,"g1\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", "item_id,year\nx,late\n", "a.csv, line 2: item x: year: 'late' is not allowed: expected numbers"),
        ("a.csv", "item_id,year\nx,nan\n", "a.csv, line 2: item x: year: expected 1 finite numbers"),
        ("a.csv", "item_id,genres\n", "a.csv: holds no item"),
        ("a.csv", "", "a.csv: holds no item"),
        ("a.csv", b"item_id,genres\n\xff,g1\n", "a.csv: damaged: not UTF-8"),
        (
            "a.csv",
            "item_id,genres\nx,zzz\n",
            "a.csv: no item can be added: item x has no value that counts in the bundle",
        ),
        ("a.txt", "item_id,genres\nx,g1\n", "a.txt: expected a file that ends in .csv, .tsv, .jsonl, .ndjson"),
        ("a.jsonl", '{"item_id": "x", "genres": [1.5]}\n', "line 1: item x: genres: .* expected a text or a list"),
        ("a.jsonl", '{"item_id": "x", "genres": "g1"}\n[]\n', "a.jsonl, line 2: expected an object"),
        ("a.jsonl", '{"item_id": "x", "genres": \n', "a.jsonl, line 1: no JSON"),
        ("a.jsonl", '{"item_id": true, "genres": "g1"}\n', "a.jsonl, line 1, column item_id: 'True' is no id"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_and_change_nothing(bundle, tmp_path, capsys, name, text, message):
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    assert main(["add-items", str(bundle), written(tmp_path, text, name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message.replace("[", r"\["), line), line
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before


def test_bundles_without_features_and_existing_folders_are_refused(tmp_path, bundle, capsys):
    plain = made_bundle(tmp_path / "plain")
    assert main(["add-items", str(plain), written(tmp_path, CSV)]) == 2
    assert "items have no features in this bundle" in capsys.readouterr().err
    assert main(["add-items", str(bundle), written(tmp_path, CSV), "--output", str(plain)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_texts_may_hold_letters_that_end_a_line_elsewhere(bundle, tmp_path):
    text = "A\u2028B\x85C"
    rows = {"items.jsonl": json.dumps({"item_id": "new", "title": text, "genres": ["g1"]}, ensure_ascii=False) + "\n",
            "items.csv": f'item_id,title,genres\nnew,"{text}",g1\n'}  # fmt: skip
    for name, content in rows.items():
        out = tmp_path / f"of {name}"
        assert main(["add-items", str(bundle), written(tmp_path, content, name), "--output", str(out)]) == 0
        assert Recommender.load(out).title("new") == text


def test_another_bundle_is_replaced_by_force_alone(bundle, tmp_path, capsys):
    command = ["add-items", str(bundle), written(tmp_path, CSV), "--output", str(tmp_path / "b2")]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists already; choose another, or replace it with --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert Recommender.load(tmp_path / "b2").n_items == 62
