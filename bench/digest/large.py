"""Arrays larger than the caches."""

from __future__ import annotations

import fastpe
from fastpe import ALiBi

from .inputs import F
from .recording import NUMPY, TORCH, Recorder


def large(record: Recorder) -> None:
    """40 MB: in place, and into outputs that are written past the caches."""
    for dtype, rows in (("float32", 1024), ("bfloat16", 2048)):
        size = (10, rows, 1024)
        record.case(f"large/add/{dtype}", lambda r: fastpe.add_encoding(r(*size, dtype=dtype), offset=5), NUMPY)
        record.case(
            f"large/add_out/{dtype}",
            lambda r: fastpe.add_encoding(r(*size, dtype=dtype), offset=5, out=r(*size, dtype=dtype)),
            NUMPY,
        )
        heads = (1, 32, 5 * rows // 2, 128)
        record.case(
            f"large/rotary_out/{dtype}",
            lambda r: fastpe.apply_rotary(r(*heads, dtype=dtype), out=r(*heads, dtype=dtype)),
            NUMPY,
        )
        record.case(
            f"large/embed/{dtype}",
            lambda r: fastpe.embed(r.ints(0, 900, 10, rows), r(900, 1024, dtype=dtype), "sinusoidal"),
            NUMPY,
        )
        scores = (4, 4, 512, 5 * rows // 4)
        run = lambda r: fastpe.add_bias(r(*scores, dtype=dtype), ALiBi(4), causal=True, out=r(*scores, dtype=dtype))
        record.case(f"large/bias_out/{dtype}", run, NUMPY)
    record.case("large/functional", lambda r: F.add_encoding(r(10, 1024, 1024)), TORCH)
    record.case("large/functional_rotary", lambda r: F.apply_rotary(r(1, 32, 2560, 128)), TORCH)
