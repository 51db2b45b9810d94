"""What generators of positions refuse, and why."""

from __future__ import annotations

import numpy as np
import pytest

from fastpe import positions

BAD = {
    "mask": (lambda: positions.from_mask([1, 0, 1]), TypeError, r"Did you mean mask = \(mask != 0\)"),
    "mask_axes": (lambda: positions.from_mask(np.ones((2, 2, 2), bool)), ValueError, "1 or 2 axes"),
    "ragged": (lambda: positions.from_mask([[True], [True, False]]), ValueError, "regular array"),
    "boundaries": (lambda: positions.packed([1, 3]), ValueError, "start at 0"),
    "falling": (lambda: positions.packed([0, 3, 2]), ValueError, "never decrease"),
    "total": (lambda: positions.packed([0, 3, 5], total=6), ValueError, "total must be the last of cu_seqlens, 5, got 6"),
    "total_short": (lambda: positions.packed([0, 3, 5], total=3), ValueError, "total must be the last of cu_seqlens, 5, got 3"),
    "falling_unsigned": (lambda: positions.packed(np.array([0, 3, 2], np.uint64)), ValueError, "never decrease"),
    "ids": (lambda: positions.fairseq([1.5]), TypeError, "ids must be integers"),
    "types": (lambda: positions.mrope([0, 4]), ValueError, r"0 \(text\), 1 \(image\), 2 \(video\) or 3"),
    "backwards": (lambda: positions.mrope([2], None, [(1, 2, 2)], time_intervals=-1), ValueError, r"in \[0, 2\^31\), got -1"),
    "far": (lambda: positions.mrope([2], None, [(1, 2, 2)], time_intervals=2.0**31), ValueError, "time_intervals must lie in"),
    "no_marks": (lambda: positions.mrope([0, 2, 3], None, [(1, 2, 2)]), ValueError, "after the two tokens that begin"),
    "few_marks": (
        lambda: positions.mrope([0, 0, 2, 3, 0, 0, 0, 2, 3], None, [(1, 2, 2)] * 2),
        ValueError,
        "after the two tokens",
    ),
    "sound_first": (lambda: positions.mrope([0, 0, 3, 2], None, [(1, 2, 2)]), ValueError, "must begin with a patch"),
    "marks": (lambda: positions.mrope([0], shared_marks=1), TypeError, "shared_marks must be True or False"),
    "no_grid": (lambda: positions.mrope([0, 1, 1]), ValueError, "image_grids must have one entry .* too few"),
    "grids_left": (lambda: positions.mrope([0, 1], [(1, 2, 2), (1, 2, 2)]), ValueError, "1 too many"),
    "run": (lambda: positions.mrope([1, 1, 1], [(1, 4, 4)]), ValueError, "as long as its entry of image_grids says, 4, got 3"),
    "merge": (lambda: positions.mrope([1], [(1, 3, 3)]), ValueError, "multiples of 1 frames and 2 rows"),
    "intervals": (lambda: positions.mrope([2], None, [(1, 2, 2)], time_intervals=[1.0, 2.0]), ValueError, "or 1, got 2"),
    "mrope_mask": (lambda: positions.mrope([0, 0], mask=[True]), ValueError, "the shape of token_types"),
    "grid": (lambda: positions.grid(5), TypeError, "sequence of integers"),
    "grid_start": (lambda: positions.grid((2, 2), start=(1, 2, 3)), ValueError, "or 2, got 3"),
    "resized": (lambda: positions.resized((2, 2), (4,)), ValueError, "2 axes of shape"),
    "qwen": (lambda: positions.qwen2_vl([(1, 3, 4)]), ValueError, "multiples of merge"),
    "detr_empty": (lambda: positions.detr(np.zeros((1, 2, 2), bool)), ValueError, "at least one pixel of every image"),
    "detr_kind": (lambda: positions.detr(np.ones((1, 2, 2))), TypeError, "Did you mean"),
    "randomized": (lambda: positions.randomized(5, 4), ValueError, "at least length = 5"),
    "length": (lambda: positions.shifted(-1, 4), ValueError, "0 or more"),
    "chunks": (lambda: positions.skipped(3, 9, chunks=4), ValueError, "at most length"),
    "skipped": (lambda: positions.skipped(9, 3), ValueError, "at least length = 9"),
    "random_float": (lambda: positions.random_float(9, 0), ValueError, "greater than 0"),
    "window": (lambda: positions.rerope(9, window=0), ValueError, "at least 1"),
    "queries": (lambda: positions.rerope([-1], window=2), ValueError, "0 or more"),
    "chunk": (lambda: positions.dual_chunk(9, chunk=4, local=4), ValueError, "less than chunk"),
    "string": (lambda: positions.string(9, shift=4, window=5), ValueError, "at most shift"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, text = BAD[name]
    with pytest.raises(error, match=text):
        make()
