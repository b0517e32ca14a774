"""OneBP by name in RecBole's own entry points: ``run_recbole(model="OneBP")``, ``get_model``, ``get_trainer``, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import wrapt
import yaml

from recbole_onebp.config.properties import properties_dir, property_file
from recbole_onebp.util.errors import UserError

__all__ = ["register"]

_MODELS = str(Path(__file__).parent / "models")


def register() -> None:
    """Make RecBole find OneBP, OneBPTrainer and our defaults.

    Nothing of ours is imported yet: one of our modules may be what is importing RecBole right now.
    """
    # get_model looks for a module recbole.model.general_recommender.<name>: it finds plugin/models/onebp.py there.
    wrapt.register_post_import_hook(_add_models, "recbole.model.general_recommender")
    # get_trainer looks for recbole.trainer.<Name>Trainer, create_dataset for recbole.data.dataset.<Name>Dataset.
    _answer("recbole.trainer", "OneBPTrainer", "recbole_onebp.trainer")
    _answer("recbole.data.dataset", "OneBPDataset", "recbole_onebp.data.dataset")
    # Loaders number their rows by list(range(n)), 36 bytes a row.
    import_module("recbole.data.dataloader.abstract_dataloader").list = _listed  # type: ignore[attr-defined]
    wrapt.wrap_function_wrapper("recbole.config.configurator", "Config._load_internal_config_dict", _add_defaults)
    wrapt.wrap_function_wrapper("recbole.data.utils", "create_samplers", _choose_sampler)
    wrapt.wrap_function_wrapper("recbole.data.utils", "get_dataloader", _choose_loader)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Collector", _choose_collector)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Trainer.evaluate", _choose_scoring)


def _add_models(package: Any) -> None:
    package.__path__.append(_MODELS)


def _answer(module: str, name: str, home: str) -> None:
    """Let a module of RecBole's have a class of ours, which is loaded when it is asked for."""

    def __getattr__(asked: str) -> Any:  # noqa: N807
        if asked != name:
            raise AttributeError(f"module {module!r} has no attribute {asked!r}")
        return getattr(import_module(home), name)

    import_module(module).__getattr__ = __getattr__  # type: ignore[method-assign]


def _listed(values: Iterable[Any]) -> Sequence[Any]:
    return values if isinstance(values, range) else [*values]


_FOLLOWING: dict[tuple[str, str], dict[str, Any]] = {
    ("score", "dot"): {"temperature": 1.0},
    ("negatives", "per_pair"): {"train_batch_size": 5120},
    ("aggregation", "step"): {"beta": 0.99, "leave_one_out": False},
    ("backprop", "two"): {"aggregation": "step", "aggregation_alpha": 0.0, "leave_one_out": False},
}
"""Defaults of other keys where a key is given that value: they would make no sense with it as they are."""


def _add_defaults(wrapped: Callable[..., None], config: Any, args: Any, kwargs: Any) -> None:
    """Read our YAML files after RecBole's and below everything that the user gave."""
    wrapped(*args, **kwargs)
    _, model_class, dataset = args
    defaults, given = config.internal_config_dict, config.external_config_dict
    if model_class.__name__ == "OneBP":
        config._update_internal_config_dict(properties_dir() / "model" / "OneBP.yaml")
        for (key, value), others in _FOLLOWING.items():
            if given.get(key) == value:
                defaults.update(others)
        if given.get("beta"):
            defaults["leave_one_out"] = False
        defaults.update(_preset(given.get("preset", defaults["preset"]), dataset, config.yaml_loader))
    dataset_file = property_file("dataset", dataset)
    if dataset_file is not None:
        config._update_internal_config_dict(dataset_file)
    if given.get("output_dir"):
        defaults["checkpoint_dir"] = given["output_dir"]


def _choose_sampler(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Let ``create_samplers`` make our samplers where the configuration asks for them."""
    config, utils = args[0], import_module("recbole.data.utils")
    fast, of_train = config["fast_sampler"], config["model"] == "OneBP"
    original = utils.Sampler
    if fast or of_train:
        samplers = import_module("recbole_onebp.data.loaders")
        utils.Sampler = samplers.sampler_class(fast, of_train)  # type: ignore[attr-defined]
    try:
        return wrapped(*args, **kwargs)
    finally:
        utils.Sampler = original  # type: ignore[attr-defined]


def _preset(name: str, dataset: str, loader: Any) -> dict[str, Any]:
    """The keys of ``properties/preset/<name>.yaml``: those of ``all`` and, above them, those of the data set."""
    if name == "default":
        return {}
    path = property_file("preset", name) if isinstance(name, str) else None
    if path is None:
        known = ["default", *sorted(file.stem for file in (properties_dir() / "preset").glob("*.yaml"))]
        raise UserError(f"preset: there is none named {name!r}; known presets: {', '.join(known)}")
    preset = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return {**preset["all"], **preset["datasets"].get(dataset, {})}


def _evaluates_fast(config: Any, *phases: str) -> bool:
    """``fast_evaluator: true``, where it applies: one of the phases ranks all items for each user."""
    mode = config["eval_args"]["mode"]
    full = any(mode[phase] == "full" for phase in phases)
    return bool(config["fast_evaluator"]) and full and config["MODEL_TYPE"].name != "SEQUENTIAL"


def _choose_loader(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Let ``get_dataloader`` return our loaders where the configuration asks for them."""

    def ours(config: Any, phase: str) -> Any:
        if phase == "train":
            shared = config["model"] == "OneBP" and config["negatives"] == "shared"
            return import_module("recbole_onebp.data.loaders").PairDataLoader if shared else None
        fast = _evaluates_fast(config, "valid" if phase == "valid" else "test")
        return import_module("recbole_onebp.evaluation.full_sort").FastFullSortEvalDataLoader if fast else None

    return ours(*args, **kwargs) or wrapped(*args, **kwargs)


def _choose_collector(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Let trainers make our collector where the configuration asks for it."""

    def fast(config: Any) -> bool:
        return _evaluates_fast(config, "valid", "test")

    collector = import_module("recbole_onebp.evaluation.full_sort").FastCollector if fast(*args, **kwargs) else wrapped
    return collector(*args, **kwargs)


def _choose_scoring(wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any) -> Any:
    """Let trainers work out only the scores that matter where the configuration asks for it."""
    if not _evaluates_fast(trainer.config, "valid", "test"):
        return wrapped(*args, **kwargs)
    with import_module("recbole_onebp.evaluation.full_sort").bounded_ranking(trainer):
        return wrapped(*args, **kwargs)
