"""The array libraries, and ways to split arrays, that the shared cases run through. A new one is a line of ``ROWS``.

A row says how an array of NumPy becomes the library's and how elements come back; everything else has a default. Libraries are imported
when a row is used.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cases
import numpy as np
import pytest
from verb_cases import Case

Refusals = dict[str, tuple[type[Exception], str]]


def as_it_is(name: str, value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Row:
    """A library.

    ``array`` takes an array of NumPy, and ``split`` one of those with rows, behind the letters of its axes; ``place`` what says where rows
    stand, behind its name. ``numpy`` gives elements back. ``refuses`` maps patterns of names of cases to an error and its words.
    """

    array: Callable[[np.ndarray], Any]
    numpy: Callable[[Any], np.ndarray] = np.asarray
    split: Callable[[str, np.ndarray], Any] | None = None
    place: Callable[[str, Any], Any] = as_it_is
    in_place: bool = True
    needs: str = ""
    slow: bool = False
    takes: Callable[[Case], bool] = lambda case: True
    refuses: Refusals = field(default_factory=dict)
    context: Callable[[Case], Any] = lambda case: contextlib.nullcontext()
    call: Callable[[Case, Any, dict[str, Any]], tuple[Any, ...]] = Case.call

    @property
    def marks(self) -> list[Any]:
        missing = bool(self.needs) and importlib.util.find_spec(self.needs) is None
        skip = pytest.mark.skipif(missing, reason=f"{self.needs} is not installed")
        return [skip, pytest.mark.slow] if self.slow else [skip]

    def check(self, case: Case) -> None:
        """The bits of NumPy, in the object that was given or in a new one; or the error, and nothing written."""
        error = self.error(case)
        with self.context(case):
            given = [self.given(axes, value) for axes, value in case.arrays]
            options = case.converted(self.place, self.array)
            if error is not None:
                with pytest.raises(error[0], match=error[1]):
                    self.call(case, given, options)
            else:
                written = [one for one in given if one is not None] if self.in_place and case.in_place else None
                self.compare(case, self.call(case, given, options), written)
            if error is not None or written is None:
                for one, (_, value) in zip(given, case.arrays, strict=True):
                    if value is not None:
                        self.check_bits(one, value)

    def error(self, case: Case) -> tuple[type[Exception], str] | None:
        """With what, and in which words, a case is refused."""
        return next((error for pattern, error in self.refuses.items() if fnmatch.fnmatch(case.name, pattern)), None)

    def given(self, axes: str, value: np.ndarray | None) -> Any:
        if value is None:
            return None
        return self.array(value) if self.split is None or "V" in axes else self.split(axes, value)

    def compare(self, case: Case, made: tuple[Any, ...], written: list[Any] | None) -> None:
        for index, (one, expected) in enumerate(zip(made, case.expected(), strict=True)):
            assert written is None or one is written[index]
            self.check_bits(one, expected)

    def check_bits(self, one: Any, expected: np.ndarray) -> None:
        cases.assert_same_bits(self.numpy(one), expected)


# ---- NumPy, PyTorch, CuPy ----------------------------------------------------------------------------------------------------


def tensor(value: np.ndarray) -> Any:
    import torch

    bits = value.view(np.int16) if value.dtype == cases.DTYPES["bfloat16"] else value
    copied = torch.from_numpy(bits.copy())
    return copied.view(torch.bfloat16) if bits is not value else copied


def of_tensor(one: Any) -> np.ndarray:
    import torch

    bits = one.view(torch.int16) if one.dtype == torch.bfloat16 else one
    return bits.numpy().view(cases.DTYPES["bfloat16"]) if bits is not one else bits.numpy()


def tensor_place(name: str, value: Any) -> Any:
    return tensor(value) if isinstance(value, np.ndarray) else value


def on_simulated_gpu(case: Case) -> Any:
    import kept
    import simulated_cupy

    return simulated_cupy.installed(kept.folder("ptx"))


def on_device(value: np.ndarray) -> Any:
    import simulated_cupy

    return simulated_cupy.asarray(value)


def device_place(name: str, value: Any) -> Any:
    return on_device(value) if isinstance(value, np.ndarray) else value


def strided(axes: str, value: np.ndarray) -> np.ndarray:
    return cases.VIEWS["strided_columns"](value)


OPEN_LENGTH: Refusals = {
    "*/by_length_of_*": (ValueError, "seq_len must be given"),
    "encode/by_length": (ValueError, "seq_len must be given"),
}
ON_DEVICES: Refusals = {
    **OPEN_LENGTH,
    "*/listed": (TypeError, "positions must be a cupy array, got builtins.list"),
    "add_bias/positions_of_keys": (ValueError, "validate must be True where positions lie on a GPU and the bias is Kerple"),
}

# ---- JAX ---------------------------------------------------------------------------------------------------------------------


IN_PROGRAMS: Refusals = {
    "encode/by_length": (ValueError, "seq_len must be given"),
    "encode/fourier": (TypeError, "Fourier features are no kernel's"),
    "add_bias/positions_of_keys": (TypeError, "q_offset must be a number, and positions None"),
}
TRACED: Refusals = {
    **IN_PROGRAMS,
    "*/by_length*": (ValueError, "seq_len must be given"),
    "add_bias/far/[kst]*": (TypeError, "q_offset must be a number, and positions None"),
}


def jax_array(value: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(value)


def traced_place(name: str, value: Any) -> Any:
    return jax_array(np.asarray(value)) if name != "delta" or np.ndim(value) or value else value


def with_wide_types(case: Case) -> Any:
    """As most programs have JAX, without 64-bit types, where nothing has 64 bits."""
    import jax_versions

    return jax_versions.enable_x64(case.wide)


def under_jit(case: Case, arrays: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Arrays and places are traced; a number that is none of JAX's arrays is not."""
    import jax

    traced = {name: value for name, value in options.items() if isinstance(value, jax.Array)}
    fixed = {name: value for name, value in options.items() if name not in traced}
    with jax.check_tracer_leaks():
        made: tuple[Any, ...] = jax.jit(lambda arrays, traced: case.call(arrays, {**fixed, **traced}))(arrays, traced)
    return made


# ---- Dask --------------------------------------------------------------------------------------------------------------------

SMALL: Any = {
    "B": 3,
    "A": 2,
    "C": 2,
    "T": 5,
    "G": 5,
    "H": 3,
    "h": 1,
    "Q": 3,
    "K": 5,
}  # chunks of one size, and a smaller last one
UNEVEN: Any = {"B": (1, 3), "T": (2, 9, 2), "G": (1, 11), "Q": (4, 1), "K": (1, 8)}


def lazy(split: dict[str, Any], axes: str, value: np.ndarray) -> Any:
    """In chunks; heads of scores stay whole."""
    import dask.array as da

    chunks = tuple(-1 if axis in "H" and "K" in axes else split.get(axis, -1) for axis in axes)
    return da.from_array(value.copy(), chunks=chunks)


def computed(one: Any) -> np.ndarray:
    """In this thread: threads take longer than what these arrays take."""
    made: np.ndarray = one.compute(scheduler="sync") if hasattr(one, "compute") else one
    return made


def lazy_place(name: str, value: Any) -> Any:
    import dask.array as da

    return da.from_array(np.asarray(value), chunks=5) if name in ("positions", "mask") else value


def has_lazy_places(case: Case) -> bool:
    return bool({"positions", "mask"} & set(case.options)) and "cu_seqlens" not in case.options


OF_ENCODE = {"encode/by_length": OPEN_LENGTH["encode/by_length"]}  # whose positions are its array
dask = partial(Row, np.array, computed, in_place=False, needs="dask", refuses=OF_ENCODE)


jax = partial(Row, jax_array, in_place=False, needs="jax", context=with_wide_types, refuses=IN_PROGRAMS)
ROWS = {
    "numpy, strided": Row(np.array, split=strided),
    "torch": Row(tensor, of_tensor, place=tensor_place, needs="torch"),
    "cupy, simulated": Row(
        on_device,
        lambda one: one._host,
        place=device_place,
        needs="cupy",
        slow=True,
        context=on_simulated_gpu,
        refuses=ON_DEVICES,
    ),
    "jax": jax(),
    "jax, traced": jax(place=traced_place, call=under_jit, slow=True, refuses=TRACED),
    "dask, small chunks": dask(split=partial(lazy, SMALL)),
    "dask, uneven chunks": dask(split=partial(lazy, UNEVEN), slow=True),
    "dask, whole": dask(split=partial(lazy, {}), slow=True),
    "dask, lazy places": dask(
        split=partial(lazy, UNEVEN), place=lazy_place, takes=has_lazy_places, slow=True, refuses=OPEN_LENGTH
    ),
}
