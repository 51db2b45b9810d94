"""Calls of every verb, element type and way to give positions, for no library in particular.

A test of a library makes the arrays of a case its own, cuts them as it likes along axes that may be cut, calls the verb, and compares
bits with what NumPy made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import numpy as np

import fastpe
from fastpe import ALiBi, Fourier, Grid, Kerple, Learned, Rotary, Sinusoidal
from fastpe.scaling import DynamicNTK, YaRN

B, H, KEYS, T, D, V = 4, 4, 2, 12, 8, 11
SIZES = {"B": B, "H": H, "h": KEYS, "T": T, "D": D, "V": V, "Q": 7, "K": 12, "2": 2, "A": 3}


class VerbCase(NamedTuple):
    """A call: ``arrays`` are its first arguments by axes, one letter each ("" for None, a capital D for channels)."""

    name: str
    verb: str
    arrays: tuple[tuple[str, np.ndarray | None], ...]
    fixed: tuple[Any, ...]  # positional arguments that follow
    options: dict[str, Any]
    in_place: bool = True

    def values(self) -> list[np.ndarray | None]:
        """The arrays, each a copy."""
        return [None if value is None else value.copy() for _, value in self.arrays]

    def call(self, arrays: Any, convert: Callable[[Any], Any] = lambda value: value) -> tuple[Any, ...]:
        """The results of the verb on arrays of a library; ``convert`` takes the arrays among the other arguments."""
        options = {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in self.options.items()}
        made = getattr(fastpe, self.verb)(*arrays, *self.fixed, **options)
        return made if isinstance(made, tuple) else (made,)

    def expected(self) -> tuple[np.ndarray, ...]:
        """What NumPy makes."""
        return self.call(self.values())


def _random(axes: str, dtype: str = "float32", seed: int = 0) -> tuple[str, np.ndarray]:
    return axes, cases.random(tuple(SIZES[axis] for axis in axes), dtype, seed)


_DRAWN = np.random.default_rng(5)
KEPT = _DRAWN.random((B, T)) < 0.7
IDS = _DRAWN.integers(0, V, (B, T))
PLACES: dict[str, dict[str, Any]] = {
    "first": {},
    "offset": {"offset": 7},
    "offsets": {"offset": np.array([3, -1, 1 << 30, 0])},
    "positions": {"positions": _DRAWN.permutation(T)},
    "positions_of_sequences": {"positions": _DRAWN.normal(size=(B, T)) * 100},
    "boundaries": {"offset": 2, "cu_seqlens": np.array([0, 5, 5, T])},
    "mask": {"offset": 1, "mask": KEPT},
    "mask_of_rows": {"offset": np.arange(B), "mask": KEPT[0]},
    "mask_and_boundaries": {"mask": KEPT, "cu_seqlens": np.array([0, 4, T])},
    "positions_and_mask": {"positions": np.arange(T) * 3, "mask": KEPT},
}


def _adding() -> list[VerbCase]:
    found = []
    for dtype in cases.DTYPES:
        for name, where in PLACES.items():
            found.append(VerbCase(f"add/{dtype}/{name}", "add_encoding", (_random("BTD", dtype),), (), where))
    encodings = {
        "by_length": Sinusoidal(scaling=DynamicNTK(4.0, 6)),
        "learned": Learned(cases.random((T + 7, D), "float32", 3)),
        "grid": Grid((3, 4)),
    }
    for name, encoding in encodings.items():
        for place in ("first", "mask") if name == "grid" else ("offset", "positions"):
            options = {**PLACES[place], "input_scale": 2.0}
            if name == "grid":
                options.pop("offset", None)
            found.append(VerbCase(f"add/{name}/{place}", "add_encoding", (_random("BTD"),), (encoding,), options))
    for axes, axis in (("TBD", 0), ("BTHD", 1), ("BHTD", -2), ("TD", -2)):
        where = {"seq_axis": axis} if axes == "TD" else {"seq_axis": axis, "offset": np.arange(B) * 9}
        found.append(VerbCase(f"add/axes/{axes}", "add_encoding", (_random(axes),), (), where))
    found.append(VerbCase("add/axes/mask_TB", "add_encoding", (_random("TBD"),), (), {"seq_axis": 0, "mask": KEPT.T.copy()}))
    found.append(
        VerbCase("add/every_row", "add_encoding", (_random("BHTD"),), (), {"positions": _DRAWN.integers(-50, 50, (B, H, T))})
    )
    return found


def _rotating() -> list[VerbCase]:
    found = []
    for dtype in cases.DTYPES:
        for name, where in PLACES.items():
            both = (_random("BHTD", dtype), _random("BhTD", dtype, 1))
            found.append(VerbCase(f"rotate/{dtype}/{name}", "apply_rotary", both, (), where))
    alone: Any = (("", None), _random("BhTD"))
    found.append(VerbCase("rotate/keys_alone_by_xpos", "apply_rotary", alone, (Rotary(xpos_scale_base=512.0),), {"offset": 3}))
    by_length = Rotary(scaling=DynamicNTK(4.0, 6))
    found.append(VerbCase("rotate/by_length", "apply_rotary", (_random("BHTD"),), (None, by_length), {"offset": 9}))
    yarn = Rotary(scaling=YaRN(4.0, 64))
    found.append(VerbCase("rotate/inverse", "apply_rotary", (_random("BHTD"),), (None, yarn), {"inverse": True}))
    found.append(VerbCase("rotate/by_head", "apply_rotary", (_random("BTD"),), (), {"head_dim": 4, "offset": 5}))
    found.append(VerbCase("rotate/rows_before_heads", "apply_rotary", (_random("BTHD"),), (), {"seq_axis": -3, "mask": KEPT}))
    several = {"positions": _DRAWN.integers(0, 50, (3, B, T))}
    found.append(VerbCase("rotate/sections", "apply_rotary", (_random("BHTD"),), (None, Rotary(sections=(2, 1, 1))), several))
    several = {"positions": _DRAWN.integers(0, 50, (3, T))}
    found.append(
        VerbCase("rotate/sections_of_rows", "apply_rotary", (_random("AHTD"),), (None, Rotary(sections=(2, 1, 1))), several)
    )
    for name, delta in (("number", -5), ("by_sequence", np.arange(B)), ("by_row", _DRAWN.integers(0, 9, (B, T)))):
        found.append(VerbCase(f"rerotate/{name}", "rerotate", (_random("BhTD"),), (delta,), {"mask": KEPT}))
    change = {"source": Rotary(), "target": Rotary(base=500.0), **PLACES["offsets"]}
    found.append(VerbCase("rerotate/base", "rerotate", (_random("BhTD"),), (), change))
    return found


def _looking_up() -> list[VerbCase]:
    ids: Any = ("BT", IDS)
    found = []
    for dtype in cases.DTYPES:
        table = _random("VD", dtype)
        for name in ("offset", "positions_of_sequences", "mask"):
            found.append(VerbCase(f"embed/{dtype}/{name}", "embed", (ids, table), ("sinusoidal",), PLACES[name], False))
    table = _random("VD")
    found.append(VerbCase("embed/padding", "embed", (ids, table), ("sinusoidal",), {"padding_idx": 3, "offset": 4}, False))
    found.append(VerbCase("embed/alone", "embed", (ids, table), (), {"mask": KEPT, "scale": 2.0}, False))
    found.append(VerbCase("embed/few_ids", "embed", (("T", IDS[0]), table), ("sinusoidal",), {"dtype": "float64"}, False))
    positions: Any = ("BT", PLACES["positions_of_sequences"]["positions"])
    for dtype in cases.DTYPES:
        found.append(VerbCase(f"encode/{dtype}", "encode", (positions,), (D,), {"dtype": dtype}, False))
    octaves: Any = ("2T", _DRAWN.normal(size=(2, T)))
    found.append(VerbCase("encode/fourier", "encode", (octaves,), (D, Fourier.nerf(2, 2)), {}, False))
    return found


def _biased() -> list[VerbCase]:
    found = []
    for dtype in cases.DTYPES:
        for name, bias in (("alibi", ALiBi(H)), ("kerple", Kerple([1.0] * H, [0.5] * H))):
            found.append(VerbCase(f"bias/{dtype}/{name}", "add_bias", (_random("BHQK", dtype),), (bias,), {"causal": True}))
    q_positions, k_positions = _DRAWN.integers(0, 20, (B, 7)), _DRAWN.integers(0, 20, 12)
    for name, where in (
        ("offset", {"q_offset": 3}),
        ("offsets", {"q_offset": np.arange(B) * 2}),
        ("positions", {"q_positions": q_positions, "k_positions": k_positions}),
    ):
        found.append(VerbCase(f"bias/{name}", "add_bias", (_random("BHQK"),), (ALiBi(H),), where))
    return found


CASES = {case.name: case for case in (*_adding(), *_rotating(), *_looking_up(), *_biased())}
