"""Check by pyright that the types of what ``docs/reference/api.md`` lists are complete, with all that they refer to.

pyright reads the installed package, as it does for users of it.  Classes that derive from RecBole's or scikit-learn's
would count as unknown, because these packages have no marker of :pep:`561`; they have one while pyright runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

API = Path(__file__).parents[1] / "reference" / "api.md"
DERIVED_FROM = ("recbole", "sklearn")


@contextmanager
def marked_as_typed() -> Iterator[None]:
    """Inside the block the packages have the marker of :pep:`561`."""
    specs = [find_spec(name) for name in DERIVED_FROM]
    markers = [Path(str(spec.origin)).with_name("py.typed") for spec in specs if spec is not None]
    added = [marker for marker in markers if not marker.exists()]
    try:
        for marker in added:
            marker.touch()
        yield
    finally:
        for marker in added:
            marker.unlink(missing_ok=True)


def check() -> list[str]:
    """A line for each name of the API whose type is not complete; then what may be the causes."""
    listed = re.findall(r"(?m)^::: ([\w.]+)", API.read_text(encoding="utf-8"))
    with marked_as_typed():
        command = ["pyright", "--verifytypes", "recbole_onebp", "--ignoreexternal", "--outputjson"]
        report = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["typeCompleteness"]
    symbols: list[dict[str, Any]] = report["symbols"]
    found = {one["name"] for one in symbols + report["modules"]}
    lines = [f"{name}: pyright has not found it" for name in listed if name not in found]
    incomplete = [one["name"] for one in symbols if not one["isTypeKnown"] or one["isTypeAmbiguous"]]
    prefixes = tuple(f"{name}." for name in listed)
    faulty = [f"{name}: its type is not complete" for name in incomplete if f"{name}.".startswith(prefixes)]
    faults = ((one["name"], fault) for one in symbols for fault in one["diagnostics"] if fault["severity"] == "error")
    causes = [f"{name}: {fault['message']}" for name, fault in faults if "partially unknown" not in fault["message"]]
    return lines + faulty + (["Possible causes:", *causes] if faulty else [])


if __name__ == "__main__":
    wrong = check()
    print("\n".join(wrong) or "the types of the API are complete")
    sys.exit(bool(wrong))
