"""Whatever a file holds, it is read or refused: a UserError of one line, soon, and in the memory that it deserves."""

from __future__ import annotations

import io
import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from recbole_onebp.cli import main
from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.config import RunConfig
from recbole_onebp.data.cache import State
from recbole_onebp.data.interactions import InteractionFiles
from recbole_onebp.data.sources.atomic_folder import is_complete
from recbole_onebp.data.sources.catalogue import CATALOGUE, mirrored
from recbole_onebp.data.sources.convert import Conversion, convert
from recbole_onebp.data.sources.published import read_pairs
from recbole_onebp.data.sources.tables import TableFormat
from recbole_onebp.experiments.compare.outcome import outcome_of
from recbole_onebp.experiments.compare.spec import ComparisonSpec
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.experiments.tune.search_spec import SearchSpec
from recbole_onebp.run.build import load_data, parse_config, read_config
from recbole_onebp.run.checkpoint import store
from recbole_onebp.run.checkpoint.model_file import read_model
from recbole_onebp.run.checkpoint.resume import find_checkpoint
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.serving.batch import read_ids
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.util.errors import UserError
from support.limits import little_memory

MORE = {False: 1, True: 40}
"""The deeper settings, behind the mark ``slow``, try so many times as much."""
deeper = pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "deep"])


def fuzz(test, deep, examples, **strategies):
    """Run a test over what is drawn, the same each time."""

    @settings(
        max_examples=examples * MORE[deep],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )
    @given(**strategies)
    def run(**drawn):
        test(**drawn)

    run()


def refusal(function, *arguments):
    """What a function says of its input; None if it takes it.  Any other exception is a defect."""
    try:
        function(*arguments)
    except UserError as error:
        line = str(error)
        assert line.isprintable()
        assert 10 < len(line) < 2100
        return line
    return None


# --------------------------------------------------------------------------------------------------------- interactions

ROWS = [(f"u{user}", f"i{(user * 7 + step * 3) % 11}", 1 + step % 5, 978300000 + step) for user in range(8)
        for step in range(6)]  # fmt: skip
COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
TITLES = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
HOSTILE = [
    b"", b"\0", b'"', b"'", b'""', b"\r", b"\n", b"\r\n", b"\n\n", b"\t", b",", b"::", b";", b" ", b"\\", b"#", b"\xff",
    b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", "\u2028\x85\x0b\x0c\x1c".encode(), "é\u202e😀".encode(),
    b"nan", b"NA", b"null", b"None", b"inf", b"-inf", b"1e999", b"-1", b"0x1f", b"9" * 400, b"1_000", b"2024-01-01",
    b"[PAD]", b"user_id:token", b":token", b":float", b":token_seq", b":float_seq", b":", b"rating:float",
    b"x" * 140_000, b"\x1b[2J\x07", b"=cmd()", b"{}", b"[1, 2]", b"\x1f", b"\t" * 300, b"," * 300,
]  # fmt: skip


def text_of(separator, header):
    return b"\n".join(separator.join(map(str, row)).encode() for row in [header, *ROWS]) + b"\n"


@st.composite
def damaged(draw, content):
    """A file's bytes with some pieces cut out and others put in; seldom only noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        # Most of what matters is at the beginning, the header, and at the end.
        place = draw(st.one_of(st.integers(0, min(90, len(content))), st.integers(0, len(content))))
        cut = draw(st.sampled_from([0, 0, 1, 4, 30, len(content)]))
        new = draw(st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=8)))
        content = content[:place] + new + content[place + cut :]
    return content


def table_bytes(write, frame):
    buffer = io.BytesIO()
    write(pa.Table.from_pandas(frame, preserve_index=False), buffer)
    return buffer.getvalue()


FRAME = pd.DataFrame(ROWS, columns=COLUMNS)
PARQUET = table_bytes(parquet.write_table, FRAME)
ARROW = table_bytes(feather.write_feather, FRAME)


def load(data_path, name="hostile", **keys):
    given_keys = {
        "model": "OneBP", "dataset": name, "data_path": str(data_path), "load_col": None, "epochs": 0,
        "show_progress": False, "eval_args": {"order": "RO", "group_by": "user", "split": {"RS": [0.6, 0.2, 0.2]}},
        "topk": [2], "valid_metric": "MRR@2", **keys,
    }  # fmt: skip
    config = read_config(None, given_keys)
    return load_data(config)


@deeper
@pytest.mark.parametrize(
    ("suffix", "content"),
    [("", text_of("\t", TITLES)), (".csv", text_of(",", COLUMNS)), (".parquet", PARQUET), (".arrow", ARROW)],
    ids=["atomic", "csv", "parquet", "arrow"],
)
def test_interactions(tmp_path, deep, suffix, content):
    path = tmp_path / "hostile" / f"hostile.inter{suffix}"
    path.parent.mkdir()
    path.write_bytes(content)
    dataset = load(tmp_path)[0]
    assert (dataset.user_num, dataset.item_num, dataset.inter_num) == (9, 12, 48)

    def take(content):
        path.write_bytes(content)
        refusal(load, tmp_path)

    fuzz(take, deep, 25, content=damaged(content))


@deeper
@pytest.mark.parametrize("kind", ["user", "item"])
def test_features(tmp_path, deep, kind):
    path = tmp_path / "hostile" / f"hostile.{kind}"
    path.parent.mkdir()
    path.with_suffix(".inter").write_bytes(text_of("\t", TITLES))
    content = f"{kind}_id:token\tname:token_seq\tage:float\n".encode()
    content += b"".join(f"{kind[0]}{number}\ta b\t{number}\n".encode() for number in range(8))

    def take(content):
        path.write_bytes(content)
        return refusal(load, tmp_path)

    assert take(content) is None
    fuzz(take, deep, 15, content=damaged(content))


# ------------------------------------------------------------------------------------------------------------- convert


def zipped(member, content, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


GROUPLENS = text_of("\t", COLUMNS).split(b"\n", 1)[1]
TO_CONVERT = {
    ".csv": text_of(",", COLUMNS),
    ".tsv": text_of("\t", COLUMNS),
    ".dat": text_of("::", COLUMNS),
    ".parquet": PARQUET,
    ".zip": zipped("ml/u.data", GROUPLENS),
}


@deeper
@pytest.mark.parametrize("suffix", TO_CONVERT)
def test_convert(tmp_path, deep, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(TO_CONVERT[suffix])
    assert refusal(convert, [path], "mine", tmp_path) is None

    def take(content, conversion):
        path.write_bytes(content)
        refusal(partial(convert, [path], "mine", tmp_path, conversion, force=True))
        assert (tmp_path / "mine" / "manifest.json").is_file()  # what was there, or what is now

    conversions = st.builds(
        Conversion,
        bad_rows=st.sampled_from(["drop", "refuse"]),
        min_rating=st.sampled_from([None, 3.0]),
        k_core=st.sampled_from([0, 3]),
        split=st.sampled_from(["none", "ratio", "leave_one_out", "time"]),
    )
    fuzz(take, deep, 25, content=damaged(TO_CONVERT[suffix]), conversion=conversions)


@deeper
def test_forms_of_tables(tmp_path, deep):
    path = tmp_path / "mine.csv"
    path.write_bytes(TO_CONVERT[".csv"])
    words = st.one_of(st.sampled_from([piece.decode("latin-1") for piece in HOSTILE]), st.text(max_size=4))

    def take(separator, encoding, column, header):
        form = TableFormat({"user_id": column}, separator, header, encoding)
        refusal(convert, [path], "mine", tmp_path, Conversion(form=form))

    encodings = st.sampled_from(
        ["utf-8", "utf-16", "utf-7", "idna", "punycode", "hex", "undefined", "no such", "cp037"]
    )
    fuzz(take, deep, 25, separator=words.filter(bool), encoding=encodings, column=words, header=st.booleans())


@pytest.mark.parametrize(
    "member",
    [
        zipped("ml/u.data", b"1\t2\t3\t4\n" * (1 << 25)),
        zipped("ml/u.data", b"1" * (1 << 28), zipfile.ZIP_BZIP2),
    ],
    ids=["deflate", "bzip2"],
)
def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path, member):
    path = tmp_path / "bomb.zip"
    path.write_bytes(member)
    with little_memory(150):
        assert "times its size" in refusal(convert, [path], "bomb", tmp_path)


# ------------------------------------------------------------------------------------------------------ configurations

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.dates(),
        st.sampled_from(["OneBP", "ml-100k", "__import__('os').system('touch evaluated')", "[5,inf)", "default"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = st.sampled_from([
    *RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k"}).final_config_dict,
    "split_seed", "refit", "teacher",
])  # fmt: skip
CONFIG = b"model: OneBP\ndataset: ml-100k\nlearning_rate: 1e-3\ntopk: [5, 10]\neval_args:\n  order: RO\n"


def unfolding(depth, merge=False):
    """A few lines that stand for 9 ** depth values."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [1]"]
    for number in range(1, depth):
        nine = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {{<<: [{nine}]}}" if merge else f"a{number}: &a{number} [{nine}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: !!python/name:os.system", "could not determine a constructor"),
        ("model: !!python/object/apply:os.system ['touch evaluated']", "could not determine a constructor"),
        (unfolding(9), "more than 100,000 values"),
        (unfolding(9, merge=True), "more than 100,000 values"),
        ("topk: &a [*a]", "more than 100,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a whole number of 5,000 digits"),
        ("seed: 0x" + "f" * 5000, "a whole number of 5,002 digits"),
        ("seed: 2024-99-99", "month must be in"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("a: 1\n" * 300_000, "larger than 1,048,576 bytes"),
        ("- a", "expected lines of 'key: value'"),
        ("", "expected lines of 'key: value'"),
        ("a: \0", "not YAML"),
        ("1: 2", "the key 1 is no text"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with little_memory(500):
        assert words in refusal(RunConfig.read_files, ["a.yaml"])
    assert not Path("evaluated").exists()


def test_numbers_are_read_as_recbole_reads_them(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1e-3, 1E5, -2.5e3, .5, 1., 3, 0x1f, 1e, e3, 1_0.5]")
    read = [0.001, 1e5, -2500.0, 0.5, 1.0, 3, 31, "1e", "e3", 10.5]
    assert RunConfig.read_files(["a.yaml"]) == {"a": read}
    assert yaml.load((tmp_path / "a.yaml").read_text(), RunConfig.__new__(RunConfig)._build_yaml_loader())["a"] == read


@deeper
def test_configuration_files(tmp_path, deep):
    path = tmp_path / "a.yaml"

    def take(content):
        path.write_bytes(content)
        refusal(parse_config, ["a.yaml"], {"model": "OneBP", "dataset": "ml-100k"})

    fuzz(take, deep, 60, content=damaged(CONFIG))
    fuzz(take, deep, 60, content=st.dictionaries(KEYS, VALUES, max_size=3).map(lambda keys: yaml.dump(keys).encode()))
    assert not Path("evaluated").exists()


@deeper
def test_overrides(deep):
    texts = st.one_of(st.sampled_from([piece.decode("latin-1") for piece in HOSTILE]), st.text(), VALUES.map(str))

    def take(key, text):
        overrides = parse_overrides([f"--{key}={text}"])
        refusal(parse_config, None, {"model": "OneBP", "dataset": "ml-100k", **overrides})

    fuzz(take, deep, 60, key=KEYS, text=texts)
    fuzz(lambda argument: refusal(parse_overrides, [argument]), deep, 60, argument=st.text())
    assert not Path("evaluated").exists()


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('touch evaluated')", "0x" + "f" * 90_000, "[" * 90_000, "-" * 90_000 + "1",
     "+".join("1" * 40_000), "{" * 50, "9" * 90_000, "[0x" + "f" * 90_000 + "]", "\x1b[2J", "\ud800"],
    ids=range(10),
)  # fmt: skip
@pytest.mark.parametrize("key", ["teacher", "dataset", "model", "metrics", "seed", "val_interval"])
def test_values_of_arguments(capsys, key, text):
    argument = f"--{key}={text}"
    code = main(["train", *{"--model=KD_DAGFM", "--dataset=ml-100k"} - {argument}, "--output_dir=out", argument])
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert len(errors[0]) < 2100
    assert not Path("evaluated").exists()


TUNING = """
dataset: ml-100k
models:
- model: OneBP
  space: {learning_rate: {low: 0.001, high: 0.01, log: true}, embedding_size: [8, 16]}
trials: 3
"""
COMPARISON = """
dataset: ml-100k
models: [OneBP, {model: BPR, learning_rate: 0.01}]
seeds: [1, 2]
valid_metric: NDCG@10
"""


@deeper
@pytest.mark.parametrize(
    ("text", "read"),
    [
        (TUNING, lambda: SearchSpec.read(Path("a.yaml"), {})),
        (COMPARISON, lambda: ComparisonSpec.read(["a.yaml"], {}).runs()),
    ],
    ids=["tune", "compare"],
)
def test_plans(tmp_path, deep, text, read):
    (tmp_path / "a.yaml").write_text(text)
    assert refusal(read) is None
    plan = yaml.safe_load(text)
    keys = st.sampled_from([*plan, "space", "seed", "model", "label", "tuned", "config_files", "reference", "jobs"])

    def take_bytes(content):
        (tmp_path / "a.yaml").write_bytes(content)
        refusal(read)

    def take(of_file, of_model):
        models = [{"model": "OneBP", **of_model}]
        (tmp_path / "a.yaml").write_text(yaml.dump({**plan, "models": models, **of_file}))
        refusal(read)

    fuzz(take_bytes, deep, 12, content=damaged(text.encode()))
    some = st.dictionaries(keys | KEYS, VALUES, max_size=2)
    fuzz(take, deep, 12, of_file=some, of_model=some)


# ------------------------------------------------------------------------------------------------- what a run has left


@pytest.fixture
def run_folder(tiny, tmp_path):
    tiny(epochs=1).fit()
    return tmp_path / "run"


@deeper
def test_a_checkpoint(tiny, run_folder, deep):
    """Damaged, it is told from a sound one; made up, with checksums that fit, it is refused or gone on with."""
    path = max((run_folder / "checkpoint").iterdir())
    sound = {file.name: file.read_bytes() for file in path.iterdir()}

    def damage(name, data):
        content = data.draw(damaged(sound[name]))
        (path / name).write_bytes(content)
        said = refusal(find_checkpoint, str(path), RunFolder(run_folder))
        assert said or content == sound[name] or json.loads(content) == json.loads(sound[name])
        (path / name).write_bytes(sound[name])

    fuzz(damage, deep, 40, name=st.sampled_from([*sound]), data=st.data())
    for content in JSON:
        (path / "state.json").write_bytes(content)
        assert refusal(find_checkpoint, str(path), RunFolder(run_folder))

    def make_up(keys, value):
        content = json.loads(sound["state.json"])
        at = content["state"]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        content["checksum"] = store._checksum(content)
        (path / "state.json").write_text(json.dumps(content))
        for each, kept in sound.items():
            if each != "state.json":
                (path / each).write_bytes(kept)
        refusal(partial(tiny, epochs=2, resume=str(path)))

    places = [*_places(json.loads(sound["state.json"])["state"])]
    odd = [{"$": "tensor", "of": "absent"}, {"$": "float", "of": 10**400}, {"$": []}, {"$": "?", "of": 1}]
    values = st.sampled_from(odd) | VALUES.map(lambda value: json.loads(json.dumps(value, default=str)))
    fuzz(make_up, deep, 25, keys=st.sampled_from(places), value=values)


def _places(value, above=()):
    """Where something stands in nested mappings and lists."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*above, key)
        if isinstance(below, (dict, list)) and len(above) < 3:
            yield from _places(below, (*above, key))


@deeper
def test_a_model(run_folder, deep):
    path = run_folder / "model.safetensors"
    content = path.read_bytes()
    tensors, metadata = store.read_tensors(path)

    def take(content):
        path.write_bytes(content)
        refusal(read_model, path)

    fuzz(take, deep, 40, content=damaged(content))

    def make_up(name, value):
        store.write_tensors(path, tensors, {**metadata, name: value})
        refusal(export, run_folder, run_folder / "bundle")

    values = st.sampled_from([some.decode("latin-1") for some in JSON]) | VALUES.map(partial(json.dumps, default=str))
    fuzz(make_up, deep, 25, name=st.sampled_from([*metadata]), value=values)


# ------------------------------------------------------------------------------------------- what lies beside the data

JSON = [b"", b"[]", b"1", b"null", b"{}", b"[" * 100_000, b'{"files": 1}', b'{"files": {"\\u0000": 1, "\\ud800": 2}}',
        b'{"files": [5]}', b"\xff\xfe", b"NaN", b'{"a": 1' + b"0" * 5000 + b"}"]  # fmt: skip


@deeper
def test_a_manifest_of_data(tmp_path, deep):
    (tmp_path / "a.inter").touch()
    content = json.dumps({"name": "a", "files": {"a.inter": {"sha256": "0"}}}).encode()

    def take(content):
        (tmp_path / "manifest.json").write_bytes(content)
        return is_complete(tmp_path)

    assert take(content)
    assert not any(take(some) for some in JSON if some != b"{}")
    fuzz(take, deep, 60, content=damaged(content))


def test_fetch_does_not_take_a_damaged_folder_for_its_own(tmp_path, capsys):
    (tmp_path / "gowalla").mkdir()
    for content in JSON:
        (tmp_path / "gowalla" / "manifest.json").write_bytes(content)
        assert main(["fetch", "gowalla", f"--data_path={tmp_path}"]) == 2
        assert "--force replaces it" in capsys.readouterr().err


@deeper
def test_pins(tmp_path, deep):
    published = CATALOGUE["onebp-ml-100k"]
    path = tmp_path / "pins"
    content = "".join(f"{file.path}: {file.pin}\n" for file in published.files.values()).encode()

    def take(content):
        path.write_bytes(content)
        return refusal(mirrored, published, "https://example.org", path)

    assert take(content) is None
    for text in (unfolding(9), "a: &a [*a]", "[" * 5000, "? [1]\n: 2", "a: 0x" + "f" * 5000):
        with little_memory(500):
            assert take(text.encode())
    fuzz(take, deep, 60, content=damaged(content))


@deeper
@pytest.mark.parametrize(
    ("suffix", "content"), [(".txt", b"1 2 3\n2 3 4\n"), (".csv", b"user,item,rating\n1,2,3\n2,3,4\n")]
)
def test_published_pairs(tmp_path, deep, suffix, content):
    path = tmp_path / f"train{suffix}"

    def take(content):
        path.write_bytes(content)
        return refusal(read_pairs, path)

    assert take(content) is None
    fuzz(take, deep, 60, content=damaged(content))


@deeper
def test_lists_of_ids(tmp_path, deep):
    def take(content):
        (tmp_path / "ids").write_bytes(content)
        refusal(lambda: list(read_ids(tmp_path / "ids")))

    fuzz(take, deep, 60, content=damaged(b"u1\nu2\n"))


@deeper
def test_what_a_search_has_left(tmp_path, deep):
    summary = {
        "seed": 1, "budget": {"epochs": 3},
        "models": {"OneBP": {"trials": 3, "pruned": 1, "seconds": 1.0, "config": "best.yaml"}},
    }  # fmt: skip
    (tmp_path / "OneBP").mkdir()
    (tmp_path / "OneBP" / "best.yaml").write_text("beta: 0.5\n")

    def take(content):
        (tmp_path / "tuning.json").write_bytes(content)
        return refusal(Tuning.load, tmp_path, "OneBP")

    assert take(json.dumps(summary).encode()) is None
    assert all(take(some) for some in JSON)
    fuzz(take, deep, 60, content=damaged(json.dumps(summary).encode()))
    wrong = st.dictionaries(st.sampled_from([*summary]), VALUES, min_size=1, max_size=2)
    fuzz(take, deep, 60, content=wrong.map(lambda some: json.dumps({**summary, **some}, default=str).encode()))


def test_a_damaged_outcome_is_none(tmp_path):
    for content in JSON:
        (tmp_path / "outcome.json").write_bytes(content)
        assert outcome_of(tmp_path) is None


@deeper
def test_a_cache_of_data(tmp_path, monkeypatch, deep):
    """Damaged, it is made anew, and never unpickled."""
    monkeypatch.setattr("recbole_onebp.data.cache.WORTH_BYTES", 0)
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "hostile.inter").write_bytes(text_of("\t", TITLES))
    keys = {"load_col": None, "data_path": str(tmp_path), "model": "OneBP", "dataset": "hostile"}
    cache = InteractionFiles(RunConfig(config_dict=keys)).cache
    values = {"columns": ["user_id"], "file_sizes": None}
    assert cache.save(State(values, {"column user_id": np.arange(2), "tokens user_id": np.array(["x", "yy"])}))
    sound = {path.name: path.read_bytes() for path in cache._folder.iterdir()}

    def take(name, data):
        (cache._folder / name).write_bytes(data.draw(damaged(sound[name])))
        state = cache.load()
        assert state is None or state.values == values
        (cache._folder / name).write_bytes(sound[name])

    fuzz(take, deep, 60, name=st.sampled_from([*sound]), data=st.data())
    for content in JSON:
        (cache._folder / "state.json").write_bytes(content)
        assert cache.load() is None
