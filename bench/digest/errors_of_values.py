"""Bad biases, encodings, recipes and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import FIRE, ALiBi, Fourier, Grid, Kerple, Learned, LogBuckets, Rotary, Sandwich, Sinusoidal, T5Bias
from fastpe.scaling import Custom, Linear, Llama3, Proportional, YaRN

from .inputs import Given, Inputs
from .recording import Run


def bad_biases() -> dict[str, Run]:
    """Of ``add_bias``, and biases that cannot be made."""
    given: dict[str, Callable[[Inputs], Given]] = {
        "bias": lambda r: {"bias": "alibi"},
        "heads": lambda r: {"bias": ALiBi(3)},
        "scores_axes": lambda r: {"scores": r(4, 4)},
        "scores_integers": lambda r: {"scores": r.ints(0, 9, 2, 4, 3, 5)},
        "offset_real": lambda r: {"q_offset": 1.5},
        "offset_beyond": lambda r: {"q_offset": 2**31},
        "offset_shape": lambda r: {"q_offset": r.ints(0, 9, 3)},
        "offset_no_batch": lambda r: {"scores": r(4, 3, 5), "q_offset": r.ints(0, 9, 4)},
        "offset_and_positions": lambda r: {"q_offset": 1, "q_positions": r.ints(0, 9, 3)},
        "q_positions_shape": lambda r: {"q_positions": r.ints(0, 9, 5)},
        "q_positions_real": lambda r: {"q_positions": r.of(np.zeros(3))},
        "k_positions_beyond": lambda r: {"k_positions": r.of(np.full(5, 2**31))},
        "more_queries": lambda r: {"scores": r(2, 4, 6, 5), "k_positions": r.ints(0, 9, 5)},
        "causal": lambda r: {"causal": 1},
        "input_scale": lambda r: {"input_scale": None},
        "out_shape": lambda r: {"out": r(2, 4, 3, 6)},
    }
    made: dict[str, Callable[[Inputs], Any]] = {
        "alibi_heads": lambda r: ALiBi(0),
        "alibi_slopes": lambda r: ALiBi(4, slopes=(1.0, 2.0)),
        "alibi_nan": lambda r: ALiBi(2, slopes=r.of(np.array([1.0, np.nan]))),
        "t5_odd": lambda r: T5Bias(r(5, 4)),
        "t5_distance": lambda r: T5Bias(r(32, 4), max_distance=3),
        "deberta_rows": lambda r: LogBuckets(r(7, 4)),
        "buckets_rule": lambda r: LogBuckets(r(16, 4), "swin"),
        "kerple_kind": lambda r: Kerple([1.0], [1.0], kind="x"),
        "kerple_count": lambda r: Kerple([1.0], [1.0, 2.0]),
        "sandwich_odd": lambda r: Sandwich(4, 5),
        "fire_shapes": lambda r: FIRE(r(8, 1), r(7), r(4, 8), r(4)),
    }
    call = lambda r, make: fastpe.add_bias(**{"scores": r(2, 4, 3, 5), "bias": ALiBi(4)} | make(r))
    return {name: lambda r, make=make: call(r, make) for name, make in given.items()} | made


def bad_values() -> dict[str, Run]:
    """Of ``encode``, and encodings, rules, recipes and positions that cannot be made."""
    encode, p = fastpe.encode, fastpe.positions
    return {
        "dim_zero": lambda r: encode(r.ints(0, 9, 3), 0),
        "dim_real": lambda r: encode(r.ints(0, 9, 3), 4.0),
        "encode_text": lambda r: encode("one", 4, like=r(1)),
        "encode_none": lambda r: encode(None, 4, like=r(1)),
        "encode_bool": lambda r: encode([True], 4, like=r(1)),
        "encode_nan": lambda r: encode(r.of(np.array(np.nan)), 4),
        "encode_beyond": lambda r: encode(2**31, 4, like=r(1)),
        "encode_huge": lambda r: encode(10**30, 4, like=r(1)),
        "encode_dtype": lambda r: encode(r.ints(0, 9, 3), 4, dtype="int32"),
        "encode_out": lambda r: encode(r.ints(0, 9, 3), 4, out=r(3, 5)),
        "encode_learned": lambda r: encode(r.ints(0, 9, 3), 4, Learned(r(9, 4))),
        "encode_fourier_width": lambda r: encode(r(3, 5), 4, Fourier.nerf(3, 4)),
        "encode_fourier_axes": lambda r: encode(r(2, 5), 24, Fourier.nerf(3, 4)),
        "encode_fourier_beyond": lambda r: encode(r(3, 5) * 1e5, 24, Fourier.nerf(3, 4)),
        "encode_seq_len": lambda r: encode(r.ints(0, 9, 3), 4, seq_len=-1),
        "sinusoidal_base": lambda r: Sinusoidal(base=-1.0),
        "sinusoidal_layout": lambda r: Sinusoidal(layout="half"),
        "sinusoidal_scaling": lambda r: Sinusoidal(scaling=4.0),
        "sinusoidal_fast": lambda r: encode(r.ints(0, 9, 3), 4, Sinusoidal(position_scale=1e12)),
        "rotary_odd": lambda r: Rotary(rotary_dim=3),
        "rotary_own": lambda r: Rotary(section_frequencies="own"),
        "rotary_xpos": lambda r: Rotary(xpos_scale_base=1.0),
        "rotary_config": lambda r: Rotary.from_config({"rope_theta": 1e4, "rope_scaling": {"rope_type": "warp"}}),
        "rotary_config_key": lambda r: Rotary.from_config(
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear"}, "head_dim": 8}
        ),
        "tabulated_shapes": lambda r: Rotary.tabulated(r(4, 3), r(4, 4)),
        "learned_shape": lambda r: Learned(r(4)),
        "learned_rule": lambda r: Learned(r(4, 8), "wrap"),
        "grid_axes": lambda r: Grid((2, 2), axes=(0, 0)),
        "grid_layout": lambda r: Grid((2, 2), sinusoid=Sinusoidal(), layout="functions"),
        "fourier_both": lambda r: Fourier(2),
        "linear": lambda r: Linear(0.5),
        "yarn": lambda r: YaRN(4.0, 64, beta_fast=1.0),
        "llama3": lambda r: Llama3(8.0, 4.0, 1.0),
        "proportional": lambda r: Proportional(1.5),
        "custom": lambda r: Custom((1.0, -1.0)),
        "recipe_unknown": lambda r: fastpe.recipe("wisper"),
        "recipe_field": lambda r: fastpe.recipe("whisper", colour=3),
        "recipe_missing": lambda r: fastpe.recipe("mae"),
        "positions_packed": lambda r: p.packed(r.of(np.array([1, 3]))),
        "positions_mask": lambda r: p.from_mask(r.ints(0, 2, 3)),
        "positions_randomized": lambda r: p.randomized(9, 5),
        "positions_mrope": lambda r: p.mrope(r.of(np.array([0, 1, 1])), [(1, 4, 4)]),
        "warmup": lambda r: fastpe.warmup(["int8"]),
        "threads": lambda r: fastpe.set_num_threads(0),
        "attribute": lambda r: fastpe.nothing,
    }
