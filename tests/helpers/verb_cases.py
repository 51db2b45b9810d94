"""Calls of every verb, element type and way to say where rows stand, for no library in particular. What NumPy makes is what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cases
import numpy as np

import fastpe
from fastpe import ALiBi, Fourier, Grid, Kerple, Learned, Rotary, Sandwich, Sinusoidal, T5Bias
from fastpe.scaling import DynamicNTK, YaRN

# Axes by letter: B sequences (A three of them), H heads of queries and h of keys, T rows (G of a grid, Q and K of scores), D channels
# (F and f of all heads, W of an odd width), C coordinates, V words.
SIZES = {
    "B": 4,
    "A": 3,
    "H": 4,
    "h": 2,
    "T": 13,
    "G": 12,
    "1": 1,
    "0": 0,
    "Q": 5,
    "K": 9,
    "D": 16,
    "F": 64,
    "f": 32,
    "W": 5,
    "V": 11,
}
B, H, T, D, V = (SIZES[axis] for axis in "BHTDV")
PLACES = ("offset", "positions", "cu_seqlens", "mask", "delta", "q_offset", "q_positions", "k_positions")


class Case(NamedTuple):
    """A call. ``arrays`` are its first arguments, each behind the letters of its axes ("" for None)."""

    name: str
    verb: str
    arrays: tuple[tuple[str, np.ndarray | None], ...]
    options: dict[str, Any]

    @property
    def in_place(self) -> bool:
        return self.verb not in ("embed", "encode")

    @property
    def wide(self) -> bool:
        """Whether there are numbers of 64 bits among its arrays."""
        given = [*(value for _, value in self.arrays), *self.options.values()]
        return self.options.get("dtype") == "float64" or any(isinstance(one, np.ndarray) and one.itemsize == 8 for one in given)

    def values(self) -> list[np.ndarray | None]:
        """The arrays, each a copy."""
        return [None if value is None else value.copy() for _, value in self.arrays]

    def converted(self, place: Callable[[str, Any], Any], table: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        """The options, by what says where rows stand, given its name, and by tables and ids, wherever they are."""

        def convert(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(convert, value))
            if getattr(value, "holds_arrays", False):
                return value.with_arrays(**{name: table(array) for name, array in value.arrays.items()})
            return table(value) if isinstance(value, np.ndarray) else value

        return {name: place(name, value) if name in PLACES else convert(value) for name, value in self.options.items()}

    def call(self, arrays: Any, options: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """The results of the verb on arrays of a library."""
        made = getattr(fastpe, self.verb)(*arrays, **(self.options if options is None else options))
        return made if isinstance(made, tuple) else (made,)

    def expected(self) -> tuple[np.ndarray, ...]:
        """What NumPy makes."""
        return self.call(self.values())


_DRAWN = np.random.default_rng(5)


def _numbers(axes: str, dtype: str = "float32", seed: int = 0) -> tuple[str, np.ndarray]:
    return axes, cases.random(tuple(SIZES[axis] for axis in axes), dtype, seed)


def _table(*shape: int) -> np.ndarray:
    return cases.random(shape, "float32", 3)


def _integers(*shape: int, low: int = 0, high: int = 50) -> np.ndarray:
    return _DRAWN.integers(low, high, shape, np.int32)


KEPT = _DRAWN.random((B, T)) < 0.7
KEPT[0] = False
OFFSETS = np.array([3, -1, 1 << 30, -70_000], np.int32)
FAR = np.concatenate([[2**31 - 1, -(2**31), -1, 0], _integers(T - 4)]).astype(np.int32)
REAL = np.concatenate([[0.5, -0.25, 1e-7, -1e-7, 1e6 + 0.5, -3.7, 2.0**30], _DRAWN.normal(size=T - 7)]).astype(np.float32)
WHERE: dict[str, dict[str, Any]] = {
    "start": {},
    "offset": {"offset": 100_003},
    "negative_offset": {"offset": -3},
    "offsets": {"offset": OFFSETS},
    "listed": {"positions": list(range(T))[::-1]},
    "positions": {"positions": FAR},
    "positions_of_sequences": {"positions": _integers(B, T, low=-(1 << 20), high=1 << 20)},
    "real_positions": {"positions": REAL},
    "boundaries": {"offset": 2, "cu_seqlens": np.array([0, 5, 5, T], np.int32)},
    "mask": {"offset": 1, "mask": KEPT},
    "mask_of_rows": {"offset": OFFSETS, "mask": KEPT[1]},
    "mask_and_boundaries": {"mask": KEPT, "cu_seqlens": np.array([0, 4, T], np.int32)},
    "mask_and_positions": {"positions": FAR, "mask": KEPT},
}
WIDE = {"positions": _DRAWN.normal(size=(B, T)) * 1e6, "mask": KEPT}  # of 64 bits
FEW = ("offsets", "positions_of_sequences", "mask")  # for element types other than float32
Cases = Iterator[Case]


def _places(verb: str, arrays: Callable[[str], Any], **options: Any) -> Cases:
    for dtype in cases.DTYPES:
        for name in WHERE if dtype == "float32" else FEW:
            yield Case(f"{verb}/{dtype}/{name}", verb, arrays(dtype), {**options, **WHERE[name]})
    yield Case(f"{verb}/float32/wide_positions", verb, arrays("float32"), {**options, **WIDE})


def _adding() -> Cases:
    yield from _places("add_encoding", lambda dtype: (_numbers("BTD", dtype),))

    def add(name: str, axes: str, encoding: Any = None, **options: Any) -> Case:
        return Case(f"add_encoding/{name}", "add_encoding", (_numbers(axes),), {"encoding": encoding, **options})

    by_length, learned = Sinusoidal(scaling=DynamicNTK(4.0, 6)), Learned(_table(50, D))
    yield add("concatenated", "BTD", Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5), input_scale=2.5)
    yield add("shifted", "BTD", Sinusoidal(frequency_shift=1.0, position_scale=0.25), offset=12)
    yield add("by_length", "BTD", by_length, offset=2)
    yield add("by_length_of_positions", "BTD", by_length, positions=_integers(B, T))
    yield add("by_length_of_sequences", "BTD", by_length, offset=np.arange(B, dtype=np.int32) * 4)
    yield add("learned", "BTD", learned, offset=7, input_scale=2.0)
    yield add("learned_masked", "BTD", learned, mask=KEPT)
    yield add("learned_positions", "BTD", learned, positions=_integers(B, T))
    yield add("grid", "BGD", Grid((3, 4)))
    yield add("grid_masked", "BGD", Grid((3, 4)), mask=KEPT[:, 1:], input_scale=2.0)
    yield add("one_sequence", "TD", offset=3)
    yield add("few_rows", "B1D", offset=OFFSETS)
    yield add("no_rows", "B0D")
    yield add("odd_width", "BTW", offset=3)
    yield add("heads", "BHTD", offset=OFFSETS)
    yield add("rows_before_heads", "BTHD", seq_axis=1, offset=OFFSETS)
    yield add("every_row", "BHTD", positions=_integers(B, H, T, low=-50))
    for name in ("offset", "offsets", "mask_of_rows"):
        yield add(f"rows_first/{name}", "TBD", seq_axis=0, **WHERE[name])
    yield add("rows_first/mask", "TBD", seq_axis=0, mask=KEPT.T.copy())
    yield add("rows_first/positions", "TBD", seq_axis=0, positions=_integers(T, B))


def _rotating() -> Cases:
    yield from _places("apply_rotary", lambda dtype: (_numbers("BHTD", dtype), _numbers("BhTD", dtype, 1)))

    def rotate(name: str, q: str, k: str, encoding: Any = None, **options: Any) -> Case:
        arrays = tuple(_numbers(axes, seed=seed) if axes else (axes, None) for seed, axes in enumerate((q, k)))
        return Case(f"apply_rotary/{name}", "apply_rotary", arrays, {"encoding": encoding, **options})

    yarn, sections = Rotary(scaling=YaRN(4.0, 64)), Rotary(sections=(4, 2, 2))
    yield rotate("interleaved", "BHTD", "BhTD", Rotary(interleaved=True), offset=50)
    yield rotate("partial", "BHTD", "BhTD", Rotary(rotary_dim=8, rotary_offset=4), offset=50)
    yield rotate("yarn", "BHTD", "BhTD", yarn, offset=50)
    yield rotate("inverse", "BHTD", "BhTD", yarn, inverse=True, offset=5)
    yield rotate("xpos", "BHTD", "BhTD", Rotary(xpos_scale_base=512.0, xpos_centre=3))
    yield rotate("xpos_of_keys", "", "BhTD", Rotary(xpos_scale_base=512.0), offset=3)
    yield rotate("by_length", "BHTD", "", Rotary(scaling=DynamicNTK(4.0, 6)), offset=9)
    yield rotate("rows_before_heads", "BTHD", "BThD", seq_axis=-3, mask=KEPT)
    yield rotate("flat_heads", "BTF", "BTf", head_dim=D, offset=OFFSETS)
    yield rotate("sections", "BHTD", "BhTD", sections, positions=_integers(3, B, T))
    yield rotate("sections_of_rows", "AHTD", "", sections, positions=_integers(3, T))
    yield rotate("sections_interleaved", "BHTD", "", Rotary(sections=(3, 3, 2), interleaved=True), positions=_integers(3, B, T))


def _moving() -> Cases:
    def move(name: str, delta: Any, **options: Any) -> Case:
        return Case(f"rerotate/{name}", "rerotate", (_numbers("BhTD"),), {"delta": delta, **options})

    change = {"source": Rotary(), "target": Rotary(base=500.0)}
    yield move("number", -5, mask=KEPT)
    yield move("by_sequence", np.array([3, -9, 0, 1 << 20], np.int32))
    yield move("by_row", _integers(B, T), mask=KEPT)
    yield move("base", 0, **change, **WHERE["offsets"])
    yield move("base_and_number", 7, **change, mask=KEPT)
    yield move("base_of_positions", 0, **change, positions=FAR)


def _looking_up() -> Cases:
    ids: Any = ("BT", _integers(B, T, high=V))
    yield from _places("embed", lambda dtype: (ids, _numbers("VD", dtype)), encoding="sinusoidal")

    def embed(name: str, **options: Any) -> Case:
        return Case(f"embed/{name}", "embed", (ids, _numbers("VD")), options)

    types = _integers(B, T, high=2), _table(2, D)
    yield embed("padding", encoding="sinusoidal", padding_idx=3, offset=4)
    yield embed("padding_and_mask", encoding="sinusoidal", padding_idx=3, mask=KEPT)
    yield embed("padding_alone", padding_idx=3)
    yield embed("masked_alone", mask=KEPT, scale=2.0)
    yield embed("types", encoding="sinusoidal", token_types=types, offset=5)
    yield Case("embed/one_sequence", "embed", (("T", ids[1][0]), _numbers("VD")), {"encoding": "sinusoidal", "offset": 3})
    yield Case("embed/wider", "embed", (ids, _numbers("VD")), {"encoding": "sinusoidal", "dtype": "float64"})
    places: Any = ("BT", _integers(B, T, low=-(1 << 20), high=1 << 20))
    for dtype in cases.DTYPES:
        yield Case(f"encode/{dtype}", "encode", (places,), {"dim": D, "dtype": dtype})
    yield Case("encode/real", "encode", (("T", REAL),), {"dim": D})
    yield Case("encode/by_length", "encode", (places,), {"dim": D, "encoding": Sinusoidal(scaling=DynamicNTK(4.0, 6))})
    octaves: Any = ("CT", _DRAWN.normal(size=(3, T)).astype(np.float32))
    yield Case("encode/fourier", "encode", (octaves,), {"dim": 12, "encoding": Fourier.nerf(3, 2)})


def _biasing() -> Cases:
    def bias(name: str, chosen: Any, dtype: str = "float32", axes: str = "BHQK", **options: Any) -> Case:
        return Case(f"add_bias/{name}", "add_bias", (_numbers(axes, dtype),), {"bias": chosen, **options})

    kerple = Kerple((1.0, 0.5, 0.3, 2.0), (0.5, 0.1, 1.0, 0.2))
    several: dict[str, Any] = {"alibi": ALiBi(H), "kerple": kerple, "sandwich": Sandwich(H), "t5": T5Bias(_table(32, H))}
    for dtype in cases.DTYPES:
        for name in several if dtype == "float32" else ("alibi", "kerple"):
            yield bias(f"{dtype}/{name}", several[name], dtype, causal=name in ("alibi", "kerple"))
    for name, chosen in several.items():
        yield bias(f"far/{name}", chosen, axes="HQK", q_offset=1000, input_scale=0.5)
    alibi, keys = ALiBi(H, symmetric=True), _integers(SIZES["K"])
    yield bias("offsets", alibi, q_offset=np.array([3, 90, 0, 7], np.int32))
    yield bias("positions", alibi, q_positions=_integers(B, SIZES["Q"]), k_positions=keys)
    yield bias("positions_of_queries", alibi, q_positions=_integers(SIZES["Q"]))
    yield bias("positions_of_keys", kerple, k_positions=np.sort(keys))


CASES = {case.name: case for case in (*_adding(), *_rotating(), *_moving(), *_looking_up(), *_biasing())}
