"""Write what follows from the schema: ``properties/model/OneBP.yaml`` and the table of ``docs/keys.md``.

``python -m recbole_onebp.config.generate`` rewrites both in a clone; with ``--check`` it fails if one of them is stale.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from recbole_onebp.config.fields import Key, key_of
from recbole_onebp.config.schema import OneBPConfig, default_of, onebp_defaults
from recbole_onebp.config.settings import RecBoleSettings, RunSettings

_COMMAND = "python -m recbole_onebp.config.generate"
_BEGIN, _END = f"<!-- keys: by {_COMMAND} -->", "<!-- end of keys -->"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _allowed(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """The type of a field and its bounds, in words."""
    if get_origin(kind) is Annotated:
        return _allowed(kind.__origin__, kind.__metadata__)
    if get_origin(kind) in (Union, UnionType):
        return ", ".join(_allowed(part) for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {_allowed(*get_args(kind))}"
    items = [one for item in metadata for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{sign} {getattr(item, name)}" for item in items for name, sign in _BOUNDS.items() if hasattr(item, name)
    ]
    name = kind.__name__ if kind in (bool, int, float, str) else "mapping"
    return " ".join((name, ", ".join(bounds))).strip()


def model_yaml() -> str:
    """The content of ``properties/model/OneBP.yaml``."""
    lines = [
        f"# OneBP's defaults. Generated from recbole_onebp/config/schema.py by {_COMMAND}: do not edit.",
        "# Override them in a config file, in config_dict or as --key=value.",
    ]
    for name, default in onebp_defaults().items():
        field = _field(name)
        text = f"({_allowed(field.annotation, field.metadata)}) {key_of(field).meaning}."
        lines += ["", *textwrap.wrap(text, 120, initial_indent="# ", subsequent_indent="# ")]
        lines += [yaml.safe_dump({name: default}, sort_keys=False).rstrip()]
    return "\n".join([*lines, ""])


def key_table() -> str:
    """The table of ``docs/keys.md``: the keys with a default of ours."""
    lines = ["| key | scope | default | allowed | meaning |", "|---|---|---|---|---|"]
    for name in {**onebp_defaults(), **RunSettings.model_fields}:
        if name in RecBoleSettings.model_fields and name not in onebp_defaults():
            continue  # RecBole's default
        field = _field(name)
        key = key_of(field)
        allowed = _allowed(field.annotation, field.metadata)
        lines.append(f"| `{name}` | {key.scope} | {_default(name, key)} | {allowed} | {key.meaning} |")
    return "\n".join(lines)


def _field(name: str) -> FieldInfo:
    return OneBPConfig.model_fields.get(name) or RunSettings.model_fields[name]


def _default(name: str, key: Key) -> str:
    """A key's default, with the defaults that depend on other keys."""
    default = onebp_defaults().get(name, default_of(name))
    if isinstance(default, dict):
        default = f"`{default['sample_num']}` negatives, `{default['distribution']}`"
    else:
        default = "none" if default is None else f"`{default}`"
    others = []
    for other, rules in groupby(key.unless, lambda when: when.default):
        others.append(f"`{other}` with {' or '.join(f'`{rule.key}: {rule.value}`' for rule in rules)}")
    if key.onebp is not None and not _field(name).is_required() and default_of(name) != key.onebp:
        others.append(f"other models `{default_of(name)}`")
    return "; ".join([default, *others])


def keys_page(text: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{key_table()}\n\n{_END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Write both files of a clone, or with ``--check`` name the stale ones.

    Args:
        arguments: ``--check``, and the folder of the clone; by default the working directory.

    Returns:
        The exit code: 1 if a file is stale.
    """
    clone = Path(next((argument for argument in arguments if argument != "--check"), "."))
    page = clone / "docs" / "keys.md"
    wanted = {
        clone / "properties" / "model" / "OneBP.yaml": model_yaml(),
        page: keys_page(page.read_text(encoding="utf-8")),
    }
    stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path} is stale: run {_COMMAND}")
        else:
            path.write_text(wanted[path], encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
