"""Bad arguments of ``add_encoding``, of rotations and of ``embed``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import Fourier, Grid, Learned, Rotary, Sinusoidal
from fastpe.scaling import DynamicNTK, LongRoPE

from .inputs import Given, Inputs
from .recording import Run

X = (2, 3, 8)  # the shape of most refused arrays


def bad_additions() -> dict[str, Run]:
    """Of ``add_encoding``."""
    add = fastpe.add_encoding
    kinds = {"int64": np.int64, "bool": bool, "complex64": np.complex64}
    x: dict[str, Run] = {f"x_{name}": lambda r, kind=kind: add(r.of(np.zeros(X, kind))) for name, kind in kinds.items()}
    x |= {f"x_shape_{shape}": lambda r, shape=shape: add(r(*shape)) for shape in ((), (4,), (4, 0))}
    given: dict[str, Callable[[Inputs], Given]] = {
        "encoding_name": lambda r: {"encoding": "rope"},
        "encoding_class": lambda r: {"encoding": dict},
        "encoding_number": lambda r: {"encoding": 3},
        "encoding_rotary": lambda r: {"encoding": Rotary()},
        "encoding_fourier": lambda r: {"encoding": Fourier.nerf(1, 4)},
        "grid_rows": lambda r: {"encoding": Grid((2, 2))},
        "grid_width": lambda r: {"encoding": Grid((1, 3, 1))},
        "grid_offset": lambda r: {"encoding": Grid((1, 3)), "offset": 4},
        "grid_positions": lambda r: {"encoding": Grid((1, 3)), "positions": r.ints(0, 9, 3, 3)},
        "grid_no_shape": lambda r: {"encoding": Grid.detr()},
        "learned_width": lambda r: {"encoding": Learned(r(9, 7))},
        "learned_range": lambda r: {"encoding": Learned(r(5, 8)), "offset": 3},
        "learned_negative": lambda r: {"encoding": Learned(r(5, 8)), "positions": r.of(np.array([0, -1, 2]))},
        "learned_real": lambda r: {"encoding": Learned(r(5, 8)), "positions": r.of(np.arange(3.0))},
        "offset_real": lambda r: {"offset": 1.5},
        "offset_bool": lambda r: {"offset": True},
        "offset_text": lambda r: {"offset": "3"},
        "offset_beyond": lambda r: {"offset": 2**31 - 2},
        "offset_below": lambda r: {"offset": -(2**31) - 1},
        "offset_shape": lambda r: {"offset": r.ints(0, 9, 3)},
        "offset_array_real": lambda r: {"offset": r.of(np.zeros(2))},
        "offset_array_beyond": lambda r: {"offset": r.of(np.array([0, 2**31]))},
        "positions_shape": lambda r: {"positions": r.ints(0, 9, 4)},
        "positions_nan": lambda r: {"positions": r.of(np.array([0.0, np.nan, 1]))},
        "positions_beyond": lambda r: {"positions": r.of(np.array([0, 2**31, 1]))},
        "positions_bool": lambda r: {"positions": r.of(np.ones(3, bool))},
        "positions_text": lambda r: {"positions": "012"},
        "positions_bfloat16": lambda r: {"positions": r(3, dtype="bfloat16")},
        "positions_ragged": lambda r: {"positions": [[1], [2, 3]]},
        "positions_and_offset": lambda r: {"positions": r.ints(0, 9, 3), "offset": 1},
        "positions_and_cu_seqlens": lambda r: {"positions": r.ints(0, 9, 3), "cu_seqlens": r.of(np.array([0, 3]))},
        "cu_seqlens_start": lambda r: {"cu_seqlens": r.of(np.array([1, 3]))},
        "cu_seqlens_end": lambda r: {"cu_seqlens": [0, 2]},
        "cu_seqlens_falls": lambda r: {"cu_seqlens": r.of(np.array([0, 2, 1, 3]))},
        "cu_seqlens_shape": lambda r: {"cu_seqlens": r.of(np.zeros((1, 2), int))},
        "cu_seqlens_real": lambda r: {"cu_seqlens": r.of(np.array([0.0, 3.0]))},
        "cu_seqlens_offset": lambda r: {"cu_seqlens": r.of(np.array([0, 3])), "offset": r.ints(0, 9, 2)},
        "mask_integers": lambda r: {"mask": r.of(np.ones(3, int))},
        "mask_shape": lambda r: {"mask": r.of(np.ones((3, 2), bool))},
        "seq_axis_last": lambda r: {"seq_axis": -1},
        "seq_axis_beyond": lambda r: {"seq_axis": 3},
        "seq_axis_real": lambda r: {"seq_axis": -2.0},
        "input_scale_text": lambda r: {"input_scale": "2"},
        "input_scale_nan": lambda r: {"input_scale": float("nan")},
        "input_scale_large": lambda r: {"input_scale": 1e39},
        "amplitude_large": lambda r: {"encoding": Sinusoidal(amplitude=1e39)},
        "seq_len_zero": lambda r: {"seq_len": 0},
        "seq_len_real": lambda r: {"seq_len": 2.5},
        "validate_number": lambda r: {"validate": 1},
        "out_shape": lambda r: {"out": r(2, 3, 9)},
        "out_dtype": lambda r: {"out": r(*X, dtype="float64")},
        "out_list": lambda r: {"out": [1.0]},
        "out_integers": lambda r: {"out": r.ints(0, 9, *X)},
    }
    found = {name: lambda r, make=make: add(r(*X), **make(r)) for name, make in given.items()}

    def overlapping(r: Inputs) -> Any:
        whole = r(3, 3, 8)
        return add(whole[:2], out=whole[1:])

    def after_a_known_call(r: Inputs) -> Any:
        add(r(*X), offset=3)
        return add(r(*X), offset=2**31 - 1)

    return x | found | {"out_overlaps": overlapping, "after_a_known_call": after_a_known_call}


def bad_rotations() -> dict[str, Run]:
    """Of ``apply_rotary``, ``rerotate`` and ``convert_layout``."""
    rotary, move, Q = fastpe.apply_rotary, fastpe.rerotate, (2, 4, 3, 8)
    given: dict[str, Callable[[Inputs], Given]] = {
        "encoding_sinusoidal": lambda r: {"encoding": Sinusoidal()},
        "k_rows": lambda r: {"k": r(2, 4, 5, 8)},
        "k_batch": lambda r: {"k": r(3, 4, 3, 8), "offset": r.ints(0, 9, 2)},
        "k_list": lambda r: {"k": [1.0]},
        "k_integers": lambda r: {"k": r.ints(0, 9, *Q)},
        "partial_too_wide": lambda r: {"encoding": Rotary(rotary_dim=10)},
        "odd": lambda r: {"encoding": Rotary(rotary_offset=3)},
        "sections_sum": lambda r: {"encoding": Rotary(sections=(2, 1))},
        "sections_positions": lambda r: {"encoding": Rotary(sections=(2, 2)), "positions": r.ints(0, 9, 3)},
        "sections_offset": lambda r: {"encoding": Rotary(sections=(2, 2)), "positions": r.ints(0, 9, 2, 3), "offset": 1},
        "longrope_numbers": lambda r: {"encoding": Rotary(scaling=LongRoPE((1.0,), (2.0,), 16))},
        "table_range": lambda r: {"encoding": Rotary.tabulated(r(4, 4), r(4, 4)), "offset": 2},
        "table_wide": lambda r: {"encoding": Rotary.tabulated(r(9, 8), r(9, 8))},
        "table_real": lambda r: {"encoding": Rotary.tabulated(r(9, 4), r(9, 4)), "positions": r.of(np.arange(3.0))},
        "table_offset": lambda r: {"encoding": Rotary.tabulated(r(2, 3, 4), r(2, 3, 4)), "offset": 1},
        "table_sequences": lambda r: {"encoding": Rotary.tabulated(r(2, 5, 4), r(2, 5, 4))},
        "factor_large": lambda r: {"encoding": Rotary(attention_factor=1e39)},
        "inverse_number": lambda r: {"inverse": 1},
        "out_one_of_two": lambda r: {"k": r(*Q), "out": r(*Q)},
        "out_shape": lambda r: {"out": r(*X)},
        "positions_shape": lambda r: {"positions": r.ints(0, 9, *Q[:-1])},
        "seq_axis": lambda r: {"seq_axis": 4},
    }
    found: dict[str, Run] = {name: lambda r, make=make: rotary(r(*Q), **make(r)) for name, make in given.items()}

    def itself(r: Inputs) -> Any:
        q = r(*Q)
        return rotary(q, q[:])

    moved: dict[str, Callable[[Inputs], Given]] = {
        "delta_text": lambda r: {"delta": "3"},
        "delta_shape": lambda r: {"delta": r.ints(0, 9, 3)},
        "delta_bool": lambda r: {"delta": r.of(np.ones(2, bool))},
        "delta_beyond": lambda r: {"delta": 2**31},
        "source_alone": lambda r: {"source": Rotary()},
        "both": lambda r: {"encoding": Rotary(), "source": Rotary(), "target": Rotary()},
        "unlike": lambda r: {"source": Rotary(), "target": Rotary(interleaved=True)},
        "length_missing": lambda r: {"encoding": Rotary(scaling=DynamicNTK(2.0, 8))},
        "lengths": lambda r: {"seq_len": (1, 2, 3)},
        "table": lambda r: {"encoding": Rotary.tabulated(r(9, 4), r(9, 4))},
    }
    found |= {f"rerotate_{name}": lambda r, make=make: move(r(*Q), **make(r)) for name, make in moved.items()}
    found |= {"nothing": lambda r: rotary(None), "itself": itself, "rerotate_none": lambda r: move(None, 3)}
    found |= {
        f"layout_{name}": lambda r, a=a: fastpe.convert_layout(r(8), *a)
        for name, a in {"name": ("x", "half", 8), "width": ("half", "half", 3)}.items()
    }
    return found


def bad_embeddings() -> dict[str, Run]:
    """Of ``embed`` and ``resample``."""
    given: dict[str, Callable[[Inputs], Given]] = {
        "ids_range": lambda r: {"ids": r.of(np.array([[1, 7]]))},
        "ids_negative": lambda r: {"ids": r.of(np.array([0, -1]))},
        "ids_real": lambda r: {"ids": r.of(np.zeros(2))},
        "ids_text": lambda r: {"ids": "word"},
        "table_shape": lambda r: {"table": r(5)},
        "table_columns": lambda r: {"table": r(5, 8, view="strided_columns")},
        "table_int16": lambda r: {"table": r.of(np.zeros((5, 8), np.int16))},
        "encoding": lambda r: {"encoding": Grid((1, 2))},
        "scale_text": lambda r: {"scale": "2"},
        "offset_alone": lambda r: {"offset": 3},
        "positions_alone": lambda r: {"positions": r.ints(0, 9, 2)},
        "dtype": lambda r: {"dtype": "int8"},
        "row_scale_of_floats": lambda r: {"row_scale": r(5)},
        "row_scale_missing": lambda r: {"table": r.ints(0, 9, 5, 8, dtype="int8")},
        "row_scale_shape": lambda r: {"table": r.ints(0, 9, 5, 8, dtype="int8"), "row_scale": r(4)},
        "types_no_pair": lambda r: {"token_types": 3},
        "types_width": lambda r: {"token_types": (r.ints(0, 2, 2), r(2, 7))},
        "types_shape": lambda r: {"token_types": (r.ints(0, 2, 3), r(2, 8))},
        "types_range": lambda r: {"token_types": (r.of(np.array([0, 2])), r(2, 8))},
        "padding_real": lambda r: {"padding_idx": 1.5},
        "padding_rank": lambda r: {"ids": r.ints(0, 5, 2, 2, 2), "padding_idx": 1},
        "mask_shape": lambda r: {"mask": r.of(np.ones(3, bool))},
        "mask_padding_shape": lambda r: {"mask": r.of(np.ones(3, bool)), "padding_idx": 1},
        "learned_range": lambda r: {"encoding": Learned(r(1, 8))},
        "out_shape": lambda r: {"out": r(3, 8)},
        "out_dtype": lambda r: {"out": r(2, 8), "dtype": "float64"},
    }
    found: dict[str, Run] = {
        name: lambda r, make=make: fastpe.embed(**{"ids": r.of(np.array([1, 2])), "table": r(5, 8)} | make(r))
        for name, make in given.items()
    }
    sizes: dict[str, Given] = {
        "size": {"new_size": 0},
        "method": {"new_size": 5, "method": "bicubic"},
        "sizes": {"new_size": (2, 2, 2)},
        "prefix": {"new_size": 5, "prefix_tokens": 9},
        "square": {"new_size": (2, 2)},
        "grid": {"new_size": (2, 2), "grid": (2, 3)},
        "offset": {"new_size": 5, "interpolate_offset": -1.0},
    }
    return found | {
        f"resample_{name}": lambda r, given=given: fastpe.resample(r(5, 8), **given) for name, given in sizes.items()
    }
