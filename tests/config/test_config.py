from __future__ import annotations

import os

import pytest
import yaml
from pydantic import ValidationError
from recbole.config import Config
from recbole.quick_start import run_recbole

from recbole_onebp import build
from recbole_onebp.config import OneBPConfig, RunConfig
from recbole_onebp.config.keys import check_keys, check_model_name
from recbole_onebp.util.errors import UserError


def config_of(**given):
    return OneBPConfig.from_recbole(RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k", **given}))


def test_it_is_parsed_once_and_frozen():
    config = config_of(beta=0.5, learner="Adam", score="cosine")
    assert (config.beta, config.learner, config.score, config.temperature) == (0.5, "adam", "cosine", 0.1)
    assert config.train_neg_sample_args.sample_num == 5
    with pytest.raises(ValidationError):
        config.beta = 0.1


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("beta", 1.5, "beta: 1.5 is not allowed: input should be less than or equal to 1"),
        ("beta", -0.1, "greater than or equal to 0"),
        ("beta", "high", "valid number"),
        ("beta", float("nan"), "finite"),
        ("temperature", 0.0, "temperature: 0.0 is not allowed: input should be greater than 0"),
        ("embedding_size", 0, "greater than or equal to 1"),
        ("embedding_size", 8.5, "valid integer"),
        ("score", "euclid", "'dot' or 'cosine'"),
        ("aggregation", "batch", "'step', 'epoch' or 'interval'"),
        ("aggregation_interval", 0, "greater than or equal to 1"),
        ("aggregation_alpha", -0.5, "greater than or equal to 0"),
        ("leave_one_out", "some", "valid boolean"),
        ("user_encoding", "final", "'moved' or 'fresh'"),
        ("learning_rate_decay", 0.0, "greater than 0"),
        ("learning_rate_decay", 1.1, "less than or equal to 1"),
        ("duplicates", "first", "'sequential', 'last' or 'mean'"),
        ("backprop", "none", "'one' or 'two'"),
        ("train_neg_sample_args", {"distribution": None}, "'uniform' or 'popularity'"),
        ("train_neg_sample_args", {"distribution": "uniform", "sample_num": 0}, "greater than or equal to 1"),
        ("train_neg_sample_args", {"distribution": "uniform", "dynamic": True}, "candidate_num of at least 1, not 0"),
        ("learning_rate", "abc", "learning_rate: 'abc' is not allowed"),
        ("learning_rate", 0, "greater than 0"),
        ("learner", "adamm", "'adam', 'adamw'"),
        ("epochs", -1, "greater than or equal to 0"),
        ("epochs", True, "valid integer"),
        ("train_batch_size", 0, "greater than or equal to 1"),
        ("topk", [10, 0], "topk.1: 0 is not allowed"),
        ("metrics", 3, "valid list"),
        ("show_progress", "perhaps", "valid boolean"),
        ("seed", 2**32, "less than 4294967296"),
        ("state", "loud", "'debug', 'info'"),
        ("load_col", 3, "valid dictionary"),
        ("load_col", {"inter": 5}, "load_col.inter"),
        ("eval_args", 3, "eval_args: 3 is not allowed"),
        ("eval_args", {"split": {"RS": [0.8, 0.2]}}, "eval_args.split.RS"),
        ("eval_args", {"order": "random"}, "'RO' or 'TO'"),
        ("clip_grad_norm", {"norm": 1.0}, "clip_grad_norm"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, allowed):
    with pytest.raises(UserError) as error:
        config_of(**{key: value})
    assert str(error.value).startswith(key)
    assert allowed in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "both"),
    [
        ({"learner": "sparse_adam", "weight_decay": 0.1}, ["sparse_adam", "0.1"]),
        ({"aggregation": "epoch", "duplicates": "last"}, ["aggregation: epoch", "duplicates: last"]),
        ({"aggregation": "interval", "duplicates": "last"}, ["aggregation: interval", "duplicates: last"]),
        ({"backprop": "two", "aggregation": "epoch"}, ["backprop: two", "aggregation: epoch"]),
        ({"backprop": "two", "aggregation_alpha": 0.5}, ["backprop: two", "aggregation_alpha: 0.5"]),
        ({"backprop": "two", "user_encoding": "fresh"}, ["backprop: two", "user_encoding: fresh"]),
        ({"leave_one_out": True, "aggregation": "step"}, ["leave_one_out: True", "aggregation: step", "and beta: 0"]),
        ({"leave_one_out": True, "aggregation": "step", "beta": 0.0}, ["leave_one_out: True", "aggregation: step"]),
        ({"leave_one_out": True, "aggregation": "interval", "beta": 0.5}, ["leave_one_out: True", "beta: 0.5"]),
        ({"valid_metric": "MRR@10", "metrics": ["Recall"], "topk": [10]}, ["MRR@10", "Recall"]),
        ({"valid_metric": "Recall@20", "metrics": ["Recall"], "topk": [5, 10]}, ["Recall@20", "5, 10"]),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_both_values(given, both):
    with pytest.raises(UserError) as error:
        config_of(**given)
    assert all(value in str(error.value) for value in both)


@pytest.mark.parametrize(
    ("given", "following"),
    [
        ({"score": "dot"}, {"temperature": 1.0}),
        ({"score": "dot", "temperature": 0.5}, {"temperature": 0.5}),
        ({"negatives": "per_pair"}, {"positives_a_step": 1024}),
        ({"aggregation": "step"}, {"beta": 0.99, "leave_one_out": False}),
        ({"beta": 0.5}, {"aggregation": "interval", "leave_one_out": False}),
        ({"backprop": "two"}, {"aggregation": "step", "leave_one_out": False}),
        ({"preset": "paper"}, {"score": "dot", "negatives": "per_pair", "aggregation": "step", "item_bias": False}),
    ],
)
def test_defaults_that_make_no_sense_with_what_is_given_follow_it(given, following):
    config = config_of(**given)
    assert {key: getattr(config, key) for key in following} == following


@pytest.mark.parametrize(
    ("key", "meant"),
    [("betta", "beta"), ("temprature", "temperature"), ("Learning_Rate", "learning_rate"), ("embeding_size", "embed")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, meant):
    with pytest.raises(UserError, match=rf"{key}: no such configuration key; did you mean {meant}"):
        config_of(**{key: 1})


def test_a_key_like_no_other_is_refused_too():
    with pytest.raises(UserError, match=r"^xyzzy_plugh: no such configuration key$"):
        config_of(xyzzy_plugh=1)


def test_a_shared_config_with_another_models_keys_runs():
    assert config_of(n_layers=3, reg_weight=0.1).beta == 0.0
    assert check_keys(["n_layers", "beta", "epochs", "output_dir"], "OneBP") == ["n_layers"]
    assert check_keys(["beta"], "LightGCN") == ["beta"]


@pytest.mark.parametrize(("name", "meant"), [("OneBp", "OneBP"), ("onebp", "OneBP"), ("LightGNC", "LightGCN")])
def test_an_unknown_model_is_refused_with_the_nearest(name, meant):
    with pytest.raises(UserError, match=f"none named '{name}'; did you mean {meant}"):
        check_model_name(name)


def test_recboles_own_entry_point_refuses_a_typo_too():
    with pytest.raises(UserError, match="did you mean beta"):
        run_recbole(model="OneBP", dataset="ml-100k", config_dict={"betaa": 0.9})


def test_flags_of_the_program_around_it_do_not_count(monkeypatch):
    """RecBole's Config reads sys.argv, be it pytest's."""
    monkeypatch.setattr("sys.argv", ["pytest", "--durations=3", "--epochs=7"])
    stock = Config(model="OneBP", dataset="ml-100k")
    assert stock["epochs"] == 7
    assert OneBPConfig.from_recbole(stock).beta == 0.0
    assert RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k"})["epochs"] == 300


def test_nothing_is_evaluated(tmp_path):
    trap = f"__import__('pathlib').Path({str(tmp_path / 'trap')!r}).touch()"
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"data_path": trap}))
    config = RunConfig(config_file_list=[str(file)], config_dict={"model": "OneBP", "dataset": "x", "encoding": trap})
    assert config["encoding"] == trap
    assert not (tmp_path / "trap").exists()


def test_config_files_override_in_order_and_are_overridden(tmp_path):
    for name, beta in (("a", 0.1), ("b", 0.2)):
        (tmp_path / f"{name}.yaml").write_text(f"beta: {beta}\nlearning_rate: 1e-3\n")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    config = RunConfig(config_file_list=files, config_dict={"model": "OneBP", "dataset": "ml-100k"})
    assert (config["beta"], config["learning_rate"]) == (0.2, 1e-3)
    given = {"model": "OneBP", "dataset": "ml-100k", "beta": 0.3}
    assert RunConfig(config_file_list=files, config_dict=given)["beta"] == 0.3


@pytest.fixture
def visible_gpus(monkeypatch):
    """The values of CUDA_VISIBLE_DEVICES that CUDA was initialised with, on a machine that seems to have GPUs."""
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.init", lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return seen


@pytest.mark.parametrize(("use_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_use_gpu_says_where_to_train(visible_gpus, use_gpu, device):
    config = RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k", "use_gpu": use_gpu})
    assert config["device"].type == device
    assert len(visible_gpus) == use_gpu


@pytest.mark.parametrize(
    ("user", "given", "visible", "device"),
    [("3", {}, "3", "cuda"), ("", {}, "", "cpu"), ("3", {"gpu_id": 1}, "1", "cuda"), (None, {}, "0", "cuda")],
)
def test_the_users_gpus_are_used_and_left_to_child_processes(monkeypatch, visible_gpus, user, given, visible, device):
    if user is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", user)
    RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k", "gpu_id": 7})  # must leave no trace
    assert visible_gpus == ["7"]
    config = RunConfig(config_dict={"model": "OneBP", "dataset": "ml-100k", **given})
    assert (config["gpu_id"], config["device"].type) == (visible, device)
    assert visible_gpus[1:] == ([visible] if device == "cuda" else [])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == user


def test_a_key_that_nothing_reads_is_told(tmp_path, caplog):
    given = {"epochs": 0, "output_dir": str(tmp_path / "out")}
    with caplog.at_level("INFO"):
        build("BPR", "ml-100k", config_dict={**given, "beta": 0.9, "WEIGHT_FIELD": "rating"})
        before = len(caplog.messages)
        given |= {"id_dropout": 0.5, "local": "none", "local_reg": 3.0, "n_shared_negatives": 9, "half_weight_at": 2.0}
        build("OneBP", "ml-100k", config_dict={**given, "negatives": "per_pair"})
    assert "keys of other models, which BPR does not read: WEIGHT_FIELD, beta" in caplog.messages
    assert "id_dropout: has no effect with item_features: none" in caplog.messages
    assert "local_reg: has no effect with local: none" in caplog.messages
    assert "n_shared_negatives: has no effect with negatives: per_pair" in caplog.messages
    assert not any("half_weight_at" in message for message in caplog.messages)  # training_history is auto
    assert not any("has no effect" in message for message in caplog.messages[:before])
