"""The command line: ``recbole-onebp train ...``, ``recbole-onebp doctor``, and ``run_recbole_onebp.py``.

Exit codes: 0 done; 2 for what the user can mend, told in one line that starts with ``error:``; 1 a bug; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from recbole_onebp import __version__, compat
from recbole_onebp.errors import UserError

__all__ = ["main", "parse_overrides"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="recbole-onebp", description="One-backpropagation two-tower recommendation for RecBole.")
    parser.add_argument("--version", action="version", version=f"recbole-onebp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train and evaluate OneBP or any of RecBole's recommenders",
        description="Train and evaluate a model. Every configuration key, RecBole's or ours, goes as --key=value.",
        epilog="example: recbole-onebp train --model=OneBP --dataset=ml-100k --epochs=20 --output_dir=out",
        allow_abbrev=False,
    )
    train.add_argument("-m", "--model", help="OneBP, or any of RecBole's models")
    train.add_argument("-d", "--dataset", help="ml-100k, or a folder of atomic files below data_path")
    train.add_argument("--config_files", help="YAML files, separated by spaces; later ones override earlier ones")
    train.add_argument("--nproc", type=int, default=1, help="processes; only 1 so far")
    for flag in ("--ip", "--port", "--world_size", "--group_offset"):  # RecBole's, for several processes
        train.add_argument(flag, help=argparse.SUPPRESS)
    train.set_defaults(run=_train)

    doctor = commands.add_parser("doctor", help="versions, device, what is patched and why, what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--key=value`` arguments as a dictionary.

    A value that reads as a Python literal is one, as with RecBole (``0.01``, ``[10, 20]``, ``None``), but nothing is
    evaluated; ``true`` and ``false`` are booleans; everything else is the text itself.

    Raises:
        UserError: for an argument of another form, or a key given twice with different values.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        match = re.fullmatch(r"--([A-Za-z_]\w*)=(.*)", argument, flags=re.DOTALL)
        if match is None:
            raise UserError(f"argument {argument!r}: expected --key=value")
        key, value = match[1], _literal(match[2])
        if key in values and values[key] != value:
            raise UserError(f"--{key} is given twice: {values[key]!r} and {value!r}")
        values[key] = value
    return values


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about text that was never meant as Python
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, (str, int, float, list, tuple, dict)) else text


def _train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = parse_overrides(rest)
    if arguments.nproc != 1 or arguments.world_size not in (None, "-1", "1"):
        raise UserError("nproc and world_size: training in several processes is not supported; leave them at 1")
    overrides.update({key: value for key in ("model", "dataset") if (value := getattr(arguments, key)) is not None})
    compat.require_recbole()

    from recbole_onebp import logs, quick_start

    config, folder = quick_start.load_config((arguments.config_files or "").split(), overrides)
    logs.start(folder.log, (config["state"] or "INFO").upper())
    logger = logging.getLogger()
    logger.info(config)
    run = quick_start.build_from(config, folder)
    logger.info(run.dataset)
    logger.info(run.model)
    result = run.fit()
    for part in ("valid", "test"):
        shown = "  ".join(f"{name}: {value:.4f}" for name, value in getattr(result, part).items())
        logger.info("%s, epoch %d: %s", part, result.best_epoch, shown or "not evaluated")
    logger.info("wrote %s", folder.path)
    return 0


def _doctor(_arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}")
    from recbole_onebp.doctor import report

    healthy = report()
    return 0 if healthy else 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        return int(arguments.run(arguments, rest))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except ImportError as error:
        if error.msg != compat.missing_recbole():
            raise
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the checkpoint of the best epoch so far, if there is one, is intact", file=sys.stderr)
        return 130
    return 2
