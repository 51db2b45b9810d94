"""The arrays of a case, the calls that contend over them, and the check of a result. ``verbs`` has a class for each verb."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..formula import ENCODING_ERROR
from .case import Case
from .clock import RESTORE_AFTER
from .expressions import Array, element, fill, random_values
from .probes import torch_if_installed

# What is at hand before the call (a table, cosines and sines, a bias), or made in it; in the arrays' own library, or in torch.
FASTPE, CACHED, SCRATCH, TORCH = "fastpe", "cached", "scratch", "torch"
HALF_UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-9, "float32": 2.0**-24, "float64": 2.0**-53}
FLOAT64_ANGLE = 2.0**-50  # error of an angle for each position: frequency, product and sine are rounded in the type
FLOAT32_ANGLE = 2.0**-22
MOST_COMPARED = 1 << 22  # elements of a result

Call = Callable[[], Any]  # in place or not, returns the array or arrays that hold the result


class WrongResult(Exception):
    """A contender's result is not that of the formula in float64."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a case's result.

    ``make`` takes a workload and returns the call. ``expected`` names the workload's method that says what is right; ``angle_error`` is how
    much the contender may err for each position beside its roundings.
    """

    make: Callable[[Any], Call]
    expected: str = "expected"
    angle_error: float = 0.0
    torch: bool = False

    def missing(self, xp: Any = np) -> bool:
        """Whether it needs torch, and there is none that can use the device."""
        if not self.torch:
            return False
        torch = torch_if_installed()
        return torch is None or (xp is not np and not torch.cuda.is_available())


class Workload:
    """The arrays of a case, on the host or a GPU. Arrays that not every contender needs are made when they are first used."""

    contenders: ClassVar[dict[str, Contender]]  # of the command's table
    roundings: ClassVar[int]  # half units that a contender may err by: its table, products and sums are rounded

    def __init__(self, case: Case, xp: Any = None) -> None:
        self.case = case
        self.xp = _library(case.device) if xp is None else xp
        self.dtype = element(case.dtype)
        self.targets: list[Any] = []  # by calls, in place
        self.outputs: list[Any] = []  # that calls write and do not read
        self._calls = 0

    def array(self, shape: tuple[int, ...]) -> Any:
        """An array of random values that calls write in place."""
        self.targets.append(random_values(shape, self.case.dtype, self.xp))
        return self.targets[-1]

    def output(self, shape: tuple[int, ...]) -> Any:
        """An array that calls write and do not read."""
        self.outputs.append(self.xp.zeros(shape, self.dtype))
        return self.outputs[-1]

    def rounded(self, values: Array) -> Any:
        """Values in the element type, in the arrays' library."""
        return self.xp.asarray(values.astype(self.dtype))

    @functools.cached_property
    def offset(self) -> Any:
        """The case's offset, as a verb takes it."""
        offset = self.case.offset
        return self.xp.asarray(offset) if np.ndim(offset) else offset

    def call(self, name: str) -> Call:
        """The call of one of the table's contenders."""
        return self.contenders[name].make(self)

    # ---- values that stay put ----

    def spend(self, calls: int) -> None:
        """Announce calls; arrays are restored before additions carry their values away."""
        if self._calls + calls > RESTORE_AFTER:
            self.restore()
        self._calls += calls

    def restore(self) -> None:
        """Put the first values back."""
        for array in self.targets:
            fill(array, self.xp)
        self._calls = 0

    # ---- the check ----

    @property
    def moved(self) -> int:
        """Bytes that fastpe's call reads and writes."""
        return 2 * sum(int(array.nbytes) for array in self.targets)

    def sample(self, array: Array) -> Array:
        """The elements of a result that are compared: (chosen sequences, chosen rows, ...)."""
        return array[np.ix_(*self.sampled)]

    @property
    def sampled(self) -> tuple[list[int], list[int]]:
        """Which sequences, and which of their rows: the first and the last of each are among them."""
        return sampled(self.case.shape[0], self.case.shape[1], self.case.shape[-1])

    def expected(self, before: list[Array]) -> list[Array]:
        """The sampled result in float64, from the sampled values of the arrays that calls write in place."""
        raise NotImplementedError

    def check(self, name: str, contender: Contender, call: Call) -> None:
        """Call once on fresh values; WrongResult unless it computes what the formula does in float64."""
        self.restore()
        for array in self.outputs:
            array.fill(np.nan)
        before = [self.sample(on_host(array)).astype(np.float64) for array in self.targets]
        result = call()
        expected = getattr(self, contender.expected)(before)
        slack = contender.angle_error and contender.angle_error * (int(self.case.positions.max()) + 8)
        limit = self.roundings * HALF_UNIT[self.case.dtype] + ENCODING_ERROR[self.case.dtype] + slack
        for one, right in zip(result if isinstance(result, (tuple, list)) else (result,), expected, strict=True):
            self._compare(name, self.sample(self.broadcast(on_host(one))).astype(np.float64), right, limit)

    def broadcast(self, result: Array) -> Array:
        """A result of one sequence, where all have the same."""
        return result

    def size(self, right: Array) -> Any:
        """What roundings are relative to."""
        return np.abs(right)

    def _compare(self, name: str, got: Array, right: Array, limit: float) -> None:
        wrong = WrongResult(f"{self.case}: {name} differs from the formula")
        if got.shape != right.shape or np.isnan(got).any():
            raise wrong
        finite = np.isfinite(right)
        off = ~(got == right)
        off[finite] = np.abs(got[finite] - right[finite]) > limit * (1 + np.broadcast_to(self.size(right), right.shape)[finite])
        if off.any():
            raise WrongResult(f"{wrong}, first at {np.argwhere(off)[0].tolist()} of the sample")


def _library(device: str) -> Any:
    if device == "cpu":
        return np
    import cupy

    return cupy


def on_host(value: Any) -> Array:
    """An array of NumPy from one of NumPy, CuPy or torch."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "get"):
        array: Array = value.get()
    else:
        tensor = value.detach().cpu()
        array = (tensor if tensor.element_size() > 2 else tensor.float()).numpy()
    return array


def sampled(batch: int, rows: int, elements: int) -> tuple[list[int], list[int]]:
    """The first and the last sequence, and of their rows as many as are compared, evenly spaced; a row has so many elements."""
    most = max(2, MOST_COMPARED // (2 * elements))
    return sorted({0, batch - 1}), np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(int)).tolist()
