"""``recbole-onebp train``: train and evaluate a model."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from recbole_onebp.cli import compare
from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.plugin import import_hook
from recbole_onebp.util.errors import UserError

__all__ = ["add", "run"]

_RANDOM_SPLIT = (
    "eval_args: the split is random, though the interactions have times (%s), so metrics are higher than on later "
    'interactions; to test on the latest: --load_col="{inter: [user_id, item_id, %s]}" --eval_args="{order: TO}"'
)


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    train = commands.add_parser(
        "train",
        help="train and evaluate OneBP or any RecBole recommender",
        description="Train and evaluate a model. Set any configuration key, RecBole's or ours, with --key=value.",
        epilog="example: recbole-onebp train --model=OneBP --dataset=ml-100k --epochs=20 --output_dir=out",
        allow_abbrev=False,
    )
    train.add_argument("-m", "--model", help="OneBP, or any RecBole model")
    train.add_argument("-d", "--dataset", help="ml-100k, a name that fetch knows, or a folder below data_path")
    train.add_argument("--config_files", help="a YAML file, or several separated by blanks; later ones override "
                       "earlier ones; quote a name with blanks among several")  # fmt: skip
    train.add_argument("--resume", metavar="auto|RUN_DIR", help="resume a stopped run; auto: the run in output_dir, if "
                       "there is one")  # fmt: skip
    train.add_argument("--nproc", type=int, default=1, help="number of processes on this host, for OneBP; default: 1")
    train.add_argument("--world_size", type=int, default=-1, help="number of processes on all hosts; default: nproc")
    train.add_argument("--group_offset", type=int, default=0, help="rank of this host's first process; default: 0")
    train.add_argument("--ip", default="localhost", help="address of the host of rank 0; default: localhost")
    train.add_argument("--port", type=int, default=5678, help="with several hosts: a port of rank 0's; default: 5678")
    train.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; ``rest`` are the arguments ``--key=value``."""
    overrides = parse_overrides(rest)
    world_size = arguments.nproc if arguments.world_size == -1 else arguments.world_size
    if not (1 <= arguments.nproc <= world_size and 0 <= arguments.group_offset <= world_size - arguments.nproc):
        raise UserError(
            f"nproc: {arguments.nproc}, world_size: {world_size}, group_offset: {arguments.group_offset}: expected "
            "1 <= nproc, and group_offset + nproc <= world_size"
        )
    if not 0 < arguments.port < 1 << 16:
        raise UserError(f"port: {arguments.port}: expected a number from 1 to 65535")
    if world_size > 1 and "RANK" not in os.environ:
        return _launch(arguments, world_size)
    flags = ("model", "dataset", "resume")
    overrides.update({key: value for key in flags if (value := getattr(arguments, key)) is not None})
    import_hook.require_recbole()

    from recbole_onebp.config import RunConfig
    from recbole_onebp.config.files import file_names
    from recbole_onebp.distributed.ranks import launched_rank, leave

    files = file_names(arguments.config_files)
    in_files = RunConfig.read_files(files)
    if "models" in in_files:
        if launched_rank() is not None:
            raise UserError("nproc: a comparison trains each model in one process; use jobs for several runs at a time")
        return compare.compare_files(files, overrides)
    bars = in_files.get("show_progress", sys.stderr is not None and sys.stderr.isatty())
    _train(files, {"show_progress": bars, **overrides})
    leave()
    return 0


def _launch(arguments: argparse.Namespace, world_size: int) -> int:
    from recbole_onebp.cli import main  # here, because that module imports this one
    from recbole_onebp.distributed.launch import launch

    of_ranks = arguments.nproc, world_size, arguments.group_offset, arguments.ip, arguments.port
    return launch(main, arguments.given, *of_ranks)


def _train(files: Sequence[str], overrides: dict[str, Any]) -> None:
    from recbole_onebp.data.checks import ignores_times
    from recbole_onebp.run.build import build_from, load_config
    from recbole_onebp.util import logs

    config, folder = load_config(files, overrides)
    logs.start(folder.log, config.log_level)
    logger = logging.getLogger()
    run = build_from(config, folder)
    given = ", ".join(f"{key}: {value}" for key, value in config.external_config_dict.items())
    logger.info("given: %s; all settings, more than a hundred, are in %s", given, folder.path / "config.yaml")
    if ignores_times(config):
        logger.warning(_RANDOM_SPLIT, config["TIME_FIELD"], config["TIME_FIELD"])
    logger.info(run.dataset)
    logger.info(run.model)
    result = run.fit()
    lists = ""
    if config["model"] == "OneBP":
        lists = f"; for lists: recbole-onebp export {folder.path} BUNDLE_DIR"
        if result.valid:
            local = f"--local_weight={result.local['weight']:g}" if result.local else "--local=none"
            options = f"--refit=true --epochs={result.best_epoch + 1} {local}"
            logger.info("on train + validation: the same command with %s", options)
    logger.info("wrote %s%s", folder.path, lists)
