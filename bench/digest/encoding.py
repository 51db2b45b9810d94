"""``encode``, and the frequencies of encodings."""

from __future__ import annotations

import numpy as np

import fastpe
from fastpe import Fourier, Rotary, Sinusoidal

from .adding import ENCODINGS, GRIDS
from .arguments import scalings
from .inputs import DTYPES, TENSOR_VIEWS, Given
from .recording import NUMPY, Recorder

FOURIERS: Given = {
    "nerf": Fourier.nerf(3, 4),
    "nerf_input": Fourier.nerf(2, 3, include_input=True, with_pi=False),
    "random": Fourier.random(np.random.default_rng(1).standard_normal((2, 16))),
    "random_free": Fourier.random(np.random.default_rng(2).standard_normal((3, 8)), unit_square=False),
    "bands": Fourier(2, bands=(0.5, 1.0, 40.0), order=("function", "axis", "band"), cos_first=True, position_shift=0.25),
    "timm": Fourier.timm(4),
}


def encode(record: Recorder) -> None:
    """Positions, encodings, outputs, grids, Fourier features and scaling rules."""
    encode = fastpe.encode
    places: Given = {"int": 7, "real": 0.25, "far": 2**31 - 1, "list": [0, 1.5, -3], "range": range(40)}
    for name, value in places.items():
        for dtype in DTYPES:
            record.case(f"encode/{dtype}/{name}", lambda r: encode(value, 33, dtype=dtype, like=r(1)))
    for name, encoding in ENCODINGS.items():
        record.case(f"encode/{name}", lambda r: encode(r.ints(-(2**31), 2**31, 3, 5), 21, encoding))
        record.case(
            f"encode/real/{name}", lambda r: encode(r.of(r.rng.uniform(-99, 99, (2, 3, 4))), 16, encoding, dtype="float64")
        )
    for dtype in DTYPES:
        for view in TENSOR_VIEWS:
            record.case(
                f"encode/out/{dtype}/{view}",
                lambda r: encode(r.ints(0, 999, 3, 5), 16, out=r(3, 5, 16, dtype=dtype, view=view)),
            )
        for name, grid in GRIDS.items():
            record.case(f"encode/grid/{dtype}/{name}", lambda r: encode(None, 48, grid, dtype=dtype, like=r(1)))
        for name, fourier in FOURIERS.items():
            run = lambda r: encode(r.of(r.rng.uniform(-1, 1, (fourier.axes, 4, 5))), fourier.width, fourier, dtype=dtype)
            record.case(f"encode/fourier/{dtype}/{name}", run)
    for name, rule in scalings(12).items():
        record.case(
            f"encode/scaling/{name}",
            lambda r: [encode(r.ints(0, 99, 9), 24, Sinusoidal(scaling=rule), seq_len=n) for n in (None, 900)],
        )
        record.case(
            f"frequencies/sinusoidal/{name}",
            lambda r: [Sinusoidal(scaling=rule).frequencies(24, n) for n in (None, 900)],
            NUMPY,
        )
        record.case(
            f"frequencies/rotary/{name}", lambda r: [Rotary(scaling=rule).frequencies(24, n) for n in (None, 900)], NUMPY
        )
    for fields in ({"linear_bands": False}, {"temperature": 50.0, "include_grid": False}):
        made = Fourier.timm(5, **fields)
        record.case(f"encode/fourier/timm/{'_'.join(fields)}", lambda r: encode(r(2, 9), made.width, made), libm=True)
    for name, grid in GRIDS.items():
        record.case(f"frequencies/grid/{name}", lambda r: (grid.frequencies(48), grid.coordinates()), NUMPY)
