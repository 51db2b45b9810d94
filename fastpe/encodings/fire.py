"""FIRE: a small network of the distance, divided by a function of the query's position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .._arrays import dispatch
from .._arrays.exported import plain
from .._core import checks
from .._core.checks import describe, message
from .bias import Bias, check_finite

if TYPE_CHECKING:
    from .._core.annotations import AnyArray, Reals


@dataclass(frozen=True, eq=False)
class FIRE(Bias):
    """FIRE: MLP_h(ln(1 + abs(c n)) / (ln(1 + abs(c max(i, L))) + eps)), n = query i - key; MLP(x) = w2 relu(w1 x + b1) + b2.

    Queries up to position L share one function of the distance. Beyond L each query has its own, evaluated a few rows at a time.

    Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2023 (arXiv 2310.04418).

    Parameters
    ----------
    w1, b1 : (M, 1) or (M,), and (M,) arrays or tensors
        The hidden layer.
    w2, b2 : (H, M) and (H,) arrays or tensors
        The output layer, one row a head.
    c, length : numbers or tensors
        Learned: c, 0.1 at first, and L, the threshold, 512 at first (times its learned multiplier).
    eps
        Keeps the quotient finite.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fire = fastpe.FIRE(w1=np.ones((1, 1)), b1=np.zeros(1), w2=-np.ones((2, 1)), b2=np.zeros(2), length=10)
    >>> fire.values([0, 10], queries=[0, 10])[0].round(3).tolist()
    [0.0, -1.0]
    """

    w1: AnyArray
    b1: AnyArray
    w2: AnyArray
    b2: AnyArray
    c: Reals = 0.1
    length: Reals = 512.0
    eps: float = 1e-6

    normalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", checks.positive_number("FIRE", "eps", self.eps))
        shapes = {}
        for name in ("w1", "b1", "w2", "b2"):
            value = plain("FIRE", name, getattr(self, name))
            if value is not getattr(self, name):
                object.__setattr__(self, name, value)
            if not dispatch.is_array(value):
                raise TypeError(message("FIRE", f"{name} must be an array or a tensor", describe(value)))
            shapes[name] = tuple(value.shape)
            check_finite("FIRE", name, value)
        hidden = shapes["b1"][0] if len(shapes["b1"]) == 1 else 0
        heads = shapes["b2"][0] if len(shapes["b2"]) == 1 else 0
        fits = shapes["w1"] in ((hidden, 1), (hidden,)) and shapes["w2"] == (heads, hidden) and hidden * heads > 0
        if not fits:
            got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(message("FIRE", "shapes must be w1 (M, 1), b1 (M,), w2 (H, M), b2 (H,)", got))
        for name in ("c", "length"):
            value = getattr(self, name)
            if not dispatch.is_array(value):
                object.__setattr__(self, name, checks.number("FIRE", name, value))
            elif math.prod(value.shape) != 1:
                raise ValueError(message("FIRE", f"{name} must be one number", describe(value)))
            else:
                check_finite("FIRE", name, value)
        super().__post_init__()

    @property
    def heads(self) -> int:
        return int(self.b2.shape[0])

    @property
    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("w1", "b1", "w2", "b2", "c", "length")}

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        c, length = (abs(parameters[name]).reshape(()) for name in ("c", "length"))
        at = length if queries is None else xp.maximum(queries + 0 * length, length)
        x = xp.log1p(c * abs(distances)) / (xp.log1p(c * abs(at)) + self.eps)
        hidden, heads = parameters["b1"].shape[0], parameters["b2"].shape[0]
        shape = x.shape
        x = x.reshape(1, -1)
        layer = xp.clip(parameters["w1"].reshape(hidden, 1) * x + parameters["b1"].reshape(hidden, 1), 0, None)
        return (parameters["w2"] @ layer + parameters["b2"].reshape(heads, 1)).reshape((heads, *shape))
