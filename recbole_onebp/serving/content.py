"""The features of items in a bundle: an item that is not in it, made of the rows of its values.

``item_values.json`` holds ``bias``, which is added to that of every new item, and ``fields``, in the order of the rows
of ``value_encodings.npy``.  A field of tokens is ``{"field": name, "values": [...], "weight": [...]}``, a field of
numbers ``{"field": name, "mean": [...], "weight": [...]}``; see :class:`recbole_onebp.data.item_features.ItemField`.
``separator`` of a field is what stands between the values of an item in a text; null if the text is one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.bundle import Bundle
from recbole_onebp.serving.tables import LARGEST, Float32Array
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token
from recbole_onebp.util.untrusted import map_array, read_json

__all__ = ["HAS_FEATURES", "ItemContent", "as_text", "described"]

HAS_FEATURES = "item_values.json"
"""The file that a bundle has if its items have features."""
_MOST_BYTES, _MOST_VALUES = 1 << 30, 1 << 25
_SEPARATOR = " "
"""RecBole's; bundles of earlier versions do not name it."""


def described(fields: Iterable[Any], bias: float) -> dict[str, Any]:
    """What ``item_values.json`` holds of the fields of a tower."""
    found = [
        {
            "field": field.name,
            **({"mean": field.mean.tolist()} if field.tokens is None else {"values": field.tokens.tolist()}),
            "weight": field.weight.tolist(),
            "separator": field.separator,
        }
        for field in fields
    ]
    return {"bias": bias, "fields": found}


def as_text(value: Any) -> str:
    """A value of a field as it is shown."""
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class _Field:
    """A field: its first row, and its values or their mean."""

    first: int
    weight: npt.NDArray[np.float32]
    rows: dict[str, int] | None
    """The place of each token in the field; None for numbers."""
    mean: npt.NDArray[np.float32] | None
    separator: str | None
    """Between the values of an item in a text."""


class _Parts(NamedTuple):
    """What an item is made of in a field."""

    rows: npt.NDArray[np.int64]
    weight: Float32Array
    values: list[str]
    """As text."""
    unknown: list[Token]


class ItemContent:
    """Encodes items by their features, as the item tower does in training."""

    def __init__(
        self, fields: dict[str, _Field], table: Float32Array, bias: Float32Array | None, bias_of_all: float
    ) -> None:
        self._fields, self._table, self._bias, self._bias_of_all = fields, table, bias, bias_of_all

    @classmethod
    def read(cls, bundle: Bundle) -> ItemContent:
        """The features of a bundle.

        Raises:
            UserError: if it has none, or they are damaged.
        """
        path, files = bundle.path / HAS_FEATURES, bundle.manifest["files"]
        if HAS_FEATURES not in files:
            raise UserError(
                f"{bundle.path}: items have no features in this bundle; train with item_features, and export"
            )
        content = read_json(path, _MOST_BYTES, max_values=_MOST_VALUES)
        fields: dict[str, _Field] = {}
        first = 0
        for one in content["fields"] if _is_content(content) else [{}]:
            if not _is_field(one) or one["field"] in fields:
                raise UserError(f"{path}: damaged: expected fields with as many weights as values")
            tokens = one.get("values")
            rows = None if tokens is None else {token: place for place, token in enumerate(tokens)}
            mean = None if tokens is not None else np.array(one["mean"], np.float32)
            fields[one["field"]] = _Field(
                first, np.array(one["weight"], np.float32), rows, mean, one.get("separator", _SEPARATOR)
            )
            first += len(one["weight"])
        size = bundle.manifest["embedding_size"]
        table = map_array(bundle.path / "value_encodings.npy", (first, size), np.float32)
        bias = None
        if bundle.item_bias is not None:
            bias = map_array(bundle.path / "value_bias.npy", (first,), np.float32)
        for name, array in (("value_encodings", table), ("value_bias", bias)):
            if array is not None and np.abs(array).max(initial=0) > LARGEST:
                raise UserError(f"{bundle.path / name}.npy: has values beyond {LARGEST:g}; export the bundle again")
        return cls(fields, table, bias, float(content["bias"]))

    def values(self, name: str, text: str) -> Any:
        """The values of a field in a text: a list where an item may have several."""
        separator = self._fields[name].separator
        return text if separator is None else [value for value in text.split(separator) if value]

    @property
    def names(self) -> list[str]:
        """The fields."""
        return [*self._fields]

    def encode(self, item: Token, features: Mapping[str, Any]) -> tuple[Float32Array, float, list[Token]]:
        """Embedding ``(1, d)`` and bias of an item, and its unknown values.

        Args:
            item: its id, for messages.
            features: field -> a token, a list of tokens, a number or a list of numbers.

        Raises:
            UserError: for an unknown field, or a value of the wrong kind.
        """
        embedding, bias, unknown = np.zeros((1, self._table.shape[1]), np.float32), self._bias_of_all, []
        for name, value in features.items():
            rows, weight, _, missing = self._parts(item, name, value)
            unknown += missing
            embedding += weight @ self._table[rows]
            bias += 0.0 if self._bias is None else float(weight @ self._bias[rows])
        return embedding, bias, unknown

    def products(self, item: Token, features: Mapping[str, Any], user_e: Float32Array) -> list[tuple[str, str, float]]:
        """Field, value and inner product with a user ``(d,)`` of all that an item is made of."""
        found = []
        for name, value in features.items():
            rows, weight, names, _ = self._parts(item, name, value)
            products = weight * (self._table[rows].astype(np.float64) @ user_e)
            found += [(name, one, float(product)) for one, product in zip(names, products.tolist(), strict=True)]
        return found

    def _parts(self, item: Token, name: str, value: Any) -> _Parts:
        field = self._fields.get(name)
        if field is None:
            raise UserError(f"item {item}: no field {name!r}; the features of items are {', '.join(self._fields)}")
        return (_numbers if field.rows is None else _tokens)(f"item {item}: {name}", value, field)


def _numbers(where: str, value: Any, field: _Field) -> _Parts:
    assert field.mean is not None
    given = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    try:
        numbers = np.array([float(one) for one in given], np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {str(value)[:80]!r} is not allowed: expected numbers") from None
    if len(numbers) != len(field.mean) or not np.isfinite(numbers).all():
        raise UserError(f"{where}: expected {len(field.mean)} finite numbers, got {str(value)[:80]}")
    rows = field.first + np.arange(len(numbers))
    return _Parts(rows, ((numbers - field.mean) * field.weight).astype(np.float32), [f"{one:g}" for one in numbers], [])


def _tokens(where: str, value: Any, field: _Field) -> _Parts:
    assert field.rows is not None
    given = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    tokens = list(dict.fromkeys(map(str, given)))
    if not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in given):
        raise UserError(f"{where}: {str(value)[:80]!r} is not allowed: expected a text or a list of texts")
    known = [token for token in tokens if token in field.rows]
    places = [field.rows[token] for token in known]
    weight = field.weight[places]
    length = math.sqrt(float(weight @ weight)) or 1.0
    unknown = [token for token in tokens if token not in field.rows]
    return _Parts(field.first + np.array(places, np.int64), weight / np.float32(length), known, unknown)


def _is_content(value: Any) -> TypeGuard[dict[str, Any]]:
    is_complete = isinstance(value, dict) and isinstance(value.get("fields"), list)
    return is_complete and _are_numbers([value.get("bias")])


def _is_field(one: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(one, dict) or not isinstance(one.get("field"), str) or not _are_numbers(one.get("weight")):
        return False
    values, mean = one.get("values"), one.get("mean")
    separator = one.get("separator", _SEPARATOR)
    if not (separator is None or (isinstance(separator, str) and separator)):
        return False
    if values is None:
        return _are_numbers(mean) and len(mean) == len(one["weight"])
    is_text = isinstance(values, list) and all(type(value) is str for value in values)
    return is_text and len(set(values)) == len(values) == len(one["weight"])


def _are_numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(type(one) in (int, float) and abs(one) <= LARGEST for one in value)
