"""Biases on attention scores by a formula of the distance between query and key: ALiBi, KERPLE, Sandwich."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._arrays import dispatch
from .._arrays.exported import plain
from .._core import checks, text
from .._core.checks import describe, message
from .protocol import Value

if TYPE_CHECKING:
    from .._core.annotations import Reals

Reach = tuple[int | None, int | None]


class Bias(Value):
    """A bias by distance: how many heads it has, and what ``add_bias`` adds at a distance, query minus key.

    A bias of your own is a subclass, a frozen dataclass, with ``heads``, ``parameters`` and ``evaluate``; it needs no kernel. ``reach`` may
    say beyond which distances its values no longer change: then its table of values ends there.
    """

    holds_arrays = True  # whether there are arrays of the caller's among its parameters; each dataclass knows it
    normalises: ClassVar[bool] = False  # whether the query's position matters beside the distance

    def __post_init__(self, **checked: Any) -> None:
        super().__post_init__(**checked)
        if dataclasses.is_dataclass(self):
            object.__setattr__(self, "holds_arrays", len(text.kinds_in(self.text)) > 1)

    if TYPE_CHECKING:  # a field in some, and a dataclass would take a property for its default

        @property
        def heads(self) -> int:
            """Heads H."""

    @property
    def reach(self) -> Reach:
        """The distances below and above which values no longer change; None for no end."""
        return None, None

    @property
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of ``evaluate``: tuples of numbers, or arrays and tensors of the caller's."""
        return {}

    @property
    def arrays(self) -> dict[str, Any]:
        """The caller's arrays and tensors among the parameters."""
        return {name: value for name, value in self.parameters.items() if not isinstance(value, (tuple, float, int))}

    @property
    def slopes_of(self) -> Any:
        """The slopes, one a head, if the bias is -slope * distance; else None."""
        return None

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        """Return the bias at these distances, float64 of shape (H, ...), computed with ``xp`` (NumPy, CuPy or torch)."""
        raise NotImplementedError

    def values(self, distances: Reals, queries: Reals | None = None) -> npt.NDArray[np.float64]:
        """Return the bias of each head at these distances, query minus key, on the host: (H, ...) float64.

        Distances are integers of any shape, and so are ``queries``, positions of the queries for a bias that depends on them.
        """
        n = np.asarray(distances)
        given = {name: as_float64(type(self).__name__, name, value) for name, value in self.parameters.items()}
        at = None if queries is None else np.asarray(queries)
        result: npt.NDArray[np.float64] = self.evaluate(np, n, at, **given)
        return result

    def of_heads(self, first: int, end: int) -> Bias:
        """The bias of these heads alone."""
        return HeadsOf(self, first, end)


@dataclass(frozen=True, eq=False)
class HeadsOf(Bias):
    """Some heads of a bias, as a part of the scores has them."""

    bias: Any
    first: int
    end: int

    @property
    def heads(self) -> int:
        return self.end - self.first

    @property
    def normalises(self) -> bool:  # type: ignore[override]
        return bool(self.bias.normalises)

    @property
    def symmetric(self) -> bool:
        """Whether slopes go with the distance's absolute value."""
        return bool(getattr(self.bias, "symmetric", False))

    @property
    def reach(self) -> Reach:
        reach: Reach = self.bias.reach
        return reach

    @property
    def parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.bias.parameters
        return parameters

    def with_arrays(self, **arrays: Any) -> HeadsOf:
        return dataclasses.replace(self, bias=self.bias.with_arrays(**arrays))

    @property
    def slopes_of(self) -> Any:
        slopes = self.bias.slopes_of
        return None if slopes is None else slopes[self.first : self.end]

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        return self.bias.evaluate(xp, distances, queries, **parameters)[self.first : self.end]


# ---- parameters --------------------------------------------------------------------------------------------------------------


def per_head(function: str, name: str, value: Any) -> Any:
    """Numbers, one a head: a tuple of finite floats, or the caller's tensor or CuPy array as it is."""
    value = plain(function, name, value)
    if dispatch.is_array(value) and not isinstance(value, np.ndarray):
        shape = tuple(value.shape)
        if len([size for size in shape if size != 1]) > 1 or math.prod(shape) < 1:
            raise ValueError(message(function, f"{name} must be (H,) numbers, one a head", f"shape {shape}"))
        check_finite(function, name, value)
        return value
    if isinstance(value, (int, float, str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(message(function, f"{name} must be (H,) numbers, one a head", describe(value)))
    flat = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    if len(flat) < 1 or (isinstance(value, np.ndarray) and max(value.shape) != value.size):
        raise ValueError(message(function, f"{name} must be (H,) numbers, one a head", describe(value)))
    return tuple(checks.number(function, name, one) for one in flat)


def count(value: Any) -> int:
    """How many numbers there are."""
    return len(value) if isinstance(value, tuple) else math.prod(value.shape)


def check_finite(function: str, name: str, value: Any) -> None:
    """Raise ValueError for NaN and inf in an array on the host, TypeError for a sparse tensor; what lies on a GPU is not read."""
    if dispatch.is_tensor(value):
        from .._arrays import torch as tensors

        tensors.check_layout(function, name, value)
        finite = tensors.is_finite(value)
    elif isinstance(value, np.ndarray):
        finite = bool(np.isfinite(value.astype(np.float64)).all())
    else:
        return
    if not finite:
        raise ValueError(message(function, f"{name} must be finite", f"{describe(value)} with NaN or inf"))


def as_float64(function: str, name: str, value: Any) -> Any:
    """A parameter as float64 on the host."""
    if isinstance(value, (tuple, float, int)):
        return np.array(value, np.float64)
    library, found = dispatch.memory(function, name, value, tensors=True)
    array: Any = library.as_host(found.array)
    return np.asarray(array).astype(np.float64)


@dataclass(frozen=True)
class ALiBi(Bias):
    """Attention with linear biases: -m_h (i - j) for query i and key j.

    m_h = 2^(-max_bias h / H), h = 1 ... H, if H is a power of two. Otherwise the slopes of the largest power of two c below H come first,
    and then those of 2c with odd h, until there are H (BLOOM, MPT and Falcon agree on that).

    BLOOM adds slope times the index of the key among those that the mask keeps, the same for all queries:
    ``add_bias(scores, ALiBi(H), q_positions=zeros, k_positions=(cumsum(mask) - 1) * mask)``. MPT's, slope * (j - (T - 1)), has
    ``q_positions`` full of T - 1. Within a row of a causal softmax all of these are the same. Falcon rounds slopes to bfloat16, which errs
    by up to 3e-3.

    Press et al., "Train Short, Test Long", 2022 (arXiv 2108.12409).

    Parameters
    ----------
    heads, max_bias
        Heads H, and the exponent of the last slope: 8, or MPT's ``alibi_bias_max``.
    symmetric
        -m_h abs(i - j), for encoders. Otherwise keys after the query get a positive bias, which a causal mask hides.
    slopes : (H,) numbers, or a tensor
        Other slopes m_h, such as learned ones.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.ALiBi(2).values([0, 1, 8]).tolist()
    [[-0.0, -0.0625, -0.5], [-0.0, -0.00390625, -0.03125]]
    """

    heads: int
    max_bias: float = 8
    symmetric: bool = False
    slopes: Reals | None = None

    def __post_init__(self) -> None:
        heads = checks.width("ALiBi", "heads", self.heads)
        max_bias = checks.positive_number("ALiBi", "max_bias", self.max_bias)
        checks.boolean("ALiBi", "symmetric", self.symmetric)
        slopes = None if self.slopes is None else per_head("ALiBi", "slopes", self.slopes)
        if slopes is not None and count(slopes) != heads:
            raise ValueError(message("ALiBi", f"slopes must be one a head, {heads}", f"{count(slopes)}"))
        super().__post_init__(heads=heads, max_bias=max_bias, slopes=slopes)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"slopes": self.slopes_of}

    @property
    def slopes_of(self) -> Any:
        return alibi_slopes(self.heads, self.max_bias) if self.slopes is None else self.slopes

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        slopes = parameters["slopes"].reshape((-1,) + (1,) * distances.ndim)
        return -slopes * (abs(distances) if self.symmetric else distances)


@functools.lru_cache(maxsize=64)
def alibi_slopes(heads: int, max_bias: float) -> tuple[float, ...]:
    """The slopes of ALiBi, correctly rounded to float64."""
    power = 1 << (heads.bit_length() - 1)
    exponents = [(h, power) for h in range(1, power + 1)]
    exponents += [(h, 2 * power) for h in range(1, 2 * (heads - power), 2)]
    with localcontext() as context:
        context.prec = 60
        bias, two = Decimal(max_bias), Decimal(2)
        return tuple(float(two ** (-bias * h / of)) for h, of in exponents)


_LEAST, _LARGEST_POWER = 0.01, 2.0  # what KERPLE's code clamps its parameters to


@dataclass(frozen=True)
class Kerple(Bias):
    """KERPLE: -p_h ln(1 + a_h n) (``"log"``), or -a_h n^p_h (``"power"``), n = max(query - key, 0).

    Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", 2022 (arXiv 2205.09921).

    Parameters
    ----------
    p, a : (H,) numbers, arrays or tensors
        Learned, one a head. As in the authors' code values below 0.01 count as 0.01, and powers above 2 as 2.
    kind
        ``"log"`` or ``"power"``.
    symmetric
        n = abs(query - key), for encoders, as the paper writes it.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.Kerple(p=[1.0], a=[0.5], kind="power").values([0, 1, 4]).tolist()
    [[-0.0, -0.5, -2.0]]
    """

    p: Reals
    a: Reals
    kind: str = "log"
    symmetric: bool = False

    def __post_init__(self) -> None:
        checks.one_of("Kerple", "kind", self.kind, ("log", "power"))
        checks.boolean("Kerple", "symmetric", self.symmetric)
        p, a = per_head("Kerple", "p", self.p), per_head("Kerple", "a", self.a)
        if count(p) != count(a):
            raise ValueError(message("Kerple", "p and a must be as many, one a head", f"{count(p)} and {count(a)}"))
        super().__post_init__(p=p, a=a)

    @property
    def heads(self) -> int:
        return count(self.p)

    @property
    def reach(self) -> Reach:
        return (None if self.symmetric else 0), None

    @property
    def parameters(self) -> dict[str, Any]:
        return {"p": self.p, "a": self.a}

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        largest = _LARGEST_POWER if self.kind == "power" else None
        shape = (-1,) + (1,) * distances.ndim
        p = xp.clip(parameters["p"], _LEAST, largest).reshape(shape)
        a = xp.clip(parameters["a"], _LEAST, None).reshape(shape)
        n = abs(distances) if self.symmetric else xp.clip(distances, 0, None)
        if self.kind == "log":
            return -p * xp.log1p(a * n)
        # A power of 0 is 0, and its derivative by the exponent too, which 0 * ln 0 is not.
        return xp.where(n > 0, -a * xp.clip(n, 1, None) ** p, -0.0 * a)


@dataclass(frozen=True)
class Sandwich(Bias):
    """Sandwich: (sum over k = 1 ... width/2 of cos(n 10000^(-2k/width)) - width/2) / (8 h / H), n = query - key, h = 1 ... H.

    H is ``heads``, and the width of the sinusoids is even.

    Chi et al., "Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis", 2023 (arXiv 2212.10356).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.Sandwich(2).values([0, 5]).round(2).tolist()
    [[0.0, -4.02], [0.0, -2.01]]
    """

    heads: int
    width: int = 128

    def __post_init__(self) -> None:
        heads, width = checks.width("Sandwich", "heads", self.heads), checks.width("Sandwich", "width", self.width)
        if width % 2:
            raise ValueError(message("Sandwich", "width must be even", str(width)))
        super().__post_init__(heads=heads, width=width)

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        total = np.zeros(np.shape(distances))
        for k in range(1, self.width // 2 + 1):
            total += np.cos(distances * 10000.0 ** (-2 * k / self.width))
        total -= self.width // 2
        scale = (8 * np.arange(1, self.heads + 1) / self.heads).reshape((-1,) + (1,) * total.ndim)
        return total / scale
