"""Sums over arrays in vector registers, in an order that is written down, for loops compiled by numba.

LLVM puts a sum into vector registers by itself only where it may reorder it (fastmath).  numba keeps a compiled loop
more than once, each copy optimised anew, and a process that compiles runs another copy than one that loads the cache:
what may be reordered may then differ in its last bits, in two runs of one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["dot", "highest", "total"]

_LANES = 16
"""Lane l takes in elements l, l + 16, ... of the whole sixteens; lanes are joined half by half; the rest in turn."""


@intrinsic  # type: ignore[untyped-decorator]
def dot(_context: Any, left: Any, right: Any) -> Any:
    """The sum of ``left[k] * right[k]``, of contiguous float32, one length; no product is fused with its sum."""
    return _fold(lambda build, so_far, a, b: build.fadd(so_far, build.fmul(a, b)), _add, 0.0, left, right)


@intrinsic  # type: ignore[untyped-decorator]
def total(_context: Any, values: Any) -> Any:
    """The sum of contiguous float32."""
    return _fold(_add, _add, 0.0, values)


@intrinsic  # type: ignore[untyped-decorator]
def highest(_context: Any, values: Any) -> Any:
    """The highest of contiguous float32 that is not NaN; minus infinity if there is none."""
    return _fold(_higher, _higher, -np.inf, values)


def _add(build: ir.IRBuilder, so_far: Any, new: Any) -> Any:
    return build.fadd(so_far, new)


def _higher(build: ir.IRBuilder, so_far: Any, new: Any) -> Any:
    return build.select(build.fcmp_ordered(">", new, so_far), new, so_far)


def _fold(take_in: Callable[..., Any], join: Callable[..., Any], first: float, *kinds: Any) -> Any:
    """Signature and code of a function of arrays: take in their elements from ``first`` on, and join the lanes."""
    if not all(isinstance(kind, types.Array) and (kind.ndim, kind.layout) == (1, "C") for kind in kinds):
        return None  # numba then says which types it has found no function for

    def generate(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arrays = [make_array(kind)(context, build, value) for kind, value in zip(signature.args, values, strict=True)]
        size = build.extract_value(arrays[0].shape, 0)
        whole = build.and_(size, size.type(-_LANES))
        vector, lane = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(32)
        lanes = cgutils.alloca_once_value(build, vector([first] * _LANES))
        with cgutils.for_range_slice(build, size.type(0), whole, size.type(_LANES)) as (at, _):
            places = [build.bitcast(build.gep(array.data, [at]), vector.as_pointer()) for array in arrays]
            build.store(take_in(build, build.load(lanes), *(build.load(p, align=4) for p in places)), lanes)
        joined, width = build.load(lanes), _LANES // 2
        while width:
            half = ir.VectorType(lane, width)
            low, high = (build.shuffle_vector(joined, joined, half(list(range(at, at + width)))) for at in (0, width))
            joined, width = join(build, low, high), width // 2
        result = cgutils.alloca_once_value(build, build.extract_element(joined, lane(0)))
        with cgutils.for_range_slice(build, whole, size, size.type(1)) as (at, _):
            elements = (build.load(build.gep(array.data, [at])) for array in arrays)
            build.store(take_in(build, build.load(result), *elements), result)
        return build.load(result)

    return types.float32(*kinds), generate
