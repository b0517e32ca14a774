"""Lists for many users, printed or written to a file.

A file is written in parts by several processes.  After an interruption only the missing parts are computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from recbole_onebp.serving.answers import Answers
from recbole_onebp.serving.bundle import read_bundle
from recbole_onebp.serving.list_formats import PartWriter, format_of
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.serving.user_state import DEFAULT_RULE, Rule
from recbole_onebp.util.errors import UserError, printable, writing
from recbole_onebp.util.files import write_atomically
from recbole_onebp.util.hashes import sha256
from recbole_onebp.util.processes import Call, Ending, n_cores, supervise

__all__ = ["Request", "Written", "read_ids", "say", "show", "write_lists"]

_PART = 4096
"""Users of a part, at most."""
_PART_PAIRS = 1 << 22
"""Pairs of a user and an item in a part, at most: longer lists make smaller parts."""
_LONGEST_ID = 1 << 16


@dataclass(frozen=True)
class Request:
    """Arguments for all users; see :meth:`~recbole_onebp.serving.Recommender.recommend`."""

    k: int = 10
    exclude_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def answer(self, recommender: Recommender, users: Iterable[str]) -> Answers:
        return recommender.recommend(users, **asdict(self))

    def answer_history(self, recommender: Recommender, histories: Iterable[Iterable[str]], rule: Rule) -> Answers:
        return recommender.recommend_history(histories, **asdict(self), rule=rule)


def read_ids(path: Path) -> Iterator[str]:
    """Read ids from a file, one per line; empty lines are skipped.

    Raises:
        UserError: if the file cannot be read, or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(_LONGEST_ID + 2):
                if len(line) > _LONGEST_ID:
                    raise UserError(f"{path}: a line has more than {_LONGEST_ID} letters; expected one id per line")
                if name := line.rstrip("\r\n"):
                    yield name
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from None


def show(
    bundle_dir: Path,
    users: Path | Sequence[str] | None,
    history: Sequence[str] | None,
    request: Request,
    rule: Rule = DEFAULT_RULE,
) -> None:
    """Print lists to stdout, with titles if there are any, and unknown ids to stderr.

    Args:
        bundle_dir: the bundle.
        users: a file with one id per line, or the ids; all users of the bundle if None.
        history: the items of a new user; then ``users`` is ignored.
        request: the arguments for all users.
        rule: how the history becomes a user.

    Raises:
        UserError: if the bundle or the file cannot be read.
    """
    recommender = Recommender.load(bundle_dir)
    if history is not None:
        _print(["with this history"], request.answer_history(recommender, [history], rule), recommender)
        return
    ids = read_ids(users) if isinstance(users, Path) else iter(recommender.user_ids if users is None else users)
    part = _part_size(request, recommender.n_items)
    while chunk := list(islice(ids, part)):
        _print(chunk, request.answer(recommender, chunk), recommender)


def _print(users: Sequence[str], answers: Answers, recommender: Recommender) -> None:
    for user, answer in zip(users, answers, strict=True):
        say(f"user {user}")
        for rank, (item, score) in enumerate(answer, start=1):
            title = recommender.title(item)
            say(f"{rank:>4}. {f'{title} ({item})' if title else item}  {score:.4f}")
    for kind, unknown in (("user", answers.unknown_users), ("item", answers.unknown_items)):
        for name in unknown:
            say(f"unknown {kind}: {name}", sys.stderr)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line with ids or titles; what a terminal could obey, or cannot show, is escaped."""
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=file)


def _part_size(request: Request, n_items: int) -> int:
    """Number of users that are answered at a time."""
    return max(1, min(_PART, _PART_PAIRS // max(1, min(request.k, n_items))))


@dataclass(frozen=True)
class Written:
    """Unknown ids of a batch."""

    n_unknown_users: int
    unknown_items: list[str]
    """In ``allow`` and ``deny``."""


def write_lists(
    bundle_dir: Path,
    users: Path | Sequence[str] | None,
    out: Path,
    request: Request,
    *,
    jobs: int | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> Written:
    """Write the lists of users to a file, which appears when it is complete.

    Finished parts are kept in a folder beside ``out``.  Called again with the same arguments after an interruption, it
    computes only the missing parts.  Unknown users are listed in ``OUT.unknown.txt``.

    Args:
        bundle_dir: the bundle.
        users: a file with one id per line, or the ids; all users of the bundle if None.
        out: the file; its suffix sets the format.  ``.csv`` and ``.parquet``: a row for each user and item, with the
            columns ``user``, ``item``, ``rank`` (from 1) and ``score``.  ``.jsonl``: a line for each user, with
            ``user``, ``items`` and ``scores``.
        request: the arguments for all users.
        jobs: number of processes; the number of cores if None.
        force: replace ``out``.
        show_progress: show a progress bar on stderr.

    Raises:
        UserError: if ``out`` exists and ``force`` is not set, cannot be written, or has another suffix.
    """
    write_part, join, is_lists = format_of(out)
    unknown_file = out.with_name(f"{out.name}.unknown.txt")
    if os.path.lexists(out):
        if not force:
            raise UserError(f"{out}: exists already; choose another file, or replace it with --force")
        if not is_lists(out):
            raise UserError(f"{out}: exists already and holds no lists of this program; choose another file")
    elif os.path.lexists(unknown_file):
        raise UserError(f"{unknown_file}: is in the way: unknown users are written there; move it")
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: {jobs} is not allowed: expected at least 1")
    bundle = read_bundle(bundle_dir)
    unknown_items = request.answer(Recommender(bundle), []).unknown_items  # this checks the request too
    given, users = users, bundle.user_ids if users is None else users
    n_users = sum(1 for _ in read_ids(users)) if isinstance(users, Path) else len(users)
    part_size = _part_size(request, len(bundle.item_ids))
    plan = {
        "manifest": sha256(bundle_dir / "manifest.json"),
        "users": sha256(users) if isinstance(users, Path) else hashlib.sha256("\n".join(users).encode()).hexdigest(),
        "request": asdict(request),
        "users_a_part": part_size,
    }
    parts_dir = out.with_name(f".{out.name}.parts")
    with writing(out):
        _prepare(parts_dir, json.dumps(plan))
        parts = [parts_dir / f"{number:07d}{out.suffix}" for number in range(-(-n_users // part_size))]
        with _progress(parts, part_size, n_users) if show_progress else nullcontext() as tick:
            _run(bundle_dir, given, parts, part_size, request, write_part, jobs or n_cores(), tick)
        write_atomically(out, lambda file: join(parts, file))
        unknown = [name for part in parts if _unknown(part).exists() for name in read_ids(_unknown(part))]
        unknown_file.unlink(missing_ok=True)
        if unknown:
            write_atomically(unknown_file, lambda file: file.write_text("\n".join(unknown) + "\n", encoding="utf-8"))
        shutil.rmtree(parts_dir)
    return Written(len(unknown), unknown_items)


_OF_PARTS = re.compile(r"plan\.json|\d{7,}\.(csv|jsonl|parquet|unknown)|\..+\.tmp")


def _prepare(parts_dir: Path, plan: str) -> None:
    """Create the folder of parts; parts of another plan are deleted.  Nothing else is: it must be a folder of ours."""
    plan_file = parts_dir / "plan.json"
    if os.path.lexists(parts_dir):
        ours = parts_dir.is_dir() and not parts_dir.is_symlink()
        others = [file.name for file in parts_dir.iterdir() if not _OF_PARTS.fullmatch(file.name)] if ours else []
        if not ours or others:
            raise UserError(f"{parts_dir / ''.join(others[:1])}: is in the way: parts are written there; move it")
    if not plan_file.is_file() or plan_file.read_text(encoding="utf-8") != plan:
        shutil.rmtree(parts_dir, ignore_errors=True)
        parts_dir.mkdir(parents=True)
        write_atomically(plan_file, lambda file: file.write_text(plan, encoding="utf-8"))


def _unknown(part: Path) -> Path:
    return part.with_suffix(".unknown")


# ----------------------------------------------------------------------------------------------------------- processes


def _run(
    bundle_dir: Path,
    users: Path | Sequence[str] | None,
    parts: Sequence[Path],
    part_size: int,
    request: Request,
    write_part: PartWriter,
    jobs: int,
    tick: Callable[[], object] | None,
) -> None:
    """Have processes write the parts that do not exist; each process writes every ``jobs``-th of them."""
    missing = [number for number, part in enumerate(parts) if not part.exists()]
    calls = [
        Call(
            f"worker {worker}",
            _work,
            (bundle_dir, users, {n: parts[n] for n in missing[worker::jobs]}, part_size, request, write_part),
            {"OPENBLAS_NUM_THREADS": "1"},  # one process per core
        )
        for worker in range(min(jobs, len(missing)))
    ]
    supervise(calls, jobs, _refuse_failure, tick=tick)


def _refuse_failure(call: Call, ending: Ending) -> None:
    if ending.error is not None:
        raise ending.error
    if not ending.ok:
        raise UserError(f"{call.name} {ending}; rerun to resume; a lower --jobs needs less memory")


def _work(
    bundle_dir: Path,
    users: Path | Sequence[str] | None,
    parts: Mapping[int, Path],
    part_size: int,
    request: Request,
    write_part: PartWriter,
) -> None:
    """Write some of the parts.

    Args:
        bundle_dir: the bundle.
        users: as for :func:`write_lists`.
        parts: number and file of each part, in ascending order.
        part_size: users per part.
        request: what is asked for every user.
        write_part: writes one file.
    """
    recommender = Recommender.load(bundle_dir, verify=False, threads=1)
    ids = read_ids(users) if isinstance(users, Path) else iter(recommender.user_ids if users is None else users)
    n_read = 0
    for number, part in parts.items():
        first = number * part_size
        chunk = list(islice(ids, first - n_read, first - n_read + part_size))
        n_read = first + part_size
        _write_part(part, chunk, request.answer(recommender, chunk), write_part)


def _write_part(part: Path, users: list[str], answers: Answers, write: PartWriter) -> None:
    if answers.unknown_users:
        text = "\n".join(answers.unknown_users) + "\n"
        write_atomically(_unknown(part), lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(part, lambda file: write(file, users, answers))


@contextmanager
def _progress(parts: Sequence[Path], part_size: int, n_users: int) -> Iterator[Callable[[], object] | None]:
    """A bar of the users whose part is written; yields a function that updates it."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the progress bar is optional: serving needs only numpy
        yield None
        return

    def n_done() -> int:
        return min(sum(part.exists() for part in parts) * part_size, n_users)

    with tqdm(total=n_users, initial=n_done(), unit="user", file=sys.stderr) as bar:
        yield lambda: bar.update(n_done() - bar.n)
