"""Published splits that can be fetched by name: where they are, their ids and their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from recbole_onebp.data.sources.citeulike import read_citeulike
from recbole_onebp.data.sources.download import check_url
from recbole_onebp.util.errors import UserError

__all__ = ["CATALOGUE", "Published", "RemoteFile", "mirrored"]

_MOST_PINS = 1 << 20
"""Bytes of a list of pins."""
_PIN = re.compile("(.+): +([0-9a-f]{40}|[0-9a-f]{64})", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a fixed commit."""

    path: str
    """Relative to the base URL."""
    pin: str
    """Git blob id or SHA-256 of the content."""


@dataclass(frozen=True)
class Published:
    """A data set with published train and test parts."""

    base: str
    """URL of the folder; empty if it can be read from a folder only."""
    files: Mapping[str, RemoteFile]
    """``train`` and ``test``, or what ``read`` expects."""
    counts: Mapping[str, int]
    """Published numbers of users, items, and interactions of each published part."""
    ordered: bool = False
    """Whether a user's items are in order of time in its line, and its test line goes on where its train line ends."""
    read: Callable[[Mapping[str, Path]], tuple[dict[str, pd.DataFrame], pd.DataFrame]] | None = None
    """Reads all three parts and the features of the items, if the files hold these."""
    found_in: str = ""
    """Where the files come from, if there is no base."""


def _published(
    base: str,
    train: tuple[str, str],
    test: tuple[str, str],
    n_users: int,
    n_items: int,
    n_train: int,
    n_test: int,
    ordered: bool = False,
    found_in: str = "",
) -> Published:
    counts = {"users": n_users, "items": n_items, "train": n_train, "test": n_test}
    files = {"train": RemoteFile(*train), "test": RemoteFile(*test)}
    return Published(base, files, counts, ordered, found_in=found_in)


_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/947ca2b3b1d2d3545b114145710cb06c4e57b3d2"
_ONEBP = "https://raw.githubusercontent.com/studentcej/OneBP/8ad479b982ebbbbdb384704d27795465be170d97"

CATALOGUE: Mapping[str, Published] = {
    "gowalla": _published(
        _LIGHTGCN,
        ("data/gowalla/train.txt", "a27782bd7a1d4d0744148dc0460ea94da74763f2"),
        ("data/gowalla/test.txt", "9ed5af4b5d21511f33740b4e22e3852f45671800"),
        29_858, 40_981, 810_128, 217_242, ordered=True,
    ),
    "yelp2018": _published(
        _LIGHTGCN,
        ("data/yelp2018/train.txt", "cda12361055ba448ae4bd1070f6000c16dea8f22"),
        ("data/yelp2018/test.txt", "30dfbc3437b27b74cb2970b435a5ec93ad9f2468"),
        31_668, 38_048, 1_237_259, 324_147, ordered=True,
    ),
    "amazon-book": _published(
        _LIGHTGCN,
        ("data/amazon-book/train.txt", "6ef55159c5f1fd7f6d86eb9ff290d0cc2854ac99"),
        ("data/amazon-book/test.txt", "09e5da4e0bf46c751c4ba0f4375e414fd13512cd"),
        52_643, 91_599, 2_380_730, 603_378, ordered=True,
    ),
    # As many lines as nidhidanayak/NGCF-PyTorch's copy of the train file has, and the same lines of the test file.
    "amazon-book-part": _published(
        "",
        ("train.txt", "d71459455050196ca68ba6d18d638f5d06134ff5"),
        ("test.txt", "1ef99baf908bd738a263b7f815842ad667b7442d"),
        10_529, 74_008, 625_378, 159_285, ordered=True,
        found_in="the first 10,529 lines of amazon-book's train.txt and test.txt",
    ),
    "onebp-ml-100k": _published(
        _ONEBP,
        ("data/100k_train.csv", "6da5282ba409f9b4ddaa37c6f2aeb9f90f37e355"),
        ("data/100k_test.csv", "d55c280d2e85b13ff08400b5394b31b9355a9ac9"),
        943, 1_682, 80_000, 20_000,
    ),
    "onebp-ml-1m": _published(
        _ONEBP,
        ("data/1m1_train.csv", "6f86de9e8c647de5de2ef208e805faf085957209"),
        ("data/1m1_test.csv", "1c2e60378b64f7734989e836368d4dc107587c5d"),
        6_040, 3_706, 800_193, 200_016,
    ),
    "citeulike": Published(
        "",
        {
            "train": RemoteFile("warm_emb.csv", "af96827a2cdc1a3ca36b0f8b208b0d885321de8f"),
            "warm_valid": RemoteFile("warm_val.csv", "00526b86e850d0ec602ff45a86ae2cdec9231636"),
            "cold_valid": RemoteFile("cold_item_val.csv", "3bff79148d457040a8e379c2f22c3e98ed1ea18d"),
            "warm_test": RemoteFile("warm_test.csv", "b88513fb194d900bbec60ca3d1bbb2efc679c3c2"),
            "cold_test": RemoteFile("cold_item_test.csv", "2d4e3414a185cb9d39df5442e1cb4fe0a86877a4"),
            "tags": RemoteFile("item-tag.dat", "f9e559356b1a84ba3c709a7cb4bc87fea2dad459"),
            "tag_names": RemoteFile("tags.dat", "231dccc10c3b5ecb421e028528072b652c67aa04"),
            "citations": RemoteFile("citations.dat", "5e8d91150d1bc1f8ce424a2ebe224a4fd1242e53"),
        },
        {"users": 5_551, "items": 16_980, "train": 132_073, "valid": 36_273, "test": 36_640},
        read=read_citeulike,
        found_in="the .dat files of github.com/js05212/citeulike-a and the .csv files of github.com/zfnWong/ALDI, "
        "data/CiteULike",
    ),
}  # fmt: skip


def mirrored(published: Published, base: str, pins: Path | None) -> Published:
    """The same data set at another URL.

    Args:
        published: the data set.
        base: the URL of a file is ``base/path``.
        pins: a text file of ``path: id`` lines (empty lines and lines that begin with ``#`` are skipped), where a path
            is the published one or the end of it (``train.txt``, ``gowalla/train.txt``) and an id is a git blob id or a
            SHA-256; without it the published paths and ids are expected.

    Raises:
        UserError: if ``pins`` cannot be read, has other lines, or has not exactly one entry for each file.
    """
    check_url(base)
    files = published.files
    if pins is not None:
        listed = _read_pins(pins)
        files = {part: _pinned(file, listed, pins) for part, file in files.items()}
    return replace(published, base=base.rstrip("/"), files=files)


def _read_pins(path: Path) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_PINS + 1)
        if len(content) > _MOST_PINS:
            raise UserError(f"--pins {path}: has more than {_MOST_PINS >> 20} MB; expected lines of 'path: id'")
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--pins {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--pins {path}: not text in UTF-8") from None
    pins = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"--pins {path}, line {number}: {line!r}: expected lines of 'path: id' with a git blob id (40 digits) "
                "or a SHA-256 (64 digits)"
            )
        pins[match[1].removeprefix("./").lstrip("/")] = match[2].lower()
    return pins


def _pinned(file: RemoteFile, listed: Mapping[str, str], pins: Path) -> RemoteFile:
    paths = [path for path in listed if f"/{file.path}".endswith(f"/{path}")]
    if len(paths) != 1:
        raise UserError(
            f"--pins {pins}: {' and '.join(paths) or 'no entry'} for {file.path}; expected one, by its path or the end "
            "of its path"
        )
    return RemoteFile(paths[0], listed[paths[0]])
