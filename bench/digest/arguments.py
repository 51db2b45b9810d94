"""Arguments that many cases share: positions of every kind, and rules that scale frequencies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastpe.scaling import NTK, Custom, DynamicNTK, Linear, Llama3, LongRoPE, NTKByParts, Proportional, YaRN

from .inputs import Given, Inputs

MODES: dict[str, Callable[[Inputs, int, int], Given]] = {
    "offset": lambda r, B, T: {"offset": 131_071},
    "offset_negative": lambda r, B, T: {"offset": -(2**31)},
    "offset_largest": lambda r, B, T: {"offset": 2**31 - T},
    "offset_B": lambda r, B, T: {"offset": np.arange(B) * 1000 - 7},
    "offset_list": lambda r, B, T: {"offset": [5 + b for b in range(B)]},
    "positions_T": lambda r, B, T: {"positions": np.arange(T, dtype=np.int32)[::-1].copy() * 3},
    "positions_BT": lambda r, B, T: {"positions": r.rng.integers(-(2**31), 2**31, (B, T))},
    "positions_uint8": lambda r, B, T: {"positions": r.rng.integers(0, 256, (B, T)).astype(np.uint8)},
    "positions_real_BT": lambda r, B, T: {"positions": r.rng.uniform(-5000, 5000, (B, T))},
    "positions_float32_T": lambda r, B, T: {"positions": r.rng.uniform(0, 999, T).astype(np.float32)},
    "positions_float16_T": lambda r, B, T: {"positions": r.rng.uniform(0, 99, T).astype(np.float16)},
    "cu_seqlens": lambda r, B, T: {"cu_seqlens": np.array([0, T // 3, T // 3, T - T // 4, T])},
    "cu_seqlens_offset_n": lambda r, B, T: {"cu_seqlens": np.array([0, T // 2, T], np.int32), "offset": np.array([100, -9])},
    "mask_T": lambda r, B, T: {"mask": np.arange(T) % 3 != 1},
    "mask_BT_offset": lambda r, B, T: {"mask": r.rng.random((B, T)) < 0.6, "offset": 4},
    "mask_nothing_kept": lambda r, B, T: {"mask": np.zeros((B, T), bool)},
    "mask_offset_B": lambda r, B, T: {"mask": r.rng.random((B, T)) < 0.5, "offset": np.arange(B) * 50},
    "mask_cu_seqlens": lambda r, B, T: {"mask": np.arange(T) % 4 != 0, "cu_seqlens": np.array([0, T // 2, T])},
    "mask_positions": lambda r, B, T: {"mask": np.arange(T) % 2 == 0, "positions": np.arange(T) + 70_000},
    "mask_positions_BT": lambda r, B, T: {"mask": r.rng.random((B, T)) < 0.5, "positions": r.rng.integers(0, 99, (B, T))},
}


def scalings(number: int) -> Given:
    """One of each rule, for encodings with this number of frequencies."""
    short, long = (tuple(start + step * i for i in range(number)) for start, step in ((1.0, 0.125), (2.0, 0.5)))
    return {
        "linear": Linear(4.0),
        "ntk": NTK(8.0),
        "dynamic": DynamicNTK(4.0, 16),
        "yarn": YaRN(4.0, 64),
        "yarn_turns": YaRN(4.0, 64, ramp="turns"),
        "yarn_mscale": YaRN(40.0, 64, mscale=1.0, mscale_all_dim=0.7, truncate=False),
        "by_parts": NTKByParts(4.0, 64),
        "longrope": LongRoPE(short, long, 16, 4.0),
        "longrope_factor": LongRoPE(short, short, 16, attention_factor=1.25),
        "llama3": Llama3(8.0, 1.0, 4.0, 64),
        "proportional": Proportional(0.5, 2.0),
        "custom": Custom(short, 1.5),
    }
