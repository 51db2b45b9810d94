"""The cases that every array library runs: all verbs, in every way of saying where rows stand. What NumPy computes is what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from cases import DTYPES

import fastpe
from fastpe import ALiBi, Grid, Kerple, Rotary, Sandwich, Sinusoidal, scaling


class Case(NamedTuple):
    """One call of a verb.

    ``arrays``: those that are computed with, in the verb's order. ``places``: the arguments that say where rows stand, which a library may
    have as arrays of its own. ``keywords``: the others.
    """

    name: str
    verb: str
    arrays: tuple[np.ndarray, ...]
    places: dict[str, Any]
    keywords: dict[str, Any]

    def call(self, arrays: Any, places: Any) -> tuple[Any, ...]:
        """The verb's results, on a library's arrays."""
        made = getattr(fastpe, self.verb)(*arrays, **self.keywords, **places)
        return made if isinstance(made, tuple) else (made,)

    def expected(self) -> tuple[np.ndarray, ...]:
        """What NumPy's arrays become."""
        return self.call([array.copy() for array in self.arrays], self.places)


def cases(dtype: str) -> list[Case]:
    """All cases of an element type."""
    found: list[Case] = []

    def add(name: str, verb: str, *arrays: Any, places: dict[str, Any] | None = None, **keywords: Any) -> None:
        found.append(Case(f"{verb}-{name}", verb, arrays, places or {}, keywords))

    numbers = _Numbers(dtype)
    for place, given in _places().items():
        add(place, "add_encoding", numbers(2, 7, 24), places=given)
        add(place, "apply_rotary", numbers(2, 4, 7, 16), numbers(2, 1, 7, 16), places=given)
        add(place, "embed", numbers.ids(2, 7), numbers(11, 24), encoding=Sinusoidal(), places=given)
        if place != "cu_seqlens":
            add(f"rows-first-{place}", "add_encoding", numbers(7, 2, 24), places=_rows_first(given), seq_axis=0)
    _more_encodings(add, numbers)
    _more_verbs(add, numbers)
    return found


class _Numbers:
    def __init__(self, dtype: str) -> None:
        self.dtype, self._rng = DTYPES[dtype], np.random.default_rng(20)

    def __call__(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape).astype(self.dtype)

    def ids(self, *shape: int) -> np.ndarray:
        return self._rng.integers(0, 11, shape, np.int32)


def _places() -> dict[str, dict[str, Any]]:
    """Ways to say where the 7 rows of 2 sequences stand."""
    kept = np.array([[1, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1, 1]], bool)
    return {
        "default": {},
        "offset": {"offset": 100_003},
        "negative_offset": {"offset": -3},
        "offsets": {"offset": np.array([5, -70_000], np.int32)},
        "positions": {"positions": np.array([6, 5, 0, -1, 2**31 - 1, -(2**31), 3], np.int32)},
        "positions_by_sequence": {"positions": np.arange(14, dtype=np.int32).reshape(2, 7) ** 3},
        "real_positions": {"positions": np.array([0.5, -0.25, 1e-7, -1e-7, 1e6 + 0.5, -3.7, 2.0**30], np.float32)},
        "mask": {"mask": kept},
        "mask_of_rows": {"mask": kept[0], "offset": 40},
        "mask_and_positions": {"mask": kept, "positions": np.arange(7, dtype=np.int32)[::-1].copy()},
        "mask_and_offsets": {"mask": kept, "offset": np.array([9, 1], np.int32)},
        "cu_seqlens": {"cu_seqlens": np.array([0, 3, 3, 7], np.int32)},
    }


def _rows_first(places: dict[str, Any]) -> dict[str, Any]:
    """The same for arrays of (T, B, D): arguments by row and sequence are (T, B)."""
    two = {name: value for name, value in places.items() if np.ndim(value) == 2}
    return {**places, **{name: value.T.copy() for name, value in two.items()}}


Add = Callable[..., None]


def _more_encodings(add: Add, numbers: _Numbers) -> None:
    yarn = Rotary(scaling=scaling.YaRN(4.0, 2048))
    rotations = {
        "interleaved": Rotary(interleaved=True),
        "partial": Rotary(rotary_dim=8, rotary_offset=4),
        "yarn": yarn,
        "xpos": Rotary(xpos_scale_base=512.0, xpos_centre=3),
    }
    for name, encoding in rotations.items():
        add(name, "apply_rotary", numbers(2, 4, 7, 16), numbers(2, 1, 7, 16), encoding=encoding, places={"offset": 50})
    add("inverse", "apply_rotary", numbers(2, 4, 7, 16), encoding=yarn, inverse=True)
    add("channels", "apply_rotary", numbers(2, 7, 64), head_dim=16, places={"offset": np.array([3, 4], np.int32)})
    add("heads-last", "apply_rotary", numbers(2, 7, 4, 16), seq_axis=-3, places={"offset": np.array([3, 4], np.int32)})
    sections = Rotary(sections=(2, 3, 3))
    rows = np.arange(21, dtype=np.int32).reshape(3, 7)
    add("sections", "apply_rotary", numbers(2, 4, 7, 16), encoding=sections, places={"positions": rows})
    added = {
        "concatenated": Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5),
        "shifted": Sinusoidal(frequency_shift=1.0, position_scale=0.25),
    }
    for name, encoding in added.items():
        add(name, "add_encoding", numbers(2, 7, 24), encoding=encoding, input_scale=2.5, places={"offset": 12})
    add("grid", "add_encoding", numbers(2, 6, 24), encoding=Grid((2, 3)))
    add("plane", "add_encoding", numbers(7, 24), places={"offset": 3})
    add("five-axes", "add_encoding", numbers(2, 3, 2, 7, 24), places={"offset": np.array([1, 7], np.int32)})
    add("odd-width", "add_encoding", numbers(2, 7, 5), places={"offset": 3})
    add("empty", "add_encoding", numbers(2, 0, 8))


def _more_verbs(add: Add, numbers: _Numbers) -> None:
    add("ids", "embed", numbers.ids(3), numbers(11, 24), encoding=None, scale=3.0)
    add("padding-alone", "embed", numbers.ids(2, 7), numbers(11, 24), encoding=None, padding_idx=3)
    types = numbers.ids(2, 7) % 2, numbers(2, 24)
    add("types", "embed", numbers.ids(2, 7), numbers(11, 24), encoding=Sinusoidal(), token_types=types, places={"offset": 5})
    add("padding", "embed", numbers.ids(2, 7), numbers(11, 24), encoding=Sinusoidal(), padding_idx=3)
    for name, delta in {"number": 7, "by_sequence": np.array([3, -9], np.int32)}.items():
        add(name, "rerotate", numbers(2, 4, 7, 16), places={"delta": delta})
    rules = {"source": Rotary(), "target": Rotary(base=5e5)}
    add("base", "rerotate", numbers(2, 4, 7, 16), places={"delta": 0, "positions": np.arange(7, dtype=np.int32)}, **rules)
    add("base-far", "rerotate", numbers(2, 4, 7, 16), places={"delta": np.array([3, -9], np.int32), "offset": 1000}, **rules)
    add("base-mask", "rerotate", numbers(2, 4, 7, 16), places={"delta": 5, "mask": _places()["mask"]["mask"]}, **rules)
    for name, bias in {
        "alibi": ALiBi(4),
        "kerple": Kerple((1.0, 0.5, 0.3, 2.0), (0.5, 0.1, 1.0, 0.2)),
        "sandwich": Sandwich(4),
    }.items():
        add(name, "add_bias", numbers(2, 4, 5, 9), bias=bias, causal=name != "sandwich")
        add(f"{name}-far", "add_bias", numbers(4, 5, 9), bias=bias, q_offset=1000, input_scale=0.5)
    places = {"q_positions": np.array([3, 9, 1, 0, 77], np.int32)}
    add("positions", "add_bias", numbers(2, 4, 5, 9), bias=ALiBi(4), places=places)
    add("offsets", "add_bias", numbers(2, 4, 5, 9), bias=ALiBi(4), places={"q_offset": np.array([3, 90], np.int32)})
    if numbers.dtype == np.float32:
        add("numbers", "encode", dim=24, places={"positions": np.array([[0, 5], [-9, 2**31 - 1]], np.int32)})
