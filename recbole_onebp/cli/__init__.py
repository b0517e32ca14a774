"""The command line: ``recbole-onebp train``, ``compare``, ``tune``, ...; and ``run_recbole_onebp.py``.

Exit codes: 0 done; 2 for what the user can mend, told in one line that starts with ``error:``; 1 a bug; 130 Ctrl-C;
143 SIGTERM.
"""

from __future__ import annotations

import argparse
import ast
import errno
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from recbole_onebp import __version__
from recbole_onebp.plugin import import_hook
from recbole_onebp.util.errors import LostRankError, UserError

__all__ = ["main", "parse_overrides"]

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""On the disk: it may show wherever something is written, in RecBole and TensorBoard too."""


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
    train.add_argument("-d", "--dataset", help="ml-100k, a name that fetch knows, or a folder below data_path")
    train.add_argument("--config_files", help="YAML files, separated by spaces; later ones override earlier ones")
    train.add_argument("--resume", metavar="auto|RUN_DIR", help="go on with a run that was stopped; auto: with that in "
                       "output_dir, if there is one")  # fmt: skip
    train.add_argument("--nproc", type=int, default=1, help="processes on this host, for OneBP; default: 1")
    train.add_argument("--world_size", type=int, default=-1, help="processes on all hosts; default: nproc")
    train.add_argument("--group_offset", type=int, default=0, help="rank of this host's first process; default: 0")
    train.add_argument("--ip", default="localhost", help="of the host of rank 0; default: localhost")
    train.add_argument("--port", type=int, help="of the same; default: a free one, on several hosts 5678")
    train.set_defaults(run=_train)

    compare = commands.add_parser(
        "compare",
        help="models x seeds on one split, with a report",
        description="Train models on one split, each run in a process of its own, and report. What is finished is not "
        "run again. Every key, of the file or of all models, goes as --key=value.",
        epilog="example: recbole-onebp compare properties/compare/quick.yaml --output_dir=out --jobs=2",
        allow_abbrev=False,
    )
    compare.add_argument("config_files", nargs="+", metavar="CONFIG.yaml", help="later ones override earlier ones")
    compare.add_argument("--output_dir", metavar="DIR", help="default: runs/compare-CONFIG")
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: 1")
    compare.set_defaults(run=_compare)

    _add_tune(commands)
    _add_fetch(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_recommend(commands)
    _add_serve(commands)

    doctor = commands.add_parser("doctor", help="versions, device, what is patched and why, what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser(
        "tune",
        help="search hyper-parameters on validation",
        description="Search the spaces of a YAML file, or go on with it. Keys for all models go as --key=value.",
        epilog="example: recbole-onebp tune properties/tune/quick.yaml --trials=5",
        allow_abbrev=False,
    )
    tune.add_argument("config", type=Path, metavar="CONFIG.yaml")
    tune.add_argument("--output_dir", type=Path, metavar="DIR", help="default: runs/tune-<name of the file>")
    tune.add_argument("--trials", type=int, metavar="N", help="a model; default: the file's")
    tune.add_argument("--jobs", type=int, default=1, metavar="N", help="models at a time; default: 1")
    tune.set_defaults(run=_tune)


def _add_fetch(commands: Any) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="get a data set by name, verified, with a validation part",
        description="Get gowalla, yelp2018, amazon-book, onebp-ml-100k, onebp-ml-1m or what RecBole downloads.",
        epilog="example: recbole-onebp fetch gowalla --from=copy_of_gowalla",
        allow_abbrev=False,
    )
    fetch.add_argument("name", metavar="NAME")
    fetch.add_argument("--from", dest="source", type=Path, metavar="DIR", help="a folder with the published files, or "
                       "train.* and test.*")  # fmt: skip
    fetch.add_argument("--url", metavar="BASE", help="a mirror: files lie at BASE/path")
    fetch.add_argument("--pins", type=Path, metavar="FILE", help="lines of 'path: git blob id or SHA-256'")
    fetch.add_argument("--data_path", type=Path, default=Path("dataset"), metavar="DIR", help="default: dataset")
    fetch.add_argument("--force", action="store_true", help="replace what is there")
    fetch.set_defaults(run=_fetch)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="CSV, TSV, Parquet or a GroupLens zip to RecBole's atomic files",
        description="Turn files of interactions, a row each, into a data set that --dataset takes.",
        epilog="example: recbole-onebp convert ratings.csv --name=mine --user=customer --item=sku --min_rating=4 "
        "--k_core=5 --split=ratio",
        allow_abbrev=False,
    )
    convert.add_argument("files", nargs="+", type=Path, metavar="FILE")
    convert.add_argument("--name", help="of the data set; default: the first file's")
    convert.add_argument("--data_path", type=Path, default=Path("dataset"), metavar="DIR", help="default: dataset")
    for flag in ("user", "item"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="its name, or number from 1 with --no_header")
    for flag in ("rating", "time"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="the same; rows without are bad rows; '': not read")
    convert.add_argument("--sep", help="between columns, such as ';', '\\t' or '::'; default: by the suffix")
    convert.add_argument("--no_header", action="store_true", help="the first line is a row")
    convert.add_argument("--encoding", default="utf-8")
    convert.add_argument("--bad_rows", choices=("drop", "refuse"), default="drop", help="default: drop, and show them")
    convert.add_argument("--min_rating", type=float, help="leave lower rated rows out")
    convert.add_argument("--duplicates", choices=("first", "last", "keep"), default="first",
                         help="which row of a user and item stays; default: first")  # fmt: skip
    convert.add_argument("--k_core", type=int, default=0, help="least number of rows a user and an item")
    convert.add_argument("--split", choices=("none", "ratio", "leave_one_out", "time"), default="none",
                         help="default: none, RecBole splits in each run")  # fmt: skip
    convert.add_argument("--ratios", nargs=3, type=float, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VALID", "TEST"))
    convert.add_argument("--seed", type=int, default=2020, help="of the split")
    convert.add_argument("--force", action="store_true", help="replace what is there")
    convert.set_defaults(run=_convert)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="from a run to a bundle, which needs numpy alone",
        description="Write encodings, ids, train histories, titles and a model card of a run to a folder of their own.",
        epilog="example: recbole-onebp export runs/mine bundle",
        allow_abbrev=False,
    )
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what train wrote; its data are where they were")
    export.add_argument("bundle_dir", type=Path, metavar="BUNDLE_DIR")
    export.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: float32")
    export.add_argument("--ann", choices=("faiss", "hnswlib"), help="with an index for approximate search")
    export.add_argument("--onnx", action="store_true", help="with the scorer as an ONNX file")
    export.add_argument("--force", action="store_true", help="replace an earlier bundle")
    export.set_defaults(run=_export)


def _add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend",
        help="the best items of users, from a bundle",
        description="Show the best items of users, or write them to a file: by all cores, and started again after it "
        "was stopped, it goes on.",
        epilog="examples: recbole-onebp recommend bundle --users=196,22; recbole-onebp recommend bundle --all_users "
        "--k=20 --out=batch.parquet",
        allow_abbrev=False,
    )
    recommend.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    whom = recommend.add_mutually_exclusive_group(required=True)
    whom.add_argument("--users", metavar="IDS", help="separated by commas; or a file as below")
    whom.add_argument("--users_file", type=Path, metavar="FILE", help="one id a line")
    whom.add_argument("--all_users", action="store_true")
    whom.add_argument("--history", metavar="IDS", help="items that a user never seen has taken, separated by commas")
    recommend.add_argument(
        "--rule", choices=("alike", "trained", "recent"),
        help="with --history: its items count alike (default), as in training, or the latest most",
    )  # fmt: skip
    recommend.add_argument("--k", type=int, default=10, help="items a user; default: 10")
    recommend.add_argument("--include_seen", action="store_true", help="also items that a user has taken")
    recommend.add_argument("--allow", type=Path, metavar="FILE", help="choose from these items only, one id a line")
    recommend.add_argument("--deny", type=Path, metavar="FILE", help="leave these items out, one id a line")
    recommend.add_argument("--out", type=Path, metavar="FILE", help=".csv, .jsonl or .parquet; default: shown")
    recommend.add_argument("--jobs", type=int, metavar="N", help="with --out: processes; default: one a core")
    recommend.add_argument("--force", action="store_true", help="with --out: replace what is there")
    recommend.set_defaults(run=_recommend)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="answer over HTTP, from a bundle",
        description="Serve a bundle, a page to try it on, and /docs. New events move users at once, and are on the "
        "disk before they are acknowledged. RECBOLE_ONEBP_API_KEY, if it is set, is asked for.",
        epilog="example: recbole-onebp serve bundle --port=8000",
        allow_abbrev=False,
    )
    serve.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    serve.add_argument("--events", type=Path, metavar="DIR", help="of the events; default: BUNDLE_DIR.events")
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    serve.add_argument("--watch", type=float, metavar="SECONDS", help="look this often for a new bundle, and serve it")
    serve.add_argument("--memory_mb", type=float, default=30, help="bounds the scores held at a time; default: 30")
    serve.add_argument(
        "--index", choices=("faiss", "hnswlib"), help="approximate search, with what export --ann has added"
    )
    serve.set_defaults(run=_serve)


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
            repr(value)  # a whole number of thousands of digits is none that could be shown
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, (str, int, float, list, tuple, dict)) else text


def _train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = parse_overrides(rest)
    world_size = arguments.nproc if arguments.world_size == -1 else arguments.world_size
    if not (1 <= arguments.nproc <= world_size and 0 <= arguments.group_offset <= world_size - arguments.nproc):
        raise UserError(
            f"nproc: {arguments.nproc}, world_size: {world_size}, group_offset: {arguments.group_offset}: expected "
            "1 <= nproc, and group_offset + nproc <= world_size"
        )
    if world_size > 1 and "RANK" not in os.environ:
        return _launch(arguments, world_size)
    flags = ("model", "dataset", "resume")
    overrides.update({key: value for key in flags if (value := getattr(arguments, key)) is not None})
    import_hook.require_recbole()

    from recbole_onebp.config.schema import RunConfig
    from recbole_onebp.distributed.ranks import launched_rank, leave
    from recbole_onebp.run.build import build_from, load_config
    from recbole_onebp.util import logs

    files = (arguments.config_files or "").split()
    if "models" in RunConfig.read_files(files):
        if launched_rank() is not None:
            raise UserError("nproc: a comparison trains each model in one process; use jobs for several runs at a time")
        return _compare_files(files, overrides)
    config, folder = load_config(files, overrides)
    logs.start(folder.log, (config["state"] or "INFO").upper())
    logger = logging.getLogger()
    logger.info(config)
    run = build_from(config, folder)
    logger.info(run.dataset)
    logger.info(run.model)
    result = run.fit()
    for part in ("valid", "test"):
        shown = "  ".join(f"{name}: {value:.4f}" for name, value in getattr(result, part).items())
        logger.info("%s, epoch %d: %s", part, result.best_epoch, shown or "not evaluated")
    logger.info("wrote %s", folder.path)
    leave()
    return 0


def _launch(arguments: argparse.Namespace, world_size: int) -> int:
    from recbole_onebp.distributed.launch import launch

    port = arguments.port or (5678 if world_size > arguments.nproc else None)
    where = arguments.nproc, world_size, arguments.group_offset, arguments.ip, port
    return launch(main, arguments.given, *where)


def _compare(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    import_hook.require_recbole()
    given = {key: value for key in ("output_dir", "jobs") if (value := getattr(arguments, key)) is not None}
    return _compare_files(arguments.config_files, {**parse_overrides(rest), **given})


def _compare_files(files: Sequence[str], overrides: dict[str, Any]) -> int:
    from recbole_onebp.experiments.compare import compare

    _say_to_stdout()
    compare(files, overrides)
    return 0


def _refuse_others(rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}")


def _say_to_stdout() -> None:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout, force=True)


def _tune(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = parse_overrides(rest)
    if arguments.trials is not None:
        overrides["trials"] = arguments.trials
    import_hook.require_recbole()

    from recbole_onebp.experiments.tune.search import tune

    tune(arguments.config, overrides, arguments.output_dir, arguments.jobs)
    return 0


def _fetch(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    from recbole_onebp.data.sources.fetch import fetch

    _say_to_stdout()
    fetch(arguments.name, arguments.data_path, arguments.source, arguments.url, arguments.pins, arguments.force)
    return 0


def _convert(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    from recbole_onebp.data.sources.convert import Conversion, convert
    from recbole_onebp.data.sources.tables import TableFormat

    _say_to_stdout()
    given = {"user_id": arguments.user, "item_id": arguments.item, "rating": arguments.rating}
    form = TableFormat(
        columns={key: column for key, column in {**given, "timestamp": arguments.time}.items() if column is not None},
        separator=arguments.sep.replace("\\t", "\t") if arguments.sep else None,
        header=not arguments.no_header,
        encoding=arguments.encoding,
    )
    conversion = Conversion(
        form=form,
        bad_rows=arguments.bad_rows,
        min_rating=arguments.min_rating,
        duplicates=arguments.duplicates,
        k_core=arguments.k_core,
        split=arguments.split,
        ratios=arguments.ratios,
        seed=arguments.seed,
    )
    name = arguments.name or arguments.files[0].stem
    convert(arguments.files, name, arguments.data_path, conversion, arguments.force)
    return 0


def _export(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    import_hook.require_recbole()
    from recbole_onebp.serving.export.exporter import export

    run_dir, bundle_dir = arguments.run_dir, arguments.bundle_dir
    manifest = export(run_dir, bundle_dir, arguments.dtype, arguments.force, arguments.ann, arguments.onnx)
    if arguments.ann:
        print("index: recall@{k} {recall:.4f} of the exact lists, {queries_a_second} queries a second; exact: "
              "{exact_queries_a_second}".format(**manifest["ann"]))  # fmt: skip
    print(f"wrote {arguments.bundle_dir}")
    return 0


def _recommend(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    from recbole_onebp.serving import batch
    from recbole_onebp.serving.recommender import DEFAULT_RULE

    if arguments.rule and arguments.history is None:
        raise UserError("--rule without --history: it says how a history becomes a user; leave --rule out")
    allow, deny = (None if file is None else tuple(batch.read_ids(file)) for file in (arguments.allow, arguments.deny))
    request = batch.Request(arguments.k, not arguments.include_seen, allow, deny or ())
    users_file = arguments.users_file
    if arguments.users and Path(arguments.users).is_file():
        users_file = Path(arguments.users)
    users = users_file or _ids("--users", arguments.users)
    if arguments.out is None:
        history = _ids("--history", arguments.history)
        batch.show(arguments.bundle, users, history, request, arguments.rule or DEFAULT_RULE)
        return 0
    if arguments.history is not None:
        raise UserError("--out with --history: a history is shown, not written; leave --out out")
    written = batch.write_lists(
        arguments.bundle, users, arguments.out, request, jobs=arguments.jobs, force=arguments.force, show_progress=True
    )
    for item in written.unknown_items:
        print(f"unknown item: {item}", file=sys.stderr)
    if written.n_unknown_users:
        print(f"unknown users: {written.n_unknown_users}, see {arguments.out}.unknown.txt", file=sys.stderr)
    print(f"wrote {arguments.out}")
    return 0


def _ids(flag: str, given: str | None) -> list[str] | None:
    ids = None if given is None else [part.strip() for part in given.split(",")]
    if ids and "" in ids:
        raise UserError(f"{flag}={given}: an id is empty; expected ids separated by commas, such as 196,22")
    return ids


def _serve(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    from recbole_onebp.serving.http.server import Service, serve

    where = arguments.host, arguments.port
    serve(Service(arguments.bundle, arguments.events, *where, arguments.watch, arguments.memory_mb, arguments.index))
    return 0


def _doctor(_arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse_others(rest)
    from recbole_onebp.cli.doctor import report

    healthy = report()
    return 0 if healthy else 2


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    if not hasattr(select, "poll"):  # on Windows
        return False
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        arguments.given = sys.argv[1:] if argv is None else list(argv)
        code = int(arguments.run(arguments, rest))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))  # what is wrong for all is told once
        print(f"rank {rank}: {error}" if rank else f"error: {error}", file=sys.stderr)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left in the buffer
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
    except ImportError as error:
        if error.msg != import_hook.missing_recbole():
            raise
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint, if there is one, is intact: --resume goes on from it", file=sys.stderr)
        return 130
    return 2
