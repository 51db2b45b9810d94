"""The element types that fastpe encodes, and those that it only writes: one record each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class ElementType(NamedTuple):
    """An element type. NumPy (with ml_dtypes), CuPy and PyTorch all know it by ``name``."""

    name: str
    itemsize: int
    suffix: str  # in the names of kernels
    arithmetic: str  # the type in which kernels compute: results are rounded once, at the store
    rounding: float  # largest relative error of that rounding

    @property
    def arithmetic_itemsize(self) -> int:
        return ELEMENT_TYPES[self.arithmetic].itemsize


ELEMENT_TYPES = {
    element.name: element
    for element in (
        ElementType("float16", 2, "f16", "float32", 2.0**-11),
        ElementType("bfloat16", 2, "bf16", "float32", 2.0**-8),
        ElementType("float32", 4, "f32", "float32", 2.0**-24),
        ElementType("float64", 8, "f64", "float64", 2.0**-53),
    )
}
FLOAT8 = {  # only written, and scaled: too large values become the largest
    element.name: element
    for element in (
        ElementType("float8_e4m3fn", 1, "e4m3", "float32", 2.0**-4),
        ElementType("float8_e5m2", 1, "e5m2", "float32", 2.0**-3),
    )
}
RESULT_TYPES = {**ELEMENT_TYPES, **FLOAT8}
ITEMSIZE = {name: element.itemsize for name, element in RESULT_TYPES.items()}


def extended(name: str, missing: str) -> Any:
    """The NumPy type of bfloat16 or a float8, which ml_dtypes has; ImportError with this text without it."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(missing) from None
    return np.dtype(getattr(ml_dtypes, name))
