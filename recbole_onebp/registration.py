"""OneBP by name in RecBole's own entry points: ``run_recbole(model="OneBP")``, ``get_model``, ``get_trainer``, ..."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import wrapt
import yaml

from recbole_onebp.errors import UserError
from recbole_onebp.resources import properties_dir, property_file

__all__ = ["register"]

_MODELS = str(Path(__file__).parent / "recbole_models")


def register() -> None:
    """Make RecBole find OneBP, OneBPTrainer and our defaults.

    Nothing of ours is imported yet: one of our modules may be what is importing RecBole right now.
    """
    # get_model looks for a module recbole.model.general_recommender.<name>: it finds recbole_models/onebp.py there.
    wrapt.register_post_import_hook(_add_models, "recbole.model.general_recommender")
    # get_trainer looks for recbole.trainer.<Name>Trainer.
    import_module("recbole.trainer").__getattr__ = _trainer  # type: ignore[method-assign]
    wrapt.wrap_function_wrapper("recbole.config.configurator", "Config._load_internal_config_dict", _add_defaults)
    wrapt.wrap_function_wrapper("recbole.data.utils", "create_samplers", _choose_sampler)
    wrapt.wrap_function_wrapper("recbole.data.utils", "get_dataloader", _choose_loader)


def _add_models(package: Any) -> None:
    package.__path__.append(_MODELS)


def _trainer(name: str) -> Any:
    if name != "OneBPTrainer":
        raise AttributeError(f"module 'recbole.trainer' has no attribute {name!r}")
    return import_module("recbole_onebp.trainer").OneBPTrainer


def _add_defaults(wrapped: Callable[..., None], config: Any, args: Any, kwargs: Any) -> None:
    """Read our YAML files after RecBole's and below everything that the user gave."""
    wrapped(*args, **kwargs)
    _, model_class, dataset = args
    defaults, given = config.internal_config_dict, config.external_config_dict
    if model_class.__name__ == "OneBP":
        config._update_internal_config_dict(properties_dir() / "model" / "OneBP.yaml")
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
        samplers = import_module("recbole_onebp.recbole_data")
        utils.Sampler = samplers.sampler_class(fast, of_train)  # type: ignore[attr-defined]
    try:
        return wrapped(*args, **kwargs)
    finally:
        utils.Sampler = original  # type: ignore[attr-defined]


def _choose_loader(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """With ``negatives: shared`` the train loader brings no negatives."""
    config, phase = args
    if config["model"] == "OneBP" and phase == "train" and config["negatives"] == "shared":
        return import_module("recbole_onebp.recbole_data").PairDataLoader
    return wrapped(*args, **kwargs)


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
