"""``add_encoding``: layouts, sizes, encodings, positions, outputs, tables and grids."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastpe
from fastpe import Grid, Learned, Sinusoidal

from .arguments import MODES, scalings
from .inputs import DTYPES, VIEWS, Given, Inputs
from .recording import Recorder, libraries

ENCODINGS: Given = {
    "default": None,
    "name": "sinusoidal",
    "cos_first": Sinusoidal(cos_first=True),
    "concatenated": Sinusoidal(layout="concatenated"),
    "concatenated_cos_first": Sinusoidal(layout="concatenated", cos_first=True),
    "shift_1": Sinusoidal(layout="concatenated", frequency_shift=1),
    "shift_1_interleaved_cos_first": Sinusoidal(frequency_shift=1, cos_first=True),
    "shift_half": Sinusoidal(frequency_shift=0.5, base=500.0),
    "zero_pad": Sinusoidal(zero_pad=True),
    "amplitude": Sinusoidal(amplitude=-0.125),
    "quarter_scale": Sinusoidal(position_scale=0.25),
    "large_scale": Sinusoidal(position_scale=1000.0),
    "timesteps": Sinusoidal.timesteps(flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000.0),
}
SIZES = [(1, 1, 1), (1, 1, 1024), (32, 1, 1024), (1, 128, 768), (3, 300, 129), (2, 700, 512), (64, 9, 64), (0, 4, 8), (3, 0, 8)]
GRIDS: Given = {
    "mae": Grid.mae((4, 6)),
    "mae_stretched": Grid.mae((4, 6), base_size=(3, 5), interpolation_scale=2.0),
    "timm": Grid.timm((4, 6)),
    "timm_reversed": Grid.timm((4, 6), reverse_coord=True, interleave_sin_cos=True),
    "detr": Grid.detr((4, 6)),
    "detr_counted": Grid.detr((4, 6), normalize=False, temperature=20.0),
    "cogvideox": Grid.cogvideox((2, 3, 4), spatial_interpolation_scale=1.5),
    "interleaved": Grid((4, 6), sinusoid=Sinusoidal(cos_first=True), start=0.5),
    "truncate": Grid((2, 3, 4), sinusoid=Sinusoidal(), remainder="truncate"),
    "zero": Grid((2, 3, 4), sinusoid=Sinusoidal(layout="concatenated", frequency_shift=1), remainder="zero"),
}


def add_encoding(record: Recorder) -> None:
    """Types, layouts, sizes, encodings and positions."""
    for dtype in DTYPES:
        for view in VIEWS:
            run = lambda r: fastpe.add_encoding(r(3, 17, 33, dtype=dtype, view=view), offset=5, input_scale=1.5)
            record.case(f"add/{dtype}/{view}", run, libraries(view))
        for width in (1, 2, 3, 5, 7, 8, 16, 64, 129):
            record.case(f"add/{dtype}/width_{width}", lambda r: fastpe.add_encoding(r(2, 9, width, dtype=dtype), offset=-3))
        for size in SIZES:
            record.case(f"add/{dtype}/size_{size}", lambda r: fastpe.add_encoding(r(*size, dtype=dtype), offset=3))
        record.case(f"add/{dtype}/finished_rows", lambda r: [fastpe.add_encoding(r(3, 40, 33, dtype=dtype)) for _ in range(6)])
        record.case(
            f"add/{dtype}/decode", lambda r: [fastpe.add_encoding(r(2, 1, 48, dtype=dtype), offset=n) for n in (0, 1, 2, 90)]
        )
    for name, encoding in ENCODINGS.items():
        for dtype, width in (("float32", 64), ("float32", 7), ("bfloat16", 33), ("float64", 12)):
            run = lambda r: fastpe.add_encoding(r(2, 19, width, dtype=dtype), encoding, offset=100)
            record.case(f"add/{dtype}/{name}_{width}", run)
    for mode, make in MODES.items():
        for dtype in ("float32", "float16"):
            run = lambda r: fastpe.add_encoding(r(3, 16, 20, dtype=dtype), input_scale=2.5, **r.given(make(r, 3, 16)))
            record.case(f"add/{dtype}/{mode}", run)
            run = lambda r: fastpe.add_encoding(r(3, 16, 2, 20, dtype=dtype), seq_axis=-3, **r.given(make(r, 3, 16)))
            record.case(f"add/{dtype}/{mode}/BTHD", run)
        out = lambda r: fastpe.add_encoding(r(3, 16, 20), out=r(3, 16, 20, view="sliced"), **r.given(make(r, 3, 16)))
        record.case(f"add/out/{mode}", out)
    add_encoding_elsewhere(record)


def add_encoding_elsewhere(record: Recorder) -> None:
    """Other axes, scaling rules, outputs, special values, tables and grids."""
    add = fastpe.add_encoding
    for axis, shape in ((0, (16, 3, 20)), (1, (3, 16, 2, 20)), (-3, (16, 3, 20)), (-2, (16, 20)), (2, (2, 3, 9, 20))):
        record.case(f"add/seq_axis_{axis}_{len(shape)}", lambda r: add(r(*shape), "sinusoidal", offset=7, seq_axis=axis))
        record.case(
            f"add/seq_axis_{axis}_{len(shape)}/positions",
            lambda r: add(r(*shape), positions=r.ints(-9, 999, *shape[:-1]), seq_axis=axis),
        )
    for name, rule in scalings(12).items():
        for given in ({}, {"seq_len": 400}, {"offset": 30}, {"seq_len": 5, "offset": 1 << 20}):
            run = lambda r: add(r(2, 40, 24), Sinusoidal(scaling=rule), **given)
            record.case(f"add/scaling/{name}/{'_'.join(given) or 'plain'}", run)
    for view in VIEWS:
        for dtype in ("float32", "bfloat16"):
            run = lambda r: add(r(3, 9, 20, dtype=dtype), offset=9, out=r(3, 9, 20, dtype=dtype, view=view))
            record.case(f"add/out/{dtype}/{view}", run, libraries(view))

    def itself(r: Inputs) -> Any:
        x = r(2, 9, 20)
        return add(x, out=x) if r.tensors else add(x, out=x[:])

    def special(r: Inputs) -> Any:
        x = r(2, 9, 20)
        x[0, 0], x[1, 2], x[0, 3] = float("nan"), float("inf"), -float("inf")
        return add(x, input_scale=3.0)

    record.case("add/out_itself", itself)
    record.case("add/nan_and_inf", special)
    for dtype in DTYPES:
        for kind in DTYPES:
            run = lambda r: add(r(2, 9, 20, dtype=dtype), Learned(r(30, 20, dtype=kind)), offset=11, input_scale=2.0)
            record.case(f"add/learned/{kind}_into_{dtype}", run)
    for mode in ("offset_list", "positions_T", "cu_seqlens", "mask_T", "mask_offset_B", "mask_positions", "positions_uint8"):
        for clip in ("error", "clip"):
            size = 70_100 if clip == "error" else 9
            run = lambda r: add(r(3, 16, 20), Learned(r(size, 20), clip), **r.given(MODES[mode](r, 3, 16)))
            record.case(f"add/learned/{clip}/{mode}", run)
    for name, grid in GRIDS.items():
        for dtype in ("float32", "float16", "float64"):
            width = 48 if grid.remainder != "truncate" else 21
            record.case(f"add/grid/{dtype}/{name}", lambda r: add(r(3, 24, width, dtype=dtype), grid, input_scale=2.0))
        record.case(f"add/grid/shaped/{name}", lambda r: add(r(3, *grid.shape, width, view="misaligned"), grid))
        axes = len(grid.shape)
        record.case(
            f"add/grid/positions/{name}",
            lambda r: add(r(3, 24, width), grid, positions=r.of(r.rng.uniform(-9, 99, (axes, 3, 24)))),
        )
        record.case(f"add/grid/mask/{name}", lambda r: add(r(3, 24, width), grid, mask=r.of(np.arange(24) % 5 != 2)))
