"""The command line.  Bad input gives one line that begins with error:, and exit code 2."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from safetensors.numpy import load_file

import recbole_onebp
from conftest import write_inter
from recbole_onebp import Recommender, fit
from recbole_onebp.cli import main, make_parser
from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.run.build import build_from, load_config
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError
from support import fresh


@pytest.fixture
def train(tiny_config, capsys):
    """Runs ``recbole-onebp train`` on the tiny data set; ``train(beta=1.5)`` returns the exit code and stderr."""

    def run(*arguments, **overrides):
        values = {"model": "OneBP", "dataset": "tiny", **tiny_config, **overrides}
        code = main(["train", *arguments, *(f"--{key}={value}" for key, value in values.items() if value is not None)])
        run.out, err = capsys.readouterr()
        return code, err

    return run


def refusal(outcome):
    """The error line of a command that must fail with exit code 2."""
    code, err = outcome
    assert code == 2
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("error:"))
    assert err.splitlines()[-1] == line
    return line


@pytest.mark.usefixtures("draws_curves")
def test_a_run_writes_its_folder(train, tmp_path, capsys):
    assert train()[0] == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "checkpoint", "config.yaml", "curves.png", "metrics.jsonl", "model.safetensors", "result.json", "run.log",
        "tensorboard",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {
        "model", "dataset", "seed", "epochs_run", "best_epoch", "valid", "test", "seconds", "epoch_seconds",
        "peak_rss_mb", "n_users", "n_items", "n_train", "parameters", "recency", "local", "versions", "device",
        "test_among", "test_by_train_pairs",
    }  # fmt: skip
    assert (result["n_users"], result["n_items"], result["epochs_run"]) == (30, 40, 3)
    assert result["n_train"] == 30 * 10
    assert set(result["seconds"]) == {"data", "train", "valid", "test"}
    assert len(result["epoch_seconds"]) == 3
    assert 0 < result["test"]["recall@10"] <= 1
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2]
    assert epochs[result["best_epoch"]]["valid"] == result["valid"]
    assert all(epoch["user_spread"] > 0 for epoch in epochs)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["beta"], config["model"], config["output_dir"]) == (0.99, "OneBP", str(folder))
    assert imread(folder / "curves.png").shape[0] > 300
    log = (folder / "run.log").read_text()
    assert "wrote" in log
    assert "\x1b" not in log
    assert set(load_file(folder / "model.safetensors")) == {"item_table", "user_table"}
    assert list(Path.cwd().iterdir()) == [folder]


def test_logs_go_to_stdout_and_bars_to_stderr(train):
    code, err = train(show_progress=True)
    assert code == 0
    assert "Train" in err
    assert "test, epoch" in train.out
    assert "dataset: tiny; all settings, more than a hundred, are in" in train.out
    assert "reproducibility = " not in train.out
    assert train(show_progress=False) == (0, "")
    assert train(show_progress=None) == (0, "")  # stderr is no terminal


@pytest.mark.parametrize("local", [{"local": "ridge", "local_weight": "auto"}, {"local": "none"}])
def test_the_final_training_is_told_after_one_with_validation(train, tmp_path, local):
    assert train(**local)[0] == 0
    [options] = re.findall("the same command with (.*)", train.out)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    of_local = f"--local_weight={result['local']['weight']:g}" if result["local"] else "--local=none"
    assert options == f"--refit=true --epochs={result['best_epoch'] + 1} {of_local}"
    assert train(*options.split(), output_dir=tmp_path / "final", epochs=None)[0] == 0
    assert "the same command" not in train.out
    assert train(model="BPR")[0] == 0
    assert "the same command" not in train.out


def test_without_output_dir_the_folder_is_named_after_the_run(train):
    assert train(output_dir=None)[0] == 0
    assert train(output_dir=None)[0] == 0
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("tiny-OneBP-20") for name in folders)


def test_baselines_run_by_the_same_command(train, tmp_path):
    assert train(model="BPR")[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["model"] == "BPR"


def test_a_config_file_may_name_model_and_data_set(train, tmp_path):
    (tmp_path / "a.yaml").write_text("model: OneBP\nbeta: 0.5\n")
    (tmp_path / "b.yaml").write_text("dataset: tiny\nbeta: 0.25\n")
    files = f"--config_files={tmp_path / 'a.yaml'} {tmp_path / 'b.yaml'}"
    assert train(files, model=None, dataset=None)[0] == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["beta"] == 0.25
    assert "model: none given; pass --model=NAME" in refusal(train(model=None))
    assert "modle: no such configuration key; did you mean model?" in refusal(train("--modle=OneBP", model=None))
    assert "dataset: none given" in refusal(train("--save_dataset=False", dataset=None))


def test_a_finished_run_is_not_replaced_in_silence(train):
    told = "holds a finished run, which this one replaces"
    for runs_before in range(2):
        assert train()[0] == 0
        assert (told in train.out) == (runs_before > 0)


def test_a_misspelt_data_set_and_one_in_parts(train, tiny_path):
    assert "did you mean tiny?" in refusal(train(dataset="tiyn"))
    folder = Path(tiny_path) / "parts"
    folder.mkdir()
    (folder / "parts.yaml").touch()
    assert f"it is in parts: add --config_files={folder / 'parts.yaml'}" in refusal(train(dataset="parts"))


def test_a_misspelt_command_and_a_folder_that_is_none(tmp_path, capsys):
    for told, *command in (
        ("did you mean train?", "trian"),
        ("there is no such folder", "export", str(tmp_path / "none"), str(tmp_path / "bundle")),
        ("is no run, for it has no config.yaml", "export", str(tmp_path), str(tmp_path / "bundle")),
    ):
        assert told in refusal((main(command), capsys.readouterr().err))


def test_a_random_split_of_data_with_times_is_told(train):
    told = "eval_args: the split is random, though the interactions have times (timestamp)"
    in_order = {"load_col": "{inter: [user_id, item_id, timestamp]}", "eval_args": "{order: TO}"}
    for given, expected in (({}, True), (in_order, False)):
        assert train(dataset="ml-100k", data_path=None, epochs=1, **given)[0] == 0
        assert (told in train.out) == expected
    assert train()[0] == 0  # without times
    assert told not in train.out


def test_from_a_table_to_a_bundle(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"c{n},s{m},{100 * n + m}" for n in range(30) for m in range(12) if (n * m + n) % 3]
    Path("purchases.csv").write_text("\n".join(["customer,sku,when", *rows]) + "\n")
    command = ["fit", "purchases.csv", "bundle", "--user=customer", "--item=sku", "--time=when", "--embedding_size=8"]
    assert main(command) == 0
    assert "wrote bundle; for lists: recbole-onebp recommend bundle" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"purchases.csv", "bundle"}
    rec = Recommender.load("bundle")
    of_python = fit("purchases.csv", user="customer", item="sku", time="when", embedding_size=8, show_progress=False)
    assert rec.recommend(rec.user_ids, k=3) == of_python.recommend(rec.user_ids, k=3)

    def refused(*arguments):
        return refusal((main([*command, *arguments]), capsys.readouterr().err))

    assert "bundle: exists already" in refused()
    assert "no column skew; its columns are customer, sku, when" in refused("--force", "--item=skew")
    assert "did you mean epochs?" in refused("--force", "--epoch=3")
    assert Recommender.load("bundle").user_ids == rec.user_ids


def test_without_validation_the_last_epoch_is_tested(train, tmp_path):
    assert train(eval_step=0)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["best_epoch"], result["valid"]) == (2, {})
    assert result["test"]["recall@10"] > 0


@pytest.mark.usefixtures("draws_curves")
@pytest.mark.parametrize(
    "wrong", [{"beta": 1.5}, {"learner": "sparse_adam", "weight_decay": 0.1}, {"dataset": "absent"}]
)
def test_a_refused_run_leaves_the_earlier_one_as_it_was(train, tmp_path, wrong):
    assert train()[0] == 0
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.log"}
    refusal(train(**wrong))
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_new_run_replaces_the_earlier_one(train, tmp_path):
    assert train()[0] == 0
    first = set((tmp_path / "run" / "tensorboard").rglob("events*"))
    assert train(model="BPR")[0] == 0
    assert set(load_file(tmp_path / "run" / "model.safetensors")) == {"item_embedding.weight", "user_embedding.weight"}
    assert not first & set((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_a_run_survives_a_closed_stdout(tiny_config):
    values = {"model": "OneBP", "dataset": "tiny", **tiny_config}
    code = "import sys; from recbole_onebp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", *(f"--{key}={value}" for key, value in values.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "BrokenPipe" not in process.stderr.read()
    assert process.returncode == 0
    assert "wrote" in (Path(tiny_config["output_dir"]) / "run.log").read_text()


def test_a_run_without_stdout(tiny_config):
    values = {"model": "OneBP", "dataset": "tiny", **tiny_config}
    code = "import sys; sys.stdout = None; from recbole_onebp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", *(f"--{key}={value}" for key, value in values.items())]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
    assert "wrote" in (Path(tiny_config["output_dir"]) / "run.log").read_text()


@pytest.mark.parametrize("flags", [["-u"], []])
def test_doctor_survives_a_closed_stdout(flags):
    code = "import sys; from recbole_onebp.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, *flags, "-c", code, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if flags:
            assert process.stdout.readline().startswith("recbole_onebp")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_two_processes_cannot_run_in_one_folder(train, tmp_path):
    assert train()[0] == 0
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code = f"""
from pathlib import Path
from recbole_onebp.run.folder import RunFolder
folder = RunFolder({str(folder)!r})
folder.lock()
print("held", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert "another run is using" in refusal(train())
        assert "another run is using" in refusal(train(resume="auto"))
        assert {name: (folder / name).read_bytes() for name in before} == before
        other.kill()
    assert train()[0] == 0  # the lock ended with its process


def test_a_folder_is_unlocked_when_its_run_is_over(tiny_config):
    values = {**tiny_config, "model": "OneBP", "dataset": "tiny"}
    runs = [build_from(*load_config(None, values)) for _ in range(2)]  # as in a notebook when a cell runs again
    dropped = build_from(*load_config(None, values))
    del dropped
    gc.collect()
    runs[1].fit()
    code = f"from recbole_onebp.run.folder import RunFolder; RunFolder({values['output_dir']!r}).lock()"
    assert (
        subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 1
    )  # runs[0] has not been trained yet
    runs[0].fit()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_values_are_parsed_and_never_evaluated():
    values = parse_overrides(
        ["--a=1e-3", "--b=[10, 20]", "--c=None", "--d=true", "--e=x=y", "--f=O'Brien", "--g={'RS':[0.8,0.1,0.1]}",
         "--h=__import__('os').getcwd()", "--i=", "--j=[0,inf)", "--k=0,1", "--l=a\\d", "--m=" + "[" * 5000]
    )  # fmt: skip
    assert values["a"] == 0.001
    assert values["b"] == [10, 20]
    assert values["c"] is None
    assert values["d"] is True
    assert values["e"] == "x=y"
    assert values["f"] == "O'Brien"
    assert values["g"] == {"RS": [0.8, 0.1, 0.1]}
    assert values["h"] == "__import__('os').getcwd()"
    assert values["i"] == ""
    assert values["j"] == "[0,inf)"
    assert values["k"] == (0, 1)
    assert values["l"] == "a\\d"
    assert values["m"] == "[" * 5000


@pytest.mark.parametrize("argument", ["--beta", "beta=1", "--=1", "--9x=1", "extra"])
def test_another_form_is_refused(argument):
    with pytest.raises(UserError, match="expected --key=value"):
        parse_overrides([argument])


def test_a_key_given_twice_is_refused():
    with pytest.raises(UserError, match=r"--beta is given twice: 0\.5 and 0\.9"):
        parse_overrides(["--beta=0.5", "--beta=0.9"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"beta": 1.5}, "beta: 1.5 is not allowed"),
        ({"learning_rate": "abc"}, "learning_rate: 'abc' is not allowed"),
        ({"betta": 0.5}, "betta: no such configuration key; did you mean beta?"),
        ({"model": "OneBp"}, "model: there is none named 'OneBp'; did you mean OneBP?"),
        ({"dataset": "absent"}, "data set absent: no folder"),
        ({"dataset": __file__}, f"is a file; recbole-onebp convert {__file__} makes a data set of it"),
        ({"metrics": "['Recal']"}, "There is no metric named 'Recal'"),
        ({"nproc": 0}, "nproc"),
        ({"eval_args": "{'order': 'TO'}"}, "eval_args.order: TO sorts by timestamp, which load_col leaves out"),
        ({"user_inter_num_interval": "foo"}, "user_inter_num_interval: 'foo' is not allowed: expected an interval"),
        ({"encoding": "utf-99"}, "encoding: Python does not know 'utf-99'"),
    ],
)
def test_bad_values(train, overrides, said):
    assert said in refusal(train(**overrides))


@pytest.mark.parametrize(
    ("overrides", "package", "said"),
    [
        ({"model": "NCL"}, "faiss", "NCL needs the package faiss: pip install faiss-cpu"),
        ({"log_wandb": True}, "wandb", "pip install wandb"),
    ],
)
def test_a_package_that_is_missing_is_named(train, monkeypatch, overrides, package, said):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert said in refusal(train(**overrides))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file"),
        ("", "empty; expected a header such as user_id:token item_id:token"),
        ("user_id:token\titem_id:token\n", "no interactions below the header"),
        ("user_id:token\trating:float\na\t1\n", "no column item_id; it has user_id, rating"),
        ("user_id\titem_id\na\tb\n", "line 1: 'user_id\\titem_id': expected columns as name:type"),
        ("user_id:token\titem_id:token\trating:float\na\tx\t1\nb\ty\tgood\n", "line 3: rating is 'good', expected"),
        ("user_id:token\titem_id:token\trating:number\na\tx\t1\n", "Type number from field rating is not supported"),
        (b"\xff\xfe\x00", "not text in utf-8"),
        (b"\xef\xbb\xbfuser_id:token\titem_id:token\na\tx\n", "byte order mark; set encoding: utf-8-sig"),
        ("user_id:float\titem_id:token\n1\tx\n", "ids are tokens; write user_id:token"),
        ("user_id:token item_id:token\na x\n", "with '\\t' as field_separator"),
        ("user_id:token\titem_id:token\na\tx\n\ty\n", "line 3: user_id is nan, expected an id"),
        ("user_id:token\titem_id:token\na\tx\nb\n", "line 3: item_id is nan, expected an id"),
    ],
)  # fmt: skip
def test_bad_files(train, tmp_path, content, said):
    folder = tmp_path / "data" / "bad"
    folder.mkdir(parents=True)
    path = folder / "bad.inter"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    columns = "['user_id', 'item_id', 'rating']" if content and "rating:" in str(content) else "['user_id', 'item_id']"
    outcome = train(dataset="bad", data_path=str(tmp_path / "data"), load_col=f"{{'inter': {columns}}}")
    line = refusal(outcome)
    assert said in line
    assert str(path) in line or "Type number" in line


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"u\t\t1", "line 7: item_id is nan, expected an id"),
        (b"u\tx\tgood", "line 7: rating is 'good', expected a number"),
        (b"u\t\xff\t1", "not text in utf-8; set the key encoding"),
    ],
)
def test_bad_rows_further_down(train, tmp_path, monkeypatch, row, said):
    monkeypatch.setattr("recbole_onebp.data.text_table._CHUNK", 2)
    path = write_inter(tmp_path / "data" / "bad", [("u", "x", 1)] * 5, "user_id:token\titem_id:token\trating:float")
    path.write_bytes(path.read_bytes() + row + b"\n")
    columns = "{'inter': ['user_id', 'item_id', 'rating']}"
    line = refusal(train(dataset="bad", data_path=str(tmp_path / "data"), load_col=columns))
    assert said in line
    assert str(path) in line


def test_a_bad_number_in_an_item_file(train, tmp_path):
    folder = tmp_path / "data" / "bad"
    write_inter(folder, [("a", "x"), ("b", "y")])
    (folder / "bad.item").write_text("item_id:token\tyear:float\nx\t1990\ny\tlong ago\n")
    columns = "{'inter': ['user_id', 'item_id'], 'item': ['item_id', 'year']}"
    line = refusal(train(dataset="bad", data_path=str(tmp_path / "data"), load_col=columns))
    assert "bad.item, line 3: year is 'long ago', expected a number" in line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(f"u{u}", "x") for u in range(9)], "1 item is left after filtering; a recommender needs at least 2"),
        (
            [(f"u{u}", i) for u in range(3) for i in range(20 if u == 1 else 12)],
            "user u1 has interacted with all 20 items",
        ),
    ],
)
def test_data_without_anything_to_recommend(train, tmp_path, rows, said):
    write_inter(tmp_path / "data" / "poor", rows)
    assert said in refusal(train(dataset="poor", data_path=str(tmp_path / "data")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("beta: [0.5", "not YAML"),
        ("on: 2\n", "the key True is no text"),
        ("- beta\n", "expected lines of 'key: value'"),
        ("beta", "expected lines of 'key: value'"),
        ("", "expected lines of 'key: value'"),
    ],
)
def test_bad_config_files(train, tmp_path, content, said):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_text(content)
    line = refusal(train(f"--config_files={path}"))
    assert said in line
    assert str(path) in line


def test_a_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    assert "output_dir: " in refusal(train(output_dir=str(tmp_path / "file" / "run")))


@pytest.mark.parametrize("limit", [0, 1500, 4000, 10_000, 30_000])
def test_a_full_disk_is_one_line(train, tmp_path, limit):
    """The limits hit different files: the log, TensorBoard's file, metrics.jsonl, the model, a checkpoint."""
    assert train()[0] == 0  # compiles the loops, so that the limit does not hit the cache of the compiler
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        line = refusal(train(epochs=40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in line
    assert "written" in line
    assert train(epochs=40)[0] == 0


def test_the_full_disk_of_a_thread_is_not_reported_twice(tmp_path, capsys):
    logs.start(tmp_path / "log")

    def fail(error):
        raise error

    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug")):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    err = capsys.readouterr().err
    assert "a bug" in err
    assert "No space" not in err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "recbole_onebp", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"recbole-onebp {recbole_onebp.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "recbole_onebp", "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("arguments", [["trian"], ["doctor", "--verbose"], ["train", "--epochs", "2"], []])
def test_bad_commands(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["tr"], "train"), (["train", "--res"], "--resume"), (["convert", "x.csv", "--split", "time_"], "time_user")],
)
def test_completion_in_bash(words, expected):
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(make_parser(), "bash")
    typed = " ".join(["recbole-onebp", *words])
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_recbole_onebp; echo ${{COMPREPLY[@]}}"
    answer = subprocess.run(["bash"], input=f"{script}\n{ask}\n", capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [expected]


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "recbole         1.2.1" in out
    assert "numpy_aliases: " in out
    assert "pyarrow: installed (Parquet" in out
    assert "failed" not in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_the_run(tiny_config, tmp_path, number, code):
    endless = {"epochs": 100_000, "stopping_step": 100_000, "state": "warning"}
    values = {"model": "OneBP", "dataset": "tiny", **tiny_config, **endless}
    arguments = ["train", *(f"--{key}={value}" for key, value in values.items())]
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in a background job
    process = fresh.Started(f"{heard}; from recbole_onebp.cli import main; sys.exit(main({arguments}))", tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not list((tmp_path / "run").glob("checkpoint/epoch-*")) and time.monotonic() < deadline:
        assert process.is_alive(), process.err.read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == code
    out, err = process.out.read_text(), process.err.read_text()
    assert "Traceback" not in err
    assert [line.startswith("interrupted") for line in err.splitlines()] == [True] * (number == signal.SIGINT)
    assert "resumes at epoch" in out
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run" / "result.json").exists()
    done = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    values = {"model": "OneBP", "dataset": "tiny", **tiny_config, **endless, "resume": "auto"}
    run = build_from(*load_config(None, values))
    assert 0 < run.trainer.start_epoch <= done[-1] + 1
    assert [epoch["epoch"] for epoch in run.trainer.record.epochs] == list(range(run.trainer.start_epoch))


def test_resume_from_the_command_line(train, tmp_path):
    assert train(epochs=2)[0] == 0
    assert train("--resume", "auto")[0] == 0
    assert "resuming from" in train.out
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert train(f"--resume={tmp_path / 'run'}", output_dir=None)[0] == 0
    assert "beta: 0.99 then, 0.5 now" in refusal(train("--resume=auto", beta=0.5))
    assert "resume: auto needs output_dir" in refusal(train("--resume=auto", output_dir=None))
    assert "resume: absent: there is no such folder" in refusal(train("--resume=absent", output_dir=None))
