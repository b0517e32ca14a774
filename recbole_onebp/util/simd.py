"""SIMD sums and maxima over arrays in a fixed order, for loops compiled by numba.

LLVM vectorises a sum only if it may reorder it (fastmath).  But numba compiles a loop several times and optimises each
copy separately, and a process that compiles runs another copy than a process that loads the cache.  With fastmath, two
runs with the same seed could therefore differ in the last bits.  Here the order of a sum is part of the code.
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

__all__ = ["dot", "highest", "highest_bound", "prefetch", "total"]

_CACHE_LINE = 64
"""Bytes."""
_WIDTH = 16
"""Entry j of the vector sums elements j, j + 16, ... of all full blocks of 16.  The upper half of the vector is then
added to its lower half until one number is left, and the remaining elements are added one by one."""


@intrinsic  # type: ignore[untyped-decorator]
def dot(_context: Any, left: Any, right: Any) -> Any:
    """Dot product of two contiguous float32 arrays of the same length, without fused multiply-add."""
    return _fold(lambda build, so_far, a, b: build.fadd(so_far, build.fmul(a, b)), _add, 0.0, left, right)


@intrinsic  # type: ignore[untyped-decorator]
def total(_context: Any, values: Any) -> Any:
    """Sum of a contiguous float32 array."""
    return _fold(_add, _add, 0.0, values)


@intrinsic  # type: ignore[untyped-decorator]
def highest(_context: Any, values: Any) -> Any:
    """Maximum of a contiguous float32 array, ignoring NaN; minus infinity if nothing is left."""
    return _fold(_higher, _higher, -np.inf, values)


@intrinsic  # type: ignore[untyped-decorator]
def highest_bound(_context: Any, product: Any, scale: Any, slack: Any, length: Any) -> Any:
    """Maximum of ``product * scale + length * slack``, ignoring NaN; minus infinity if nothing is left.

    The product is a contiguous array of int32 or float32, scale and slack are of float32, and length is a float32.
    """

    def update(build: ir.IRBuilder, so_far: Any, p: Any, s: Any, e: Any, n: Any) -> Any:
        return _higher(build, so_far, build.fadd(build.fmul(p, s), build.fmul(n, e)))

    return _fold(update, _higher, -np.inf, product, scale, slack, length)


def _add(build: ir.IRBuilder, so_far: Any, new: Any) -> Any:
    return build.fadd(so_far, new)


def _higher(build: ir.IRBuilder, so_far: Any, new: Any) -> Any:
    return build.select(build.fcmp_ordered(">", new, so_far), new, so_far)


def _fold(update: Callable[..., Any], merge: Callable[..., Any], first: float, *kinds: Any) -> Any:
    """Signature and code of a reduction of arrays.

    Args:
        update: builds the code that adds an element of each array to a partial result.
        merge: builds the code that merges two partial results.
        first: initial value.
        kinds: numba types of the arrays, of which the first gives the length, and of numbers that count as an array of
            the same.
    """
    arrays = [kind for kind in kinds if _is_array(kind, 1) and kind.dtype in (types.float32, types.int32)]
    if kinds[0] not in arrays or any(kind not in arrays and kind != types.float32 for kind in kinds):
        return None  # numba then reports that no function matches these types

    def generate(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> Any:
        given = [
            make_array(kind)(context, build, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        size = build.extract_value(given[0].shape, 0)
        whole = build.and_(size, size.type(-_WIDTH))
        index = ir.IntType(32)
        partial = cgutils.alloca_once_value(build, ir.VectorType(ir.FloatType(), _WIDTH)([first] * _WIDTH))
        with cgutils.for_range_slice(build, size.type(0), whole, size.type(_WIDTH)) as (at, _):
            elements = (_elements(build, kind, value, at, _WIDTH) for kind, value in zip(kinds, given, strict=True))
            build.store(update(build, build.load(partial), *elements), partial)
        merged, width = build.load(partial), _WIDTH // 2
        while width:
            half = ir.VectorType(index, width)
            low, high = (build.shuffle_vector(merged, merged, half(list(range(at, at + width)))) for at in (0, width))
            merged, width = merge(build, low, high), width // 2
        result = cgutils.alloca_once_value(build, build.extract_element(merged, index(0)))
        with cgutils.for_range_slice(build, whole, size, size.type(1)) as (at, _):
            elements = (_elements(build, kind, value, at, 1) for kind, value in zip(kinds, given, strict=True))
            build.store(update(build, build.load(result), *elements), result)
        return build.load(result)

    return types.float32(*kinds), generate


def _is_array(kind: Any, n_axes: int) -> bool:
    return isinstance(kind, types.Array) and (kind.ndim, kind.layout) == (n_axes, "C")


def _elements(build: ir.IRBuilder, kind: Any, value: Any, at: Any, width: int) -> Any:
    """Elements ``at`` to ``at + width`` of an array as float32, a vector if there are several; or a number for each."""

    def of_width(element: ir.Type) -> ir.Type:
        return element if width == 1 else ir.VectorType(element, width)

    single = of_width(ir.FloatType())
    if not isinstance(kind, types.Array):
        if width == 1:
            return value
        one = build.insert_element(single(ir.Undefined), value, ir.IntType(32)(0))
        return build.shuffle_vector(one, one, of_width(ir.IntType(32))([0] * width))
    start = build.gep(value.data, [at])
    loaded = build.load(build.bitcast(start, of_width(start.type.pointee).as_pointer()), align=4)
    return build.sitofp(loaded, single) if isinstance(kind.dtype, types.Integer) else loaded


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_context: Any, table: Any, row: Any) -> Any:
    """Begin to load a row of a contiguous table into the cache, ``(n_rows, d)``; it need not be there to go on.

    Rows at random places are what the processor cannot foresee: without this it waits for each of them.
    """
    if not _is_array(table, 2):
        return None

    def generate(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> Any:
        array = make_array(signature.args[0])(context, build, values[0])
        word, byte = ir.IntType(64), ir.IntType(8)
        stride = build.extract_value(array.strides, 0)
        place = context.cast(build, values[1], signature.args[1], types.int64)
        start = build.gep(build.bitcast(array.data, byte.as_pointer()), [build.mul(place, stride)])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), flag, flag, flag])
        load = cgutils.get_or_insert_function(build.module, kind, "llvm.prefetch.p0i8")
        with cgutils.for_range_slice(build, word(0), stride, word(_CACHE_LINE)) as (at, _):
            build.call(load, [build.gep(start, [at]), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.none(table, row), generate
