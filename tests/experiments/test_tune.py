"""The search: what is read, that it can be stopped and gone on with, and that the test part plays no role in it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import optuna
import psutil
import pytest
import sqlalchemy
import yaml
from filelock import FileLock
from matplotlib.image import imread
from recbole.trainer import Trainer

from conftest import write_inter
from recbole_onebp.cli import main
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.experiments.compare.spec import ComparisonSpec
from recbole_onebp.experiments.tune import search as runner
from recbole_onebp.experiments.tune import summary as report
from recbole_onebp.experiments.tune import trials
from recbole_onebp.experiments.tune.search_spec import Range, SearchSpec
from recbole_onebp.util.errors import UserError
from support import fresh, tasks

LEARNING_RATE = {"low": 0.001, "high": 0.1, "log": True}


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    """Optuna commits many times a trial; only a failure of the power would make a difference."""

    def relax(connection, _record):
        connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture
def no_history(monkeypatch):
    """For a test that does not look at the picture of a search, which takes longer than the trials."""
    monkeypatch.setattr(report, "_draw", lambda *_: None)


@pytest.fixture
def file(tiny_config, tmp_path):
    """Writes a tuning file on the tiny data set; ``file(trials=2)``; a key that is None is left out."""

    def write(**overrides):
        shared = {key: value for key, value in tiny_config.items() if key != "output_dir"}
        models = [{"model": "OneBP", "space": {"learning_rate": LEARNING_RATE}}]
        values = {"dataset": "tiny", **shared, "trials": 3, "models": models, **overrides}
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return path

    return write


@pytest.fixture
def search(file, tmp_path):
    """Makes the trials of a tuning file's first model in this process, and returns them."""

    def run(folder="out", **overrides):
        plan = SearchSpec.read(file(**overrides), {})
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        study = trials.open_study(path, plan.searches[0], plan.budget)
        trials.run_trials(study, path, plan.searches[0], plan.budget)
        run.plan, run.study, run.folder = plan, study, path
        return study.trials

    return run


def params(made):
    return [trial.user_attrs["params"] for trial in made]


def states(made):
    return [trial.state.name for trial in made]


@pytest.mark.usefixtures("forked")
def test_two_models_from_file_to_trained_model(file, tiny_config, tmp_path, capsys):
    models = [
        {"model": "BPR", "space": {"train_neg_sample_args.sample_num": {"low": 2, "high": 4}, "learner": ["adam"]}},
        {"model": "OneBP", "label": "TwoBP", "backprop": "two", "space": {"negatives": ["shared", "per_pair"]}},
    ]
    path = file(models=models, trials=2, space={"learning_rate": LEARNING_RATE})
    out = tmp_path / "out"
    assert main(["tune", str(path), f"--output_dir={out}", "--jobs=2", "--epochs=2"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    summary = json.loads((out / "tuning.json").read_text())
    assert summary["budget"] == {
        "trials": 2, "time_limit": None, "startup_trials": 5, "prune": True, "warmup_epochs": 5, "epochs": 2
    }  # fmt: skip
    assert (summary["dataset"], summary["valid_metric"], summary["seed"]) == ("tiny", "ndcg@10", 2020)
    assert summary["versions"]["optuna"] == optuna.__version__
    assert [model["model"] for model in summary["models"].values()] == ["BPR", "OneBP"]
    for label, model in summary["models"].items():
        assert (model["trials"], model["complete"], model["pruned"], model["failed"]) == (2, 2, 0, 0)
        assert model["best_value"] == max(trial["value"] for trial in model["history"])
        assert model["best_params"] == model["history"][model["best_trial"]]["params"]
        assert model["seconds"] == pytest.approx(sum(trial["seconds"] for trial in model["history"]))
        assert [trial["epochs_validated"] for trial in model["history"]] == [2, 2]
        assert model["config"] == f"{label}/best.yaml"
    assert 2 <= summary["models"]["BPR"]["best_params"]["train_neg_sample_args.sample_num"] <= 4
    assert imread(out / "history.png").shape[0] > 400

    for label, model in summary["models"].items():
        run = tmp_path / f"run-{label}"
        assert main(["train", f"--config_files={out / model['config']}", f"--output_dir={run}"]) == 0
        result = json.loads((run / "result.json").read_text())
        assert result["valid"]["ndcg@10"] == model["best_value"]
        assert result["best_epoch"] == model["best_epoch"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["learning_rate"] == model["best_params"]["learning_rate"]
        assert config["train_neg_sample_args"]["distribution"] == "uniform"
        if label == "BPR":
            chosen = model["best_params"]["train_neg_sample_args.sample_num"]
            assert config["train_neg_sample_args"]["sample_num"] == chosen

    entries = [
        {"label": label, "model": model["model"], "tuned": str(out)} for label, model in summary["models"].items()
    ]
    shared = {key: yaml.safe_load(path.read_text())[key] for key in (*tiny_config, "dataset") if key != "output_dir"}
    compared = ComparisonSpec(**shared, models=entries, output_dir="compared")
    for spec, model in zip(compared.runs(), 2 * list(summary["models"].values()), strict=False):
        assert spec.given["learning_rate"] == model["best_params"]["learning_rate"]
        assert spec.entry.trials == 2


def test_the_test_part_is_never_evaluated(search, monkeypatch):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("the test part was touched")

        def __iter__(self):
            raise AssertionError("the test part was touched")

        __len__ = __bool__ = __iter__

    def build_from(*arguments):
        run = original(*arguments)
        run.test_data = Untouchable()
        return run

    def evaluate(trainer, data, load_best_model=True, *args, **kwargs):
        seen.append(load_best_model)
        return evaluated(trainer, data, load_best_model, *args, **kwargs)

    original, evaluated, seen = trials.build_from, Trainer.evaluate, []
    monkeypatch.setattr(trials, "build_from", build_from)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    made = search(trials=2)
    assert states(made) == ["COMPLETE"] * 2
    assert seen == [False] * 6  # an epoch's validation each; the test of a run loads the best model
    with pytest.raises(AssertionError, match="the test part was touched"):
        list(Untouchable())


def test_no_number_depends_on_the_test_part(search, tmp_path):
    values = {}
    for name, shift in (("one", 0), ("other", 7)):
        folder = tmp_path / name / "parts"
        for part, items in {"train": range(10), "valid": [12], "test": [15 + shift]}.items():
            written = write_inter(folder, [(f"u{u}", f"i{(u * 5 + k) % 40}") for u in range(30) for k in items])
            written.rename(folder / f"parts.{part}.inter")
        parts = {"dataset": "parts", "data_path": str(folder.parent), "benchmark_filename": ["train", "valid", "test"]}
        made = search(name, trials=3, startup_trials=1, **parts)
        values[name] = [(trial.value, trial.intermediate_values, trial.user_attrs["params"]) for trial in made]
    assert values["one"] == values["other"]
    assert len({value for value, _, _ in values["one"]}) > 1


def test_a_seed_gives_the_same_search(search):
    first = params(search("a", startup_trials=2, trials=3))
    assert len({json.dumps(values) for values in first}) == 3
    assert params(search("b", startup_trials=2, trials=2)) == first[:2]
    assert params(search("b", startup_trials=2, trials=3)) == first  # the same search, one trial more
    assert params(search("c", startup_trials=2, trials=1, seed=2021)) != first[:1]


def test_pruning(search, monkeypatch):
    def train(run, saved, on_validation):
        assert saved is False
        number = int(run.folder.path.name)
        for epoch in range(4):
            on_validation(epoch, 0.5 if number < 2 else 0.1)
        return 3, {"ndcg@10": 0.5}

    monkeypatch.setattr("recbole_onebp.run.run.Run.train", train)
    made = search(trials=4, startup_trials=2, warmup_epochs=1)
    assert states(made) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert made[2].intermediate_values == {0: 0.1, 1: 0.1}
    assert made[2].user_attrs["reason"] == "below the median after epoch 1"
    assert states(search("unpruned", trials=4, startup_trials=2, warmup_epochs=1, prune=False)) == ["COMPLETE"] * 4


@pytest.mark.usefixtures("no_history")
def test_what_fails_is_recorded_and_not_the_end(search, monkeypatch):
    errors = iter([ValueError("Training loss is nan"), MemoryError("9 GB"), None, RuntimeError("CUDA out of memory")])

    def train(run, saved, on_validation):
        error = next(errors)
        if error is not None:
            raise error
        on_validation(0, float("nan"))

    monkeypatch.setattr("recbole_onebp.run.run.Run.train", train)
    made = search(trials=4)
    assert states(made) == ["FAIL"] * 4
    assert [trial.user_attrs["reason"] for trial in made] == [
        "ValueError: Training loss is nan",
        "out of memory: MemoryError: 9 GB",
        "ValueError: validation is nan after epoch 0",
        "out of memory: RuntimeError: CUDA out of memory",
    ]
    assert "Traceback" in (search.folder / "OneBP" / "0000" / "run.log").read_text()
    summary = report.write(search.plan, [search.study], search.folder)
    assert summary["models"]["OneBP"]["failed"] == 4
    assert summary["models"]["OneBP"]["best_params"] is None
    assert not (search.folder / "OneBP" / "best.yaml").exists()
    with pytest.raises(UserError, match=r"OneBP: none of 4 trials was completed; the last one: out of memory: Runtime"):
        report.refuse_failures(summary)


def test_a_diverging_run_is_a_failed_trial(search):
    made = search(models=[{"model": "BPR", "space": {"learning_rate": [1e30, 0.01]}}], trials=6, learner="sgd")
    outcome = {trial.user_attrs["params"]["learning_rate"]: trial for trial in made}
    assert outcome[1e30].state.name == "FAIL"
    assert "nan" in outcome[1e30].user_attrs["reason"]
    assert outcome[0.01].state.name == "COMPLETE"


@pytest.mark.usefixtures("no_history")
def test_a_lower_metric_may_be_the_better(search, monkeypatch):
    values = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr("recbole_onebp.run.run.Run.train", lambda run, **_: (0, {"giniindex@10": next(values)}))
    search(metrics=["NDCG", "GiniIndex"], valid_metric="GiniIndex@10")
    summary = report.write(search.plan, [search.study], search.folder)
    assert summary["bigger_is_better"] is False
    assert summary["models"]["OneBP"]["best_value"] == 0.3


def test_time_limit(search):
    made = search(time_limit=0.001, trials=5)
    assert states(made) == ["PRUNED"]
    assert made[0].user_attrs["reason"] == "out of time after epoch 0"
    assert states(search(time_limit=1e6, trials=2)) == ["PRUNED", "COMPLETE"]


@pytest.mark.usefixtures("forked", "no_history")
def test_a_process_that_dies_is_a_failed_trial(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", tasks.die_once)
    runner.tune(file(trials=2), {}, tmp_path / "out")
    model = json.loads((tmp_path / "out" / "tuning.json").read_text())["models"]["OneBP"]
    assert [trial["state"] for trial in model["history"]] == ["failed", "complete"]
    assert model["history"][0]["reason"] == "its process was ended by SIGKILL, possibly out of memory"
    assert (model["trials"], model["failed"], model["cut_off"]) == (2, 1, 0)


@pytest.mark.usefixtures("forked", "no_history")
def test_a_process_that_dies_between_trials_is_not_started_for_ever(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", tasks.die_always)
    with pytest.raises(RuntimeError, match="OneBP: its process ended with exit code 3 between two trials"):
        runner.tune(file(trials=2), {}, tmp_path / "out")


@pytest.fixture
def start(tmp_path):
    """Starts ``recbole-onebp tune`` in a process, waits for an epoch of a trial; gives the process and its workers.

    The process is a fork of one that has loaded the large libraries.  Its workers are new Pythons, as those of a user.
    """

    def run(path, out, trial):
        # SIGINT as a terminal gives it: a job in the background would have it ignored, and its children too
        process = fresh.Started(
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from recbole_onebp.cli import main\n"
            f"sys.exit(main(['tune', {str(path)!r}, {f'--output_dir={out}'!r}]))",
            tmp_path,
        )
        metrics, deadline = out / "OneBP" / trial / "metrics.jsonl", time.monotonic() + 240
        while not (metrics.exists() and metrics.read_text()):
            assert process.is_alive(), process.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process, psutil.Process(process.pid).children(recursive=True)

    return run


@pytest.mark.usefixtures("forked", "no_history")
def test_killed_and_started_again_it_makes_the_trials_left(file, search, start, tmp_path):
    long = {"epochs": 30, "stopping_step": 1000, "trials": 3, "startup_trials": 1, "prune": False}
    out = tmp_path / "killed"
    process, workers = start(file(**long), out, "0001")
    assert workers
    process.kill()
    process.join()
    assert psutil.wait_procs(workers, timeout=60)[1] == []

    assert main(["tune", str(file(**long)), f"--output_dir={out}"]) == 0
    model = json.loads((out / "tuning.json").read_text())["models"]["OneBP"]
    assert [trial["state"] for trial in model["history"]] == ["complete", "cut_off", "complete", "complete"]
    assert (model["trials"], model["complete"], model["failed"], model["cut_off"]) == (3, 3, 0, 1)
    assert model["history"][1]["reason"] == "cut off: the search was stopped"
    straight = search("straight", **long)
    kept = [trial for trial in model["history"] if trial["state"] == "complete"]
    assert [trial["params"] for trial in kept] == params(straight)
    assert [trial["value"] for trial in kept] == [trial.value for trial in straight]

    assert main(["tune", str(file(**long)), f"--output_dir={out}"]) == 0  # nothing is left to do
    assert json.loads((out / "tuning.json").read_text())["models"]["OneBP"] == model


def test_ctrl_c_ends_the_workers_and_writes_what_there_is(file, start, tmp_path):
    process, workers = start(file(epochs=100_000, stopping_step=100_000), tmp_path / "out", "0000")
    assert workers
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130
    assert "Traceback" not in process.err.read_text()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["models"]["OneBP"]["trials"] == 0


def test_a_trial_cut_off_twice_is_used_up(search):
    search(trials=1)
    study, budget = search.study, search.plan.budget.model_copy(update={"trials": 3})
    for expected in (2, 1):
        study.ask()
        assert trials.add_lost(study)
        assert trials.left(study, budget)[0] == expected
    assert trials.reason_of(study, study.trials[2]) == "cut off: the search was stopped for the second time"
    assert trials.seconds(study, study.trials[2]) == 0
    assert not trials.add_lost(study)


def refusal(capsys, *arguments):
    assert main(["tune", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def onebp(**entry):
    return {"models": [{"model": "OneBP", "space": {"beta": [0.5, 0.9]}, **entry}]}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"models": None}, "models: "),
        ({"models": []}, "models: "),
        ({"model": "BPR"}, "model: the file has a list of models; leave model out"),
        ({"models": ["OneBP", "OneBP"]}, "OneBP appears twice; give one of them another label"),
        ({"models": ["OneBp"]}, "models, OneBp: model: there is none named 'OneBp'; did you mean OneBP?"),
        ({"models": ["OneBP"]}, "models, OneBP: space: there is nothing to search"),
        (onebp(label="../x"), "models.0.label: '../x' is not allowed"),
        (onebp(space={"betta": [0.5]}), "models, OneBP: betta: no such configuration key; did you mean beta?"),
        (onebp(space={"beta": [0.5, 1.5]}), "models, OneBP: space: beta: beta: 1.5 is not allowed"),
        (onebp(space={"beta": {"low": 0.5, "high": 2}}), "models, OneBP: space: beta: beta: 2.0 is not allowed"),
        (onebp(space={"beta": 0.5}), "space: beta: 0.5: expected a list of choices, or low and high"),
        (onebp(space={"beta": []}), "space: beta: []: expected a list of choices, or low and high"),
        (onebp(space={"beta": {"low": 0.5}}), "space: beta: high: "),
        (onebp(space={"beta": {"low": 0.9, "high": 0.5}}), "space: beta: low: 0.9 is above high: 0.5"),
        (onebp(space={"beta": {"low": 0, "high": 1, "log": True}}), "log: true needs low above 0 and no step"),
        (onebp(space={"beta": {"low": 0, "high": 1, "step": 0}}), "step: 0 is not above 0"),
        (onebp(space={"embedding_size": {"low": 8.0, "high": 16.0}}), "embedding_size: 8.0 is not allowed"),
        (onebp(space={"train_neg_sample_args.sample_nun": [1]}), "did you mean sample_num?"),
        (onebp(space={"clip_grad_norm.max_norm": [1.0]}), "space: clip_grad_norm.max_norm: clip_grad_norm is None"),
        (onebp(space={"epochs": [1, 2]}), "space: epochs: all models have the same data, evaluation and budget"),
        (onebp(space={"topk": [[5], [10]]}), "space: topk: all models have the same data, evaluation and budget"),
        (onebp(output_dir="x"), "output_dir: every trial has its own folder"),
        ({"models": ["BPR"], "space": {"beta": [0.5]}}, "models, BPR: space: beta: BPR does not read it"),
        ({"refit": True}, "refit and eval_step"),
        ({"eval_step": 0}, "refit and eval_step"),
        ({"trials": 0}, "trials: 0 is not allowed"),
        ({"trials": 2.5}, "trials: 2.5 is not allowed"),
        ({"time_limit": 0}, "time_limit: 0"),
        ({"dataset": "absent"}, "data set absent: no folder"),
        ({"models": ["XGBoost"], "space": {"learning_rate": [0.1]}}, "XGBoost"),
    ],
)
def test_bad_files(file, capsys, tmp_path, overrides, said):
    assert said in refusal(capsys, file(**overrides), f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_models_on_other_terms_are_refused(file, capsys):
    space = {"learning_rate": [0.01]}
    for key, value in {"epochs": 5, "topk": [5], "seed": 1, "stopping_step": 3}.items():
        path = file(models=[{"model": "OneBP"}, {"model": "BPR", key: value}], space=space, valid_metric="NDCG@5")
        assert f"models, BPR: {key}: {value}, but " in refusal(capsys, path)


def test_bad_commands(file, capsys, tmp_path, monkeypatch):
    assert "cannot be read: No such file" in refusal(capsys, "absent.yaml")
    assert "jobs: 0 is not at least 1" in refusal(capsys, file(), "--jobs=0")
    assert "expected --key=value" in refusal(capsys, file(), "--verbose")
    assert "trials: 0 is not allowed" in refusal(capsys, file(), "--trials=0")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        assert "another search is running there" in refusal(capsys, file(), f"--output_dir={tmp_path / 'out'}")
    (tmp_path / "plain").write_text("")
    assert "plain/out: cannot be written: Not a dir" in refusal(capsys, file(), f"--output_dir={tmp_path}/plain/out")
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    assert refusal(capsys, file()) == "error: tune needs Optuna: pip install 'recbole-onebp[tune]'"


def test_the_command_line_works_without_optuna():
    code = "import sys; sys.modules['optuna'] = None; import recbole_onebp.cli, recbole_onebp.experiments.tune.search"
    fresh.check(code)


def test_another_search_does_not_go_on_with_these_trials(search):
    search(trials=1)
    with pytest.raises(UserError, match=r"models, OneBP: epochs: 4, but the trials in .* were made with 3"):
        search(trials=2, epochs=4)
    with pytest.raises(UserError, match=r"space: learning_rate: low=0\.01"):
        search(trials=2, models=[{"model": "OneBP", "space": {"learning_rate": {"low": 0.01, "high": 0.1}}}])
    assert states(search(trials=2, state="WARNING")) == ["COMPLETE"] * 2


def test_spaces(file):
    space = {
        "beta": {"low": 0, "high": 1},
        "embedding_size": {"low": 8, "high": 16, "step": 8},
        "train_neg_sample_args.sample_num": [1, 2],
    }
    (search,) = SearchSpec.read(file(models=[{"model": "OneBP", "space": space}]), {}).searches
    assert search.space["beta"] == Range(low=0.0, high=1.0)
    drawn = [search.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(n)).ask()) for n in range(20)]
    assert {values["embedding_size"] for values in drawn} == {8, 16}
    assert {values["train_neg_sample_args.sample_num"] for values in drawn} == {1, 2}
    assert all(isinstance(values["beta"], float) and 0 < values["beta"] < 1 for values in drawn)
    config = search.config(drawn[0])
    assert config["train_neg_sample_args"] == {
        "distribution": "uniform", "alpha": 1.0, "dynamic": False, "candidate_num": 0,
        "sample_num": drawn[0]["train_neg_sample_args.sample_num"],
    }  # fmt: skip
    assert search.config({})["train_neg_sample_args"]["sample_num"] == 5

    layers = {"model": "MultiVAE", "space": {"mlp_hidden_size": [[600], [64, 32]]}}
    (search,) = SearchSpec.read(file(models=[layers]), {}).searches
    trial = optuna.trial.FixedTrial({"mlp_hidden_size": "[64, 32]"})
    assert search.suggest(trial) == {"mlp_hidden_size": [64, 32]}


def test_values_that_go_only_with_others_are_allowed(file):
    space = {"logq_correction": [False, True], "negatives": ["per_pair", "shared"]}
    assert SearchSpec.read(file(models=[{"model": "OneBP", "space": space}]), {}).searches


def test_one_model_without_a_list(file):
    plan = SearchSpec.read(file(models=None, model="OneBP", space={"learning_rate": [1e-2]}), {"trials": 7})
    assert [search.label for search in plan.searches] == ["OneBP"]
    assert plan.budget.trials == 7


def test_files_of_all_models(file, tmp_path):
    (tmp_path / "data.yaml").write_text("beta: 0.5\n")
    models = [{"model": "OneBP", "space": {"learning_rate": [1e-2]}}]
    (search,) = SearchSpec.read(file(models=models, config_files=[str(tmp_path / "data.yaml")]), {}).searches
    assert search.settings["beta"] == 0.5


def test_the_example():
    plan = SearchSpec.read(properties_dir() / "tune" / "quick.yaml", {})
    assert [search.label for search in plan.searches] == ["OneBP", "TwoBP", "BPR", "ItemKNN"]
