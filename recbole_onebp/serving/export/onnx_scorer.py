"""An ONNX graph for other runtimes: user embeddings in, the best items and their scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.tables import TINY, ItemTable, unit_rows
from recbole_onebp.util.errors import UserError

__all__ = ["check_packages", "write_onnx"]

_OPSET = 17
_IR_VERSION = 8
"""Runtimes since 2022 read this version."""


def check_packages() -> None:
    """Raise :class:`UserError` if a package that :func:`write_onnx` needs is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"onnx: {error.name} is missing: pip install 'recbole-onebp[onnx]'") from None


def write_onnx(
    path: Path, table: ItemTable, cosine: bool, user_encodings: npt.NDArray[np.floating], has_local: bool = False
) -> None:
    """Write the graph, and check that onnxruntime and numpy give the same scores.

    Inputs: ``user``, float32 ``(B, d)``, rows as in ``user_encodings.npy``; ``k``, int64 ``(1,)``.  Outputs: ``score``,
    float32 ``(B, k)``, best first, and ``item``, int64 ``(B, k)``, rows of ``item_ids.json``.  The items of a user's
    history are not left out: ask for as many more.  The metadata ``local_term`` is ``none``, or ``left out``: the graph
    has the scores of the towers alone.

    Args:
        path: the file to write.
        table: the items.
        cosine: whether scores are cosines.
        user_encodings: users for the check, ``(n_users, d)``.
        has_local: whether the bundle has a local term.

    Raises:
        RuntimeError: if the scores differ by more than rounding.
    """
    import onnx

    graph = _graph(table, cosine)
    onnx.helper.set_model_props(graph, {"local_term": "left out" if has_local else "none"})
    onnx.save(graph, str(path))
    _check(path, table, cosine, user_encodings)


def _graph(table: ItemTable, cosine: bool) -> Any:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    items = np.concatenate([block for _, block in table.embeddings.blocks()])
    constants = {"items": np.ascontiguousarray(items.T), "tiny": np.array(TINY, np.float32)}
    nodes = []
    scored = "user"
    if cosine:
        nodes += [
            helper.make_node("ReduceL2", ["user"], ["length"], axes=[1], keepdims=1),
            helper.make_node("Max", ["length", "tiny"], ["divisor"]),
            helper.make_node("Div", ["user", "divisor"], ["unit"]),
        ]
        scored = "unit"
    nodes.append(helper.make_node("MatMul", [scored, "items"], ["product"]))
    if table.bias is not None:
        constants["bias"] = np.asarray(table.bias, np.float32)
        nodes.append(helper.make_node("Add", ["product", "bias"], ["scores"]))
    nodes.append(helper.make_node("TopK", [nodes[-1].output[0], "k"], ["score", "item"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "recbole_onebp",
        [
            helper.make_tensor_value_info("user", TensorProto.FLOAT, ["B", table.embeddings.size]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B", "k"]),
            helper.make_tensor_value_info("item", TensorProto.INT64, ["B", "k"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _check(path: Path, table: ItemTable, cosine: bool, user_encodings: npt.NDArray[np.floating]) -> None:
    """Compare the scores of about 64 users."""
    import onnxruntime

    users = user_encodings[:: max(1, len(user_encodings) // 64)].astype(np.float32)
    k = min(20, len(table))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    score, item = session.run(["score", "item"], {"user": users, "k": np.array([k])})
    user_e = unit_rows(users) if cosine else users
    expected = table.score_pairs(user_e, np.repeat(np.arange(len(users)), k), item.reshape(-1))
    margin = np.repeat(table.margin(user_e), k)
    if not (np.abs(score.reshape(-1) - expected) <= margin + 1e-6 * np.abs(expected)).all():
        raise RuntimeError(f"{path}: the scores of onnxruntime differ from those of numpy")
