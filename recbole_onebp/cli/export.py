"""``recbole-onebp export``: turn a run into a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown
from recbole_onebp.plugin import import_hook

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    export = commands.add_parser(
        "export",
        help="turn a run into a bundle, which needs only numpy",
        description="Write the embeddings, ids, train histories, titles and a model card of a run to a folder.",
        epilog="example: recbole-onebp export runs/mine bundle",
        allow_abbrev=False,
    )
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder written by train; its data set must "
                        "still be in place")  # fmt: skip
    export.add_argument("bundle_dir", type=Path, metavar="BUNDLE_DIR")
    export.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: float32")
    export.add_argument("--ann", choices=("faiss",), help="add an index for approximate search")
    export.add_argument("--onnx", action="store_true", help="add the scorer as an ONNX file")
    export.add_argument("--data_path", type=Path, metavar="DIR", help="the folder that holds the data set's folder; "
                        "default: the one that the run names, which is shown")  # fmt: skip
    export.add_argument("--force", action="store_true", help="replace an earlier bundle")
    export.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    import_hook.require_recbole()
    from recbole_onebp.serving.export.exporter import export

    run_dir, bundle_dir = arguments.run_dir, arguments.bundle_dir
    manifest = export(
        run_dir, bundle_dir, arguments.dtype, arguments.force, arguments.ann, arguments.onnx, arguments.data_path, print
    )
    if arguments.ann:
        print("index: recall@{k} {recall:.4f} of the exact lists, {queries_a_second} queries a second; exact: "
              "{exact_queries_a_second}".format(**manifest["ann"]))  # fmt: skip
    print(f"wrote {arguments.bundle_dir}")
    return 0
