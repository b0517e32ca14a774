"""Bundles and runs as a stranger may send them: anything may be wrong in them but their checksums.

``python -m support.hostile KIND SEED COUNT PRISTINE SCRATCH`` tries many of them in one process with limits of time and
memory, and fails at the first that ends otherwise than with an answer or one line ``error: ...``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from recbole_onebp.cli import main

SECONDS, MEMORY = 10, 1 << 30
ARRAYS = (
    "item_encodings", "user_encodings", "history_start", "history_item", "item_bias", "item_weight", "local.indptr",
    "local.indices", "local.values",
)  # fmt: skip
TEXTS = ("item_ids", "user_ids", "item_fields")
FILES = tuple(f"{name}.npy" for name in ARRAYS) + tuple(f"{name}.json" for name in TEXTS)

NAMES = st.sampled_from([
    "", ".", "..", "../item_ids.json", "/etc/passwd", "/dev/zero", "a/b", "a\\b", "c:x", "\0", "x" * 300, "é\u202e",
    "\x1b[2J", "no_such.npy", "manifest.json", "CON", "~", "$HOME", "*", "[a-z]", "link",
])  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**70, 10**300, -0.0, 0.5, 1.0, 1e-300, 1e308, "", "dot",
        "cosine", "mean", "OneBP", "float16", "../x", "/dev/zero", "\x1b[2J\x07", "\ud800", "x" * 5000, [], {}, [[]],
        {"a": {}}, ["x"], {"rule": "mean"}, {"rule": "mean", "beta": 2, "alpha": -1}, [1] * 5000,
    ]),
    NAMES,
    st.integers(-3, 70),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
KINDS = ("absent", "empty", "link", "dangling", "device", "endless", "pipe", "folder", "sparse", "noise")

# ------------------------------------------------------------------------------------------------------------- bundles


def reseal(path: Path, manifest: dict[str, Any], sizes: bool = True) -> None:
    """Write the manifest with right sizes and checksums of all plain files that are not enormous."""
    files = manifest.get("files")
    for name, file in files.items() if sizes and isinstance(files, dict) else ():
        with contextlib.suppress(OSError, ValueError):
            found = os.lstat(path / name)
            if isinstance(file, dict) and os.path.isfile(path / name) and found.st_size < 1 << 26:
                content = (path / name).read_bytes()
                files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            elif isinstance(file, dict):
                file["bytes"] = found.st_size
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**content, "checksum": checksum}))


def replace_file(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 26 else b""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "link":
        other = path.with_name(f"{path.name}.other")
        other.write_bytes(content)
        path.symlink_to(other.name)
    elif kind in ("dangling", "device", "endless"):
        path.symlink_to({"dangling": "nowhere", "device": "/dev/null", "endless": "/dev/zero"}[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.write_bytes(content[:64])
        os.truncate(path, 1 << 40)
    elif kind in ("empty", "noise"):
        path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 4)


def _change_value(draw: Any, path: Path, manifest: dict[str, Any]) -> None:
    place = draw(st.sampled_from(sorted(manifest)))
    holder: Any = manifest
    while isinstance(holder[place], dict) and holder[place] and draw(st.booleans()):
        holder, place = holder[place], draw(st.sampled_from(sorted(holder[place])))
    if draw(st.integers(0, 5)) == 0:
        del holder[place]
    else:
        holder[place] = draw(VALUES)


def _change_name(draw: Any, path: Path, manifest: dict[str, Any]) -> None:
    if isinstance(manifest.get("files"), dict) and manifest["files"]:
        old, new = draw(st.sampled_from(sorted(manifest["files"]))), draw(NAMES)
        file = manifest["files"].pop(old) if draw(st.booleans()) else manifest["files"][old]
        manifest["files"][new] = file


def _change_file(draw: Any, path: Path, manifest: dict[str, Any]) -> None:
    replace_file(path / draw(st.sampled_from(FILES)), draw(st.sampled_from(KINDS)))


def _change_json(draw: Any, path: Path, manifest: dict[str, Any]) -> None:
    file = path / f"{draw(st.sampled_from(TEXTS))}.json"
    try:
        value = json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size < 1 << 16 else []
    except (ValueError, RecursionError):  # it has been changed before
        return
    if file.is_symlink() or not file.is_file():
        return
    values = next(iter(value.values()), []) if isinstance(value, dict) else value
    values = values if isinstance(values, list) else []
    how = draw(st.sampled_from(["one", "cut", "more", "twice", "whole", "deep", "long", "many", "constant", "bytes"]))
    if how == "one" and values:
        values[draw(st.integers(0, len(values) - 1))] = draw(VALUES)
    elif how == "cut":
        del values[draw(st.integers(0, len(values))) :]
    elif how == "more":
        values += ["one more", "and more"]
    elif how == "twice" and values:
        values[-1] = values[0]
    elif how == "whole":
        value = draw(VALUES)
    text = json.dumps(value)
    if how in ("deep", "long", "many", "constant"):
        text = {"deep": "[" * 90_000, "long": f'["{"x" * 3_000_000}"]', "many": f"[{'[],' * 1_000_000}0]",
                "constant": "[NaN, Infinity]"}[how]  # fmt: skip
    file.write_bytes(draw(st.binary(max_size=40)) if how == "bytes" else text.encode())


def _change_array(draw: Any, path: Path, manifest: dict[str, Any]) -> None:
    file = path / f"{draw(st.sampled_from(ARRAYS))}.npy"
    try:
        array = np.load(file, allow_pickle=False) if file.is_file() and file.stat().st_size < 1 << 26 else None
    except Exception:  # it has been changed before; numpy lets the errors of several parsers through
        return
    if array is None:
        return
    how = draw(st.sampled_from(["value", "value", "dtype", "shape", "header", "cut", "grow"]))
    if how == "value" and array.size:
        odd = [np.nan, np.inf, -np.inf, 3e38, -1, 0, 1e13, 1e-45, 2**30, 2**31 - 1, -(2**31), 59, 60]
        with np.errstate(all="ignore"):
            array.flat[draw(st.integers(0, array.size - 1))] = np.array(draw(st.sampled_from(odd))).astype(array.dtype)
    elif how == "dtype":
        kind = draw(st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "i8", "u8", "c8", "S3", "U2", "M8[s]", "?", "O"]))
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):
            array = array.astype(kind)
    elif how == "shape":
        odd_shapes: list[Callable[[Any], Any]] = [
            lambda a: a.T, lambda a: a[:-1], lambda a: a[:0], lambda a: a[None], lambda a: a.reshape(-1),
            lambda a: np.repeat(a, 2, axis=-1), lambda a: np.asfortranarray(a), lambda a: a[..., :1],
            lambda a: np.concatenate((a, a)), lambda a: np.float32(1),
        ]  # fmt: skip
        array = draw(st.sampled_from(odd_shapes))(array)
    np.save(file, array, allow_pickle=True)
    content = file.read_bytes()
    if how == "header":
        shape = draw(
            st.sampled_from(["(2**62,)", "(-1,)", "(10**12, 8)", "(60, 8, 0)", "()", "((", "(1" + "0" * 4000 + ",)"])
        )
        dictionary = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        content = b"\x93NUMPY\x01\x00" + len(dictionary).to_bytes(2, "little") + dictionary + content[128:]
    elif how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif how == "grow":
        content += b"\0" * draw(st.integers(1, 100))
    file.write_bytes(content)


@st.composite
def bundle_changes(draw: Any, pristine: Path, path: Path) -> list[str]:
    """Copy a bundle to ``path``, change one to three things and seal it again; the names of the changes."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(pristine, path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    kinds = [_change_value, _change_value, _change_name, _change_file, _change_json, _change_array, _change_array]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    for change in chosen:
        change(draw, path, manifest)
    reseal(path, manifest, sizes=draw(st.integers(0, 9)) > 0)
    if draw(st.integers(0, 30)) == 0:
        replace_file(path / "manifest.json", draw(st.sampled_from(KINDS)))
    return [change.__name__ for change in chosen]


BUNDLE_COMMANDS = (
    ("--users=u1,u2,nobody", "--k=70"),
    ("--history=i1,i2", "--k=3", "--rule=trained"),
    ("--all_users", "--k=2"),
)


def try_bundle(path: Path) -> None:
    """Ask a bundle for lists in several ways."""
    for arguments in BUNDLE_COMMANDS:
        outcome_of("recommend", str(path), *arguments)


# ---------------------------------------------------------------------------------------------------------------- runs

PATH_KEYS = (
    "checkpoint_dir", "output_dir", "dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders",
    "pre_model_path", "pretrain_path", "mf_pretrain_path", "mlp_pretrain_path", "warm_up", "config_files", "resume",
    "saved_model_file", "device", "gpu_id", "local_rank", "log_wandb", "teacher", "data_path", "dataset", "preset",
    "model", "encoding", "benchmark_filename", "additional_feat_suffix", "load_col",
)  # fmt: skip


class _Payload:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._mark), "w")


def plant_pickles(folder: Path, mark: Path, dataset: str = "tiny") -> Path:
    """Put pickles wherever RecBole could look for them in ``folder``; returns one of them."""
    import pickle

    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        f"{dataset}-OneBPDataset.pth",
        f"{dataset}-Dataset.pth",
        f"{dataset}-for-OneBP-dataloader.pth",
        "x.pth",
    ):
        (folder / name).write_bytes(pickle.dumps(_Payload(mark)))
    evil = f"dataset_save_path: {folder / 'x.pth'}\n"  # RecBole's and our YAML files are found by a name
    (folder / "evil.yaml").write_text(f"{evil}all: {{{evil.strip()}}}\ndatasets: {{}}\n")
    return folder / "x.pth"


def _config_texts(pickled: Path) -> st.SearchStrategy[bytes]:
    laughs = b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
    long = b"a: &a " + b"x" * 500_000 + b"\nb: [" + b"*a, " * 5000 + b"]\n"
    return st.sampled_from([
        b"", b"5", b"[1, 2]", b"a: [", b"a: !!python/object/apply:os.system [true]", laughs, long, b"\xff\xfe", b"\0",
        b"? [1]\n: 2", b"1: 2", b"a: 2024-99-99", b"a: 2024-01-01", b"a: .nan", b"x" * (2 << 20), b"[" * 500,
        b"a: &a [*a]", b"a: " + b"9" * 5000, b"checkpoint_dir: " + str(pickled.parent).encode(), b"a: \"\\e[2J\"",
    ])  # fmt: skip


@st.composite
def run_changes(draw: Any, pristine: Path, path: Path, pickled: Path) -> list[str]:
    """Copy a run to ``path`` and change one to three things in it; what was changed."""
    import torch

    from recbole_onebp.run.checkpoint.store import read_tensors, write_tensors

    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(pristine, path)
    plant_pickles(path, pickled.parent.with_name("mark"))
    tensors, metadata = read_tensors(path / "model.safetensors")
    config, done = json.loads(metadata["config"]), []
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(["path", "path", "key", "yaml", "result", "file", "tensor", "metadata"]))
        done.append(how)
        if how == "path":
            key = draw(st.sampled_from(PATH_KEYS))
            odd = st.sampled_from(
                [str(pickled), str(pickled.parent), str(pickled.parent / "evil"), ["../x"], {"../x": "*"}]
            )
            config[key] = draw(st.one_of(odd, VALUES))
            done.append(key)
        elif how == "key":
            key = draw(st.sampled_from(sorted(config)))
            config[key] = draw(VALUES)
            done.append(key)
        elif how == "yaml":
            replace_file(path / "config.yaml", "absent")
            (path / "config.yaml").write_bytes(draw(_config_texts(pickled)))
        elif how == "result":
            odd_result = {"valid": draw(VALUES), "test": {draw(NAMES): draw(VALUES)}, "best_epoch": draw(VALUES)}
            replace_file(path / "result.json", "absent")
            (path / "result.json").write_text(json.dumps(draw(st.sampled_from([odd_result, [], None, 5]))))
        elif how == "file":
            name = draw(st.sampled_from(["config.yaml", "result.json"]))
            replace_file(path / name, draw(st.sampled_from(KINDS)))
        elif how == "tensor":
            name = draw(st.sampled_from(sorted(tensors)))
            table = tensors[name]
            odd_tables = [
                None,
                table.reshape(-1)[:-1],
                table.flatten(),
                table.int(),
                table * float("nan"),
                table.reshape(-1)[:0],
                torch.ones(()),
            ]
            tensors[name] = draw(st.sampled_from(odd_tables))
            tensors = {key: value for key, value in tensors.items() if value is not None}
            if not tensors:
                break
        else:
            metadata[draw(st.sampled_from(["data", "other_parameters"]))] = json.dumps(draw(VALUES))
    metadata["config"] = json.dumps(config)
    write_tensors(path / "model.safetensors", tensors, metadata)
    return done


def try_run(path: Path, mark: Path) -> None:
    """Export a run; no pickle may have been read."""
    bundle = path.with_name("exported")
    shutil.rmtree(bundle, ignore_errors=True)
    code = outcome_of("export", str(path), str(bundle))
    assert not mark.exists(), "a pickle was read"
    assert bundle.exists() == (code == 0)
    if code == 0:
        outcome_of("recommend", str(bundle), "--all_users", "--k=2")


# -------------------------------------------------------------------------------------------------------------- limits


@contextlib.contextmanager
def little_time(seconds: int = SECONDS) -> Iterator[None]:
    """An error if the block takes longer, even where it waits for a pipe."""

    def late(*_: Any) -> None:
        raise AssertionError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(*arguments: str) -> int:
    """The exit code of a command, 0 or 2; what it says must be fit for a terminal, and an error must be one line."""
    out, err = io.StringIO(), io.StringIO()
    with little_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (2, 1)), (code, err.getvalue())
    assert "Traceback" not in err.getvalue()
    if arguments[0] == "recommend":
        for line in [*out.getvalue().split("\n"), *err.getvalue().split("\n")]:
            assert line.isprintable(), line
        assert "nan" not in out.getvalue().split()
    return code


def fuzz(examples: int, number: int | None, strategy: st.SearchStrategy[Any], test: Callable[[], None]) -> None:
    """Run ``test`` after each drawing; the same drawings each time."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=strategy)
    def run(changes: list[str]) -> None:
        test()

    (run if number is None else seed(number)(run))()


def _main(kind: str, number: str, count: str, pristine: str, scratch: str) -> None:
    folder = Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    path, mark = folder / "hostile", folder / "mark"
    pickled = plant_pickles(folder / "saved", mark)
    if kind == "runs":
        import recbole_onebp.serving.export.exporter  # noqa: F401  takes memory that is not the stranger's
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    if kind == "bundles":
        fuzz(int(count), int(number), bundle_changes(Path(pristine), path), lambda: try_bundle(path))
    else:
        fuzz(int(count), int(number), run_changes(Path(pristine), path, pickled), lambda: try_run(path, mark))


if __name__ == "__main__":
    _main(*sys.argv[1:])
