"""``resample``: tables of positions stretched along a line or a grid, against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from drawing import Draw
from judging import REFUSALS, assert_within, count

import fastpe

VERB = "resample"
MODES = {  # of torch.nn.functional.interpolate
    None: ("bicubic", False),
    "bicubic": ("bicubic", False),
    "bilinear": ("bilinear", False),
    "antialias": ("bilinear", True),
    "bicubic_antialias": ("bicubic", True),
}


def check(draw: Draw) -> None:
    dtype, prefix, width = draw.dtype(), draw.pick(0, 0, 1, 4), draw.pick(1, 2, 3, 8, 17)
    if draw.flag():
        size: Any = draw.integer(1, 40 if not draw.once_in(20) else 3000)
        new: Any = draw.integer(1, 80 if not draw.once_in(20) else 5000)
        options: dict[str, Any] = {"method": draw.pick(None, "linear")}
    else:
        options = {"method": draw.pick(*MODES)}
        least = 2 if "antialias" in (options["method"] or "") else 1  # PyTorch makes zeros of one column with antialiasing
        size, new = ((draw.integer(least, most), draw.integer(least, most)) for most in (9, 15))
        options["grid"] = size
    rows = prefix + (size if isinstance(size, int) else size[0] * size[1])
    shape = (rows, width) if draw.flag() else (1, rows, width)
    table = draw.view(shape, cases.DTYPES[dtype])
    before = draw.fill(table.array, special=False)
    table.snapshot()
    got = fastpe.resample(table.array, new, prefix_tokens=prefix, **options)
    table.assert_unchanged()
    cases.assert_same_bits(got, fastpe.resample(before, new, prefix_tokens=prefix, **options))
    cases.assert_same_bits(got[..., :prefix, :], before[..., :prefix, :])
    wide = before.astype(np.float64).reshape(rows, width)
    expected = np.concatenate([wide[:prefix], _interpolated(wide[prefix:], size, new, options["method"], dtype)])
    longest = size if isinstance(size, int) else max(size)
    # Two roundings of a place, of 2^-53 of it each, times the difference of two rows
    error = (1e-13 + 2.0**-51 * longest if dtype == "float64" else 4e-6) * np.abs(wide).max()
    assert_within(got, expected.reshape(*shape[:-2], *expected.shape), error, dtype)
    count(VERB, got)
    _refuse(draw, table, rows)


def _interpolated(rows: np.ndarray, size: Any, new: Any, method: str | None, dtype: str) -> np.ndarray:
    torch = pytest.importorskip("torch")
    axes = (size,) if isinstance(size, int) else size
    image = torch.from_numpy(rows.reshape(1, *axes, -1)).movedim(-1, 1).clone(memory_format=torch.contiguous_format)
    image = image if dtype == "float64" else image.float()  # which says how places are rounded
    mode, antialias = ("linear", False) if isinstance(size, int) else MODES[method]
    made = torch.nn.functional.interpolate(image, size=new, mode=mode, antialias=antialias, align_corners=False)
    return made.movedim(1, -1).double().numpy().reshape(-1, rows.shape[1])


def _refuse(draw: Draw, table: Any, rows: int) -> None:
    if not draw.once_in(4):
        return
    wrong: dict[str, Any] = {"size": (0, {}), "method": (4, {"method": "cubic"}), "prefix": (4, {"prefix_tokens": rows + 1})}
    new, options = wrong[draw.pick(*wrong)]
    with pytest.raises((TypeError, ValueError), match="resample"):
        fastpe.resample(table.array, new, **options)
    table.assert_unchanged()
    REFUSALS[VERB] += 1
