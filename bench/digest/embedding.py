"""``embed`` and ``resample``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import Learned, Sinusoidal
from fastpe.scaling import DynamicNTK

from .arguments import MODES
from .inputs import DTYPES, TENSOR_VIEWS, Inputs
from .recording import Recorder


def quantised(r: Inputs, kind: str) -> Any:
    """A table of 8-bit integers."""
    low = -128 if kind == "int8" else 0
    return r.ints(low, low + 256, 50, 20, dtype=kind)


def embed(record: Recorder) -> None:
    """Tables of all types, with encodings, masks and token types."""
    embed = fastpe.embed
    encodings: dict[str, Callable[[Inputs], Any]] = {
        "alone": lambda r: None,
        "sinusoidal": lambda r: "sinusoidal",
        "concatenated": lambda r: Sinusoidal(layout="concatenated", amplitude=0.5),
        "dynamic": lambda r: Sinusoidal(scaling=DynamicNTK(4.0, 8)),
        "learned": lambda r: Learned(r(60, 20, dtype="float16")),
    }
    for name, make in encodings.items():
        for table in DTYPES:
            for dtype in DTYPES:
                run = lambda r: embed(r.ints(0, 50, 3, 16), r(50, 20, dtype=table), make(r), scale=3.3, dtype=dtype)
                record.case(f"embed/{table}_to_{dtype}/{name}", run)
        for shape in ((), (9,), (3, 7), (2, 3, 5), (32, 1), (0, 4)):
            record.case(f"embed/ids_{shape}/{name}", lambda r: embed(r.ints(0, 50, *shape, dtype="int32"), r(50, 20), make(r)))
        for kind in ("int8", "uint8"):
            for dtype in DTYPES:
                run = lambda r: embed(
                    r.ints(0, 50, 3, 16), quantised(r, kind), make(r), row_scale=r.of(r.rng.random(50)), dtype=dtype
                )
                record.case(f"embed/{kind}_to_{dtype}/{name}", run)
            for zero, zeros in {"number": lambda r: 7, "array": lambda r: r.ints(-9, 9, 50)}.items():
                run = lambda r: embed(r.ints(0, 50, 16), quantised(r, kind), make(r), row_scale=(r(50), zeros(r)), scale=2.0)
                record.case(f"embed/{kind}/zero_point_{zero}/{name}", run)
        everything = lambda r: embed(
            r.ints(0, 6, 3, 16),
            r(50, 20),
            make(r),
            scale=2.0,
            token_types=(r.ints(0, 2, 3, 16), r(2, 20)),
            padding_idx=3,
            mask=r.of(np.arange(16) > 2),
        )
        record.case(f"embed/everything/{name}", everything)
        record.case(f"embed/padding/{name}", lambda r: embed(r.ints(0, 4, 3, 16), r(50, 20), make(r), padding_idx=1))
        for view in TENSOR_VIEWS:
            run = lambda r: embed(r.ints(0, 50, 3, 16), r(50, 20), make(r), out=r(3, 16, 20, dtype="float16", view=view))
            record.case(f"embed/out/{view}/{name}", run)
    for mode, make_mode in MODES.items():
        for width in (20, 7):
            run = lambda r: embed(r.ints(0, 50, 3, 16), r(50, width), "sinusoidal", **r.given(make_mode(r, 3, 16)))
            record.case(f"embed/{mode}/{width}", run)
        run = lambda r: embed(r.ints(0, 50, 3, 16), r(50, 20), Learned(r(90, 20), "clip"), **r.given(make_mode(r, 3, 16)))
        if "real" not in mode and "float" not in mode:
            record.case(f"embed/{mode}/learned", run)
    record.case(
        "embed/types_of_another_type",
        lambda r: embed(r.ints(0, 50, 4), r(50, 20), token_types=(r.ints(0, 3, 4), r(3, 20, dtype="float64"))),
    )
    record.case(
        "embed/lists",
        lambda r: embed([[0, 3], [7, 7]], r(50, 20), "sinusoidal", offset=4, token_types=([[0, 1], [1, 1]], r(2, 20))),
    )
    record.case("embed/ids_transposed", lambda r: embed(r.ints(0, 50, 16, 3).T, r(50, 20), "sinusoidal"))
    record.case("embed/table_of_rows_apart", lambda r: embed(r.ints(0, 50, 3, 16), r(50, 20, view="sliced"), "sinusoidal"))
    record.case("embed/large", lambda r: embed(r.ints(0, 3000, 4, 300), r(3000, 512), "sinusoidal", scale=22.6, offset=2))
    decode = lambda r: [embed(r.ints(0, 50, 32, 1), r(50, 64), "sinusoidal", scale=8.0, offset=n) for n in (0, 1, 2, 77)]
    record.case("embed/decode", decode)


def resample(record: Recorder) -> None:
    """Tables of one and two axes, by each method."""
    for dtype in DTYPES:
        for size in (5, 16, 37):
            record.case(f"resample/{dtype}/linear_{size}", lambda r: fastpe.resample(r(16, 20, dtype=dtype), size), libm=True)
        for method in ("bicubic", "bilinear", "antialias", "bicubic_antialias", None):
            for size in ((3, 2), (4, 4), (7, 9)):
                run = lambda r: fastpe.resample(r(1, 17, 20, dtype=dtype), size, method=method, prefix_tokens=1)
                record.case(f"resample/{dtype}/{method}_{size}", run, libm=True)
    given = {"grid": (3, 5), "interpolate_offset": 0.1}
    record.case("resample/grid", lambda r: fastpe.resample(r(15, 20, view="misaligned"), (6, 7), **given), libm=True)
