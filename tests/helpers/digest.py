"""Print a digest of the bits of many results: ``python tests/helpers/digest.py``. Whatever the CPU, it is the same."""

from __future__ import annotations

import hashlib

import cases
import numpy as np

import fastpe
from fastpe import Learned, Rotary, Sinusoidal

SUMS = (
    ("float32", "bfloat16", Sinusoidal()),
    ("float64", "float16", None),
    ("int8", "float32", Sinusoidal()),
    ("bfloat16", "float64", Sinusoidal()),
    ("float16", "float32", None),
)


def digest() -> str:
    """Of sums, rotations and embeddings of every element type."""
    found = hashlib.sha256()
    for dtype in ("float16", "bfloat16", "float64"):  # add_encoding is compared in every type elsewhere
        x, q, k = (cases.random(shape, dtype, seed) for seed, shape in enumerate(((2, 9, 53), (2, 5, 9, 104), (2, 2, 9, 104))))
        cos, sin = (cases.random((200, 8), "float32", seed) for seed in (3, 4))
        results = [
            fastpe.add_encoding(x, offset=100_003),
            *fastpe.apply_rotary(q, k, Rotary(interleaved=True, rotary_dim=38), offset=99),
            *fastpe.apply_rotary(q, k, Rotary(xpos_scale_base=64), offset=-5),
            *fastpe.apply_rotary(q, k, Rotary.tabulated(cos, sin), offset=77, inverse=True),
        ]
        for result in results:
            found.update(np.ascontiguousarray(result).tobytes())
    ids, learned = np.arange(18).reshape(2, 9) * 2, Learned(cases.random((20, 53), "float16"))
    for table, out, encoding in SUMS:
        rows = cases.random((50, 53), "float32" if table == "int8" else table, 7)
        rows, given = ((rows * 40).astype(np.int8), {"row_scale": np.full(50, 0.01)}) if table == "int8" else (rows, {})
        result = fastpe.embed(ids, rows, encoding or learned, scale=3.3, dtype=out, **given)
        found.update(np.ascontiguousarray(result).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(digest())
