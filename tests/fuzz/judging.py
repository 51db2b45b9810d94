"""Whether results are within their error of a reference, and how many elements and examples were compared."""

from __future__ import annotations

from collections import Counter

import cases
import ml_dtypes
import numpy as np

ELEMENTS: Counter[str] = Counter()  # compared with a reference, by verb
EXAMPLES: Counter[str] = Counter()
REFUSALS: Counter[str] = Counter()

SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150, "float64": 2.0**-1074}  # half the last subnormal
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
ARITHMETIC = {name: cases.UNIT["float64" if name == "float64" else "float32"] for name in cases.DTYPES}  # one rounding of it
SUBNORMAL = {
    name: 0.0 if name == "float64" else 2.0**-148 for name in cases.DTYPES
}  # of float32 arithmetic below its normal numbers


def count(verb: str, result: np.ndarray | None = None) -> None:
    """Count an example, or the elements of a result that was compared."""
    if result is None:
        EXAMPLES[verb] += 1
    else:
        ELEMENTS[verb] += result.size


def assert_within(got: np.ndarray, expected: np.ndarray, error: np.ndarray | float, dtype: str) -> None:
    """Every element is ``expected`` up to ``error`` and one rounding to its type; NaN and infinity as expected."""
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    assert got.dtype == cases.DTYPES[dtype], f"dtype {got.dtype}, expected {dtype}"
    with np.errstate(all="ignore"):
        wide = got.astype(np.float64)
        limit = error + 1.0001 * cases.UNIT[dtype] * np.abs(expected) + SMALLEST[dtype]
        certain = np.isfinite(expected)  # no distance from infinity says anything
        right = certain & (np.abs(wide - expected) <= limit)
        if not right.all():
            right |= (np.isnan(wide) & np.isnan(expected)) | (wide == expected)
            overflows = certain & (np.abs(expected) + limit >= LARGEST[dtype])  # rounds to infinity, or just not
            either = np.abs(expected) <= limit  # the sign is the error's
            near = np.abs(wide) >= LARGEST[dtype] * (1 - 2.0**-7)
            right |= overflows & near & (either | (np.sign(wide) == np.sign(expected)))
    if not right.all():
        where = tuple(int(i) for i in np.argwhere(~right)[0])
        allowed = np.broadcast_to(limit, expected.shape)[where]
        raise AssertionError(
            f"{(~right).sum()} of {right.size} elements are off, first at {where}: {wide[where]!r}, expected "
            f"{expected[where]!r} +- {allowed:.3g}"
        )


def finite(error: np.ndarray) -> np.ndarray:
    """An error that NaN or infinity went into says nothing: such elements must be as expected."""
    return np.where(np.isfinite(error), error, 0.0)
