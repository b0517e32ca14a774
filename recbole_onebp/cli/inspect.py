"""``recbole-onebp inspect``: what a person should know of a data set before training on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_onebp.cli.overrides import parse_overrides

if TYPE_CHECKING:
    from recbole_onebp.data.inspection import Inspection, Tenths

__all__ = ["add", "report", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    inspect = commands.add_parser(
        "inspect",
        help="show sizes, repeats and order of a data set, and whether validation looks like test",
        description="Any key of a run may follow, such as --data_path=DIR or --eval_args=...: the parts are those that "
        "a run with these keys has.",
        epilog="example: recbole-onebp inspect --dataset=gowalla --picture=gowalla.png",
        allow_abbrev=False,
    )
    inspect.add_argument("--dataset", required=True, metavar="NAME")
    inspect.add_argument("--config_files", default="", metavar="'A.yaml B.yaml'")
    inspect.add_argument("--picture", type=Path, metavar="FILE", help="draw the order of the interactions (PNG)")
    inspect.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; ``rest`` holds the keys of a run."""
    from recbole_onebp.config.files import file_names
    from recbole_onebp.data.inspection import inspect
    from recbole_onebp.run.build import load_data, read_config

    keys = {"state": "WARNING", **parse_overrides(rest), "model": "OneBP", "dataset": arguments.dataset}
    config = read_config(file_names(arguments.config_files), keys)
    _, *loaders = load_data(config)
    found = inspect(*(loader._dataset for loader in loaders))
    print("\n".join(report(arguments.dataset, found)))
    if arguments.picture is not None:
        _draw(arguments.dataset, found.tenths, arguments.picture)
    return 0


def report(name: str, found: Inspection) -> list[str]:
    """Lines for the screen."""
    least, median, most = found.per_user
    sizes = ", ".join(f"{len(part):,} {part_name}" for part_name, part in found.parts.items())
    lines = [
        f"{name}: {found.n_users:,} users, {found.n_items:,} items, density {found.density:.3%}",
        f"pairs: {sizes}",
        f"train pairs of a user: {least} to {most:,}, median {median}",
        "repeated pairs: " + ", ".join(f"{number:,} in {part}" for part, number in found.repeats.items()),
        "also in an earlier part: " + ", ".join(f"{number:,} of {part}" for part, number in found.overlaps.items()),
        f"times: {_order(found)}",
    ]
    if found.differences:
        lines += ["", f"{'validation and test':<52} {'valid':>8} {'test':>8} {'effect':>7} {'p':>8}"]
        lines += [
            f"{one.what:<52} {one.valid:>8.3f} {one.test:>8.3f} {one.effect:>+7.2f} {one.p_value:>8.1g}"
            f"{'  unlike' if one.is_unlike else ''}"
            for one in found.differences
        ]
        lines += ["effect: difference in standard deviations; p: paired t test over users"]
    if found.tenths is not None:
        lines += ["", *_tenths(found.tenths)]
    warnings = [*_warnings(found)]
    return [*lines, *([""] if warnings else []), *(f"warning: {text}" for text in warnings)]


def _order(found: Inspection) -> str:
    if not found.has_times:
        return "none"
    if not found.has_two_times:
        return "nobody has two different ones, so there is no order"
    order = "train, validation and test follow one another" if found.in_order else "the parts overlap in time"
    return f"{order}; {found.tied:.1%} of the pairs have the time of another of their user, in RecBole's 32 bits"


def _tenths(tenths: Tenths) -> list[str]:
    return [
        "share of the item's other pairs that lie in test, mean by place in a user's line, first to last tenth:",
        *(
            f"{part:>6}  {' '.join(f'{value:.3f}'.lstrip('0') for value in values)}"
            for part, values in (("train", tenths.train), ("test", tenths.test))
        ),
        f"slope over the train line {tenths.slope:+.4f}, t = {tenths.t:.1f}, p = {tenths.p_value:.1g} "
        f"({tenths.n_users:,} users); in any other order, and with a random test part, it would be 0, and both lines "
        "at one level",
    ]


def _warnings(found: Inspection) -> list[str]:
    warnings = []
    if any(found.overlaps.values()):
        warnings.append("a model is tested on pairs that it has been trained on; drop repeated pairs")
    if any(one.is_unlike for one in found.differences):
        advice = (
            "each is the latest part of what is left already, so tastes drift between them"
            if found.in_order
            else "if test comes last in time, let validation come last too: fetch --valid=last, convert "
            "--split=time_user, or eval_args with order: TO"
        )
        warnings.append(f"validation is unlike test, so what is best on it may not be best on test; {advice}")
    return warnings


def _draw(name: str, tenths: Tenths | None, path: Path) -> None:
    from recbole_onebp.util.errors import UserError, writing
    from recbole_onebp.util.files import write_atomically

    if tenths is None:
        raise UserError(
            f"--picture {path}: there is no order to draw: {name} has no times, no test part, or no users with at "
            "least ten pairs in train and in test"
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for part, values in (("train", tenths.train), ("test", tenths.test)):
        axes.plot(range(1, len(values) + 1), values, marker="o", label=f"{part} line")
    axes.set_xlabel("place in the line of a user (tenths)")
    axes.set_ylabel("share of the item's other pairs in test")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{name}: are lines in order of time? (slope of train: t = {tenths.t:.0f})", fontsize=10)
    axes.legend()
    axes.grid(alpha=0.3)
    with writing(path):
        write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))
