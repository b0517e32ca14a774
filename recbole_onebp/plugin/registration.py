"""OneBP by name in RecBole's own entry points: ``run_recbole(model="OneBP")``, ``get_model``, ``get_trainer``, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import wrapt

from recbole_onebp.config.properties import own_models, property_file, read_preset

__all__ = ["register"]

_MODELS = str(Path(__file__).parent / "models")


def register() -> None:
    """Make RecBole find OneBP, OneBPTrainer and our defaults.

    Our modules are imported later, when they are needed: one of them may be importing RecBole right now.
    """
    # get_model looks for a module recbole.model.general_recommender.<name>; plugin/models/onebp.py becomes one.
    wrapt.register_post_import_hook(_add_models, "recbole.model.general_recommender")
    # get_trainer looks for recbole.trainer.<Name>Trainer, create_dataset for recbole.data.dataset.<Name>Dataset.
    _answer("recbole.trainer", "OneBPTrainer", "recbole_onebp.trainer")
    _answer("recbole.data.dataset", "OneBPDataset", "recbole_onebp.data.dataset")
    # AbstractDataLoader.__init__ makes list(range(n)), which takes 36 bytes per row, before any method that a subclass
    # could override, and torch does not let a loader's dataset be replaced afterwards. So the module gets its own list.
    import_module("recbole.data.dataloader.abstract_dataloader").list = _listed  # type: ignore[attr-defined]
    wrapt.wrap_function_wrapper("recbole.config.configurator", "Config._load_internal_config_dict", _add_defaults)
    wrapt.wrap_function_wrapper("recbole.data.utils", "Sampler", _choose_sampler)
    wrapt.wrap_function_wrapper("recbole.data.utils", "get_dataloader", _choose_loader)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Collector", _choose_collector)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Trainer.evaluate", _choose_scoring)


def _add_models(package: Any) -> None:
    package.__path__.extend([_MODELS, *map(str, own_models())])


def _answer(module: str, name: str, home: str) -> None:
    """Add a class of ours to a module of RecBole; it is imported on first use."""

    def __getattr__(asked: str) -> Any:  # noqa: N807
        if asked != name:
            raise AttributeError(f"module {module!r} has no attribute {asked!r}")
        return getattr(import_module(home), name)

    import_module(module).__getattr__ = __getattr__  # type: ignore[method-assign]


def _listed(values: Iterable[Any]) -> Sequence[Any]:
    return values if isinstance(values, range) else [*values]


def _add_defaults(wrapped: Callable[..., None], config: Any, args: Any, kwargs: Any) -> None:
    """Read our YAML files after RecBole's; what the user gave overrides both."""
    wrapped(*args, **kwargs)
    _, model_class, dataset = args
    defaults, given = config.internal_config_dict, config.external_config_dict
    own_file = property_file("model", model_class.__name__)
    if own_file is not None:
        config._update_internal_config_dict(own_file)
    if model_class.__name__ == "OneBP":
        _check_stock_config(config)
        defaults.update(import_module("recbole_onebp.config.schema").dependent_defaults(given))
        defaults.update(read_preset(given.get("preset", defaults["preset"]), dataset))
    dataset_file = property_file("dataset", dataset)
    if dataset_file is not None:
        config._update_internal_config_dict(dataset_file)
    if given.get("output_dir"):
        defaults["checkpoint_dir"] = given["output_dir"]


def _check_stock_config(config: Any) -> None:
    """Check what the user gave to RecBole's own ``Config``; :class:`RunConfig` has checked it already.

    RecBole also reads ``sys.argv``, whichever program is running: keys that are found only there are not checked.
    """
    ours = import_module("recbole_onebp.config.recbole_config")
    if not isinstance(config, ours.RunConfig):
        given = {**config.file_config_dict, **config.variable_config_dict}
        ours.check_given({key: config.external_config_dict[key] for key in given}, "OneBP")


def _choose_sampler(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Make our sampler instead of RecBole's where the configuration asks for it."""

    def ours(_phases: Any, datasets: Sequence[Any], *_args: Any, **_kwargs: Any) -> Any:
        config = datasets[0].config
        fast, of_train = bool(config["fast_sampler"]), config["model"] == "OneBP"
        return import_module("recbole_onebp.data.loaders").sampler_class(fast, of_train) if fast or of_train else None

    return (ours(*args, **kwargs) or wrapped)(*args, **kwargs)


def _evaluates_fast(config: Any, *phases: str) -> bool:
    """Whether our evaluation is asked for and applies: one of the phases ranks all items for each user."""
    mode = config["eval_args"]["mode"]
    full = any(mode[phase] == "full" for phase in phases)
    asked = config["fast_evaluator"] or config["eval_items"] in ("warm", "cold")
    return bool(asked) and full and config["MODEL_TYPE"].name != "SEQUENTIAL"


def _choose_loader(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Return our loader class from ``get_dataloader`` where the configuration asks for it."""

    def ours(config: Any, phase: str) -> Any:
        if phase == "train":
            shared = config["model"] == "OneBP" and config["negatives"] == "shared"
            return import_module("recbole_onebp.data.loaders").PairDataLoader if shared else None
        fast = _evaluates_fast(config, "valid" if phase == "valid" else "test")
        return import_module("recbole_onebp.evaluation.full_sort_loader").FastFullSortEvalDataLoader if fast else None

    return ours(*args, **kwargs) or wrapped(*args, **kwargs)


def _choose_collector(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Make our collector instead of RecBole's where the configuration asks for it."""

    def fast(config: Any) -> bool:
        return _evaluates_fast(config, "valid", "test")

    collector = import_module("recbole_onebp.evaluation.full_sort").FastCollector if fast(*args, **kwargs) else wrapped
    return collector(*args, **kwargs)


def _choose_scoring(wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any) -> Any:
    """Compute only the scores that can enter a top-k list where the configuration asks for it."""
    part = kwargs.get("eval_data", args[0] if args else None)
    if not _evaluates_fast(trainer.config, "valid", "test"):
        return wrapped(*args, **kwargs)
    with import_module("recbole_onebp.evaluation.full_sort").bounded_ranking(trainer, part):
        return wrapped(*args, **kwargs)
