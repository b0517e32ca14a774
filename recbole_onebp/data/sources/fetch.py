"""Fetch data sets by name: published splits, verified and with a validation part, and RecBole's archives."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

import pandas as pd
import yaml

from recbole_onebp.config.suggest import nearest
from recbole_onebp.data.sources.atomic_folder import (
    counts,
    is_complete,
    is_unordered,
    read_manifest,
    refuse_strangers,
    write_items,
    write_manifest,
    write_parts,
)
from recbole_onebp.data.sources.catalogue import CATALOGUE, Published, RemoteFile, mirrored
from recbole_onebp.data.sources.download import Limits, SourceError, download, shown
from recbole_onebp.data.sources.published import read_pairs
from recbole_onebp.data.sources.splits import by_order, by_ratio
from recbole_onebp.data.sources.unpack import DAMAGED, bound
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import whole_folder
from recbole_onebp.util.hashes import git_blob_id, matches

__all__ = ["SEED", "fetch", "provide", "tell_if_unordered"]

SEED = 2020
"""Seed of the validation part; fixed, so that a name means the same split on every machine."""
_MOST_MEMBERS = 1000
"""Files in an archive."""
_OLD_FOLDER = (
    "%s: made by an earlier version, without the order of the interactions and with a random validation part; "
    "recbole-onebp fetch %s --data_path=%s --force makes it anew"
)
_VALID_SHARE = 0.1
_VALID_RULES = {
    "random": "drawn from the pairs sorted by user and item",
    "last": "the last of each user, in the order of the file",
}
_ROUNDED = "of n pairs floor(n * share), but 1 if that is less than 1, and none of 1 pair"
_ORDER = (
    "timestamp is the place of a pair among those of its user, train before test. That these places are in order of "
    "time is inferred from the files, not documented by their authors; recbole-onebp inspect shows how"
)


def fetch(
    name: str,
    data_path: Path = Path("dataset"),
    source: Path | None = None,
    url: str | None = None,
    pins: Path | None = None,
    force: bool = False,
    limits: Limits | None = None,
    valid: Literal["last", "random"] | None = None,
    valid_share: float | None = None,
) -> None:
    """Write a data set to ``data_path/name``, as atomic files with a manifest, completely or not at all.

    Args:
        name: one of :data:`~recbole_onebp.data.sources.catalogue.CATALOGUE`, or a name that RecBole downloads.
        data_path: folder of data sets, RecBole's key ``data_path``.
        source: a folder to read it from instead of downloading, with the published paths or ``train`` and ``test`` with
            the suffix ``.txt`` or ``.csv``; the log says if a file is not the published one.
        url: a mirror to download from.
        pins: list of the mirror's files and their ids; see :func:`~recbole_onebp.data.sources.catalogue.mirrored`.
        force: replace an existing data set; without it, a complete one is kept.
        limits: bytes and seconds that a download may take.
        valid: which train pairs of each user become the validation part of a published split: the ``last``, or
            ``random`` ones; by default the last where the files are in order of time.
        valid_share: share of the train pairs in it, between 0 and 1; by default a tenth.

    Raises:
        UserError: for an unknown name, a server that does not answer or sends something else, files that are not
            as expected, a folder that cannot be written, or one that holds something else than what is asked for.
    """
    if pins is not None and url is None:
        raise UserError(f"--pins {pins}: needs --url, the mirror that it belongs to")
    if source is not None and url is not None:
        raise UserError("--from and --url: give only one of them")
    folder, archives = data_path / name, _archives()
    if name not in {*CATALOGUE, *archives}:
        hint = (
            nearest(name, {*CATALOGUE, *archives}) or f"; known are {', '.join(CATALOGUE)} and what RecBole downloads"
        )
        raise UserError(f"data set {name}: unknown name{hint}")
    if name not in CATALOGUE and (source or url):
        raise UserError(f"--from and --url are for {', '.join(CATALOGUE)}; recbole-onebp convert takes your own files")
    if valid_share is not None and not 0 < valid_share < 1:
        raise UserError(f"valid_share: {valid_share:g} is not allowed: expected more than 0 and less than 1")
    if (valid or valid_share is not None) and (name not in CATALOGUE or CATALOGUE[name].read is not None):
        given = f"valid: {valid}" if valid else f"valid_share: {valid_share:g}"
        reason = "is published with its validation part" if name in CATALOGUE else "is split by RecBole in each run"
        raise UserError(f"{given}: {name} {reason}; leave it out")
    ordered = name in CATALOGUE and CATALOGUE[name].ordered
    if valid == "last" and not ordered:
        raise UserError(f"valid: last: the files of {name} are not in order of time; leave it out, or use random")
    if name == "ml-100k":
        getLogger().info("ml-100k comes with RecBole: nothing to fetch")
        return
    if is_complete(folder) and not force:
        tell_if_unordered(name, folder)
        _refuse_if_other(name, folder, source, {"valid": valid, "valid_share": valid_share})
        getLogger().info("%s is already in %s; --force fetches it again", name, folder)
        return
    with writing(folder):
        if folder.exists() and not force:
            raise UserError(
                f"{folder} exists and is not a complete data set of fetch; --force replaces it if fetch made it"
            )
        refuse_strangers(folder, force)
    with writing(folder), whole_folder(folder, replace=force) as temporary:
        if name in CATALOGUE:
            published = CATALOGUE[name] if url is None else mirrored(CATALOGUE[name], url, pins)
            wanted = valid or ("last" if ordered else "random")
            _write_published(temporary, name, published, source, limits, wanted, valid_share or _VALID_SHARE)
        else:
            _write_archive(temporary, name, archives[name], limits)
    getLogger().info("wrote %s", folder)


def provide(name: str, data_path: Path) -> None:
    """Fetch a data set that has a known name and no folder; otherwise do nothing."""
    if not (data_path / name).exists() and name in {*CATALOGUE, *_archives()}:
        fetch(name, data_path)


def tell_if_unordered(name: str, folder: Path) -> bool:
    """Whether a data set in order of time was written by an earlier version, which lost the order; this is logged."""
    published = CATALOGUE.get(name)
    is_old = published is not None and published.ordered and is_unordered(folder)
    if is_old:
        getLogger().warning(_OLD_FOLDER, folder, name, folder.parent)
    return is_old


def _refuse_if_other(name: str, folder: Path, source: Path | None, asked: Mapping[str, object]) -> None:
    """Refuse a data set that is there with another validation part, or of other files, than those asked for."""
    manifest = read_manifest(folder)
    split = manifest.get("split", {})
    for key, wanted in asked.items():
        if wanted is not None and split.get(key, wanted) != wanted:
            raise UserError(f"{folder}: is there with {key}: {split[key]}, not {wanted}; --force makes it anew")
    if source is not None:
        for part, file in _find(source, CATALOGUE[name]).items():
            if git_blob_id(file.path) != manifest["source"][part]["git_blob_id"]:
                raise UserError(f"{folder}: is there, made of another file than {file.path}; --force makes it anew")


# ----------------------------------------------------------------------------------------------------- published splits


@dataclass(frozen=True)
class _Local:
    """A local file of a part, and where it comes from."""

    path: Path
    origin: str


def _write_published(
    folder: Path,
    name: str,
    published: Published,
    source: Path | None,
    limits: Limits | None,
    valid: Literal["last", "random"],
    valid_share: float,
) -> None:
    original = CATALOGUE[name]
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        files = _find(source, published) if source else _download(Path(downloads), name, published, limits)
        items, paths = None, {part: file.path for part, file in files.items()}
        if original.read is None:
            frames = {part: read_pairs(path) for part, path in paths.items()}
        else:
            frames, items = original.read(paths)
        sources = {
            part: {"from": file.origin, "bytes": file.path.stat().st_size, "git_blob_id": git_blob_id(file.path)}
            for part, file in files.items()
        }
    split: dict[str, object] = {"test": "as published", "valid": "as published"}
    parts = frames
    if items is None:
        parts = _with_validation(frames["train"], frames["test"], original.ordered, valid, valid_share)
        rule = f"{valid_share:g} of each user's train pairs, {_VALID_RULES[valid]}; {_ROUNDED}"
        split |= {"valid": valid, "valid_share": valid_share, "rule": rule}
        split |= {"seed": SEED} if valid == "random" else {}

    found = counts(frames)
    remarks = list(_remarks(sources, original, frames, found))
    for remark in remarks:
        getLogger().warning("%s: %s", name, remark)
    write_parts(folder, name, parts)
    if items is not None:
        write_items(folder, name, items)
    final = counts(parts)
    write_manifest(
        folder,
        name,
        {
            "source": {
                part: {**entry, "published_git_blob_id": original.files[part].pin} for part, entry in sources.items()
            },
            "ordered": original.ordered,
            **({"order": _ORDER} if original.ordered else {}),
            "split": split,
            "counts": final,
            "published_counts": original.counts,
            "remarks": remarks,
        },
    )
    getLogger().info("%s: %s", name, ", ".join(f"{number:,} {what}" for what, number in final.items()))


def _with_validation(
    train: pd.DataFrame,
    test: pd.DataFrame,
    ordered: bool,
    valid: Literal["last", "random"],
    share: float,
) -> dict[str, pd.DataFrame]:
    """The three parts; with the place of each pair among those of its user as the time if they are ``ordered``."""
    if ordered:
        train["timestamp"] = train.groupby("user_id").cumcount()
        n_train = test["user_id"].map(train["user_id"].value_counts()).fillna(0)
        test["timestamp"] = (n_train + test.groupby("user_id").cumcount()).astype("int64")
    train = train.sort_values(["user_id", "item_id"], kind="stable", ignore_index=True)
    ratios = [1 - share, share]
    if valid == "last":
        in_valid = by_order(train["user_id"], train["timestamp"].to_numpy(float), ratios) == 1
    else:
        in_valid = by_ratio(train["user_id"], ratios, SEED) == 1
    return {"train": train[~in_valid], "valid": train[in_valid], "test": test}


def _remarks(
    sources: Mapping[str, Mapping[str, object]],
    original: Published,
    frames: Mapping[str, pd.DataFrame],
    found: Mapping[str, int],
) -> Iterator[str]:
    for part, entry in sources.items():
        if entry["git_blob_id"] != (pin := original.files[part].pin):
            also = "; the counts are the published ones" if found == original.counts else ""
            found_id = entry["git_blob_id"]
            yield f"{entry['from']} is not the published file: git blob id {found_id}, published {pin}{also}"
    if found != original.counts:
        differing = (f"{found[key]:,} {key}, published {n:,}" for key, n in original.counts.items() if found[key] != n)
        yield f"not the published counts: {'; '.join(differing)}"
    pairs = pd.concat([frame[["user_id", "item_id"]] for frame in frames.values()])
    if repeated := int(pairs.duplicated().sum()):
        yield f"{repeated:,} pairs stand there more than once, inside a part or in both"


def _download(folder: Path, name: str, published: Published, limits: Limits | None) -> dict[str, _Local]:
    if not published.base:
        raise UserError(
            f"{name} cannot be downloaded as a whole; recbole-onebp fetch {name} --from DIR reads its files: "
            f"{published.found_in}"
        )
    files = {}
    for part, file in published.files.items():
        url, path = f"{published.base}/{quote(file.path)}", folder / f"{part}{PurePosixPath(file.path).suffix}"
        try:
            download(url, path, limits)
            if not matches(path, file.pin):
                raise SourceError(
                    f"{shown(url)}: not the expected file: git blob id {git_blob_id(path)} "
                    f"({path.stat().st_size:,} bytes), expected {file.pin}"
                )
        except SourceError as error:
            raise UserError(f"{error}; recbole-onebp fetch {name} --from DIR reads it from a folder") from None
        files[part] = _Local(path, shown(url))
    return files


def _find(source: Path, published: Published) -> dict[str, _Local]:
    if not source.is_dir():
        raise UserError(f"--from {source}: no such folder")
    return {part: _found(source, part, file) for part, file in published.files.items()}


def _found(source: Path, part: str, file: RemoteFile) -> _Local:
    steps = PurePosixPath(file.path).parts
    names = ["/".join(steps[start:]) for start in range(len(steps))] + [f"{part}.txt", f"{part}.csv"]
    for name in names:
        if (source / name).is_file():
            return _Local(source / name, str(source / name))
    raise UserError(f"--from {source}: no {part} part in it; expected {', '.join(dict.fromkeys(names))}")


# --------------------------------------------------------------------------------------------------- RecBole's archives


def _archives() -> dict[str, str]:
    """RecBole's names of data sets -> URLs of their archives; empty if RecBole is not installed."""
    recbole = find_spec("recbole")
    if recbole is None or recbole.origin is None:
        return {}
    listed = Path(recbole.origin).parent / "properties" / "dataset" / "url.yaml"
    urls: dict[str, str] = yaml.safe_load(listed.read_text(encoding="utf-8"))
    return urls


def _write_archive(folder: Path, name: str, url: str, limits: Limits | None) -> None:
    archive = folder / PurePosixPath(url).name
    try:
        download(url, archive, limits)
        source = {"from": url, "bytes": archive.stat().st_size, "git_blob_id": git_blob_id(archive)}
        with zipfile.ZipFile(archive) as content:
            if len(content.infolist()) > _MOST_MEMBERS:
                raise SourceError(f"{url}: {len(content.infolist()):,} files in the archive; expected a few")
            # zipfile unpacks no more than this size, even if the archive declares a wrong one.
            bound(
                url,
                sum(member.file_size for member in content.infolist()),
                limits.max_mb if limits else None,
                archive.stat().st_size,
            )
            content.extractall(folder)
    except (SourceError, *DAMAGED) as error:
        said = error if isinstance(error, SourceError) else f"{url}: not a zip file"
        raise UserError(
            f"{said}; where RecBole's source is gone, recbole-onebp convert FILE --name={name} makes the atomic files "
            "from a copy of the data that you have"
        ) from None
    archive.unlink()
    for path in [path for path in folder.iterdir() if archive.stem in path.stem]:
        path.rename(folder / f"{path.stem.replace(archive.stem, name)}{path.suffix}")
    if not (folder / f"{name}.inter").is_file():
        raise UserError(
            f"{url}: no {name}.inter in it, but {', '.join(sorted(path.name for path in folder.iterdir()))}"
        )
    write_manifest(folder, name, {"source": source})
