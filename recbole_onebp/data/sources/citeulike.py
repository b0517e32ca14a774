"""CiteULike-a: its pairs of users and papers, and the tags and citations of the papers, from the published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from recbole_onebp.data.sources.published import read_pairs
from recbole_onebp.util.errors import UserError

__all__ = ["read_citeulike"]


def read_citeulike(files: Mapping[str, Path]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The parts of ALDI's split, and the features of the papers.

    Validation and test hold the warm and the cold pairs of their part together: the cold papers of a part have no pair
    in any other.  The field ``citations`` of a paper holds the papers that it cites or is cited by, and itself.

    Args:
        files: ``train``, ``warm_valid``, ``warm_test``, ``cold_valid``, ``cold_test``: CSV files of ``user,item``;
            ``tags`` and ``citations``: a line a paper, of a count and as many numbers; ``tag_names``: a line a tag.

    Returns:
        ``train``, ``valid`` and ``test``, frames of ``user_id`` and ``item_id``; and a frame of the papers,
        ``item_id:token``, ``tags:token_seq`` and ``citations:token_seq``.

    Raises:
        UserError: names the file, the line and what is wrong there.
    """
    parts = {
        part: pd.concat([read_pairs(files[name]) for name in names], ignore_index=True)
        for part, names in {
            "train": ["train"],
            "valid": ["warm_valid", "cold_valid"],
            "test": ["warm_test", "cold_test"],
        }.items()
    }
    tags, citations = _read_lists(files["tags"]), _read_lists(files["citations"])
    names = files["tag_names"].read_text(encoding="utf-8").split("\n")
    if len(tags) != len(citations):
        raise UserError(f"{files['citations']}: {len(citations):,} lines, {files['tags'].name} {len(tags):,}")
    last = max(map(max, filter(None, tags)), default=-1)
    if last >= len(names):
        raise UserError(f"{files['tag_names']}: {len(names):,} names, and there is a tag {last:,}")
    items = {
        "item_id:token": range(len(tags)),
        "tags:token_seq": [" ".join(names[tag] for tag in dict.fromkeys(row)) for row in tags],
        "citations:token_seq": [" ".join(map(str, dict.fromkeys([n, *row]))) for n, row in enumerate(citations)],
    }
    return parts, pd.DataFrame(items)


def _read_lists(path: Path) -> list[list[int]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not all(field.isdecimal() for field in fields) or not fields or int(fields[0]) != len(fields) - 1:
            raise UserError(f"{path}, line {number}: {line[:40]!r}: expected a count and as many numbers")
        rows.append([int(field) for field in fields[1:]])
    return rows
