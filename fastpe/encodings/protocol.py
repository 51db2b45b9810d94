"""What an encoding is. Derive from these classes, and your own encoding works in every verb, in PyTorch with gradients, and in graphs.

An encoding is a frozen dataclass of plain values, with one method, ``plan``: what kernels need for a width. ``sinusoids`` and
``rotations`` make plans from frequencies. ``docs/extending.md`` has an example of each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass, replace
from decimal import Decimal
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .._arrays import Memory
from .._backends.calls import AddSinusoidal, Rows
from .._backends.plans import RotaryPlan, SinusoidalPlan, Turns
from .._core import checks, phase, text
from .._core.arguments import Target
from .._core.checks import message
from .._core.where import Where, length_of, resolve, resolve_axes, rows_of_positions

__all__ = ["Additive", "Encoding", "Rotational", "rotations", "sinusoids"]


class Value:
    """A frozen value that repeated calls and graphs know by its text: the base of encodings and biases.

    A subclass is a frozen dataclass. If it has a ``__post_init__`` of its own, that ends with ``super().__post_init__()``.
    """

    text: str  # a dataclass as JSON; a tensor's place is marked, its values are not written

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        text.register(cls)

    def __post_init__(self, **checked: Any) -> None:
        """Set the fields of which a check made plain numbers, whatever kind of number came; then write the text."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if is_dataclass(self):  # what others hold is not known
            object.__setattr__(self, "text", text.write(self))

    def __reduce__(self) -> Any:
        return text.reduced(self)

    def with_arrays(self, **arrays: Any) -> Any:
        """The same value with other arrays."""
        return replace(self, **arrays)  # type: ignore[type-var]


class Encoding(Value):
    """A value that says what happens at a position; the base of additive and rotary encodings.

    A subclass has fields of numbers, strings, tuples of them, and other encodings or rules.
    """

    adds: ClassVar[bool] = False  # whether add_encoding takes it
    embeds: ClassVar[bool] = False  # whether embed takes it
    encodes: ClassVar[bool] = False  # whether encode takes it
    holds_arrays: ClassVar[bool] = False  # whether it holds arrays of the caller's; then calls are never kept to be repeated
    counts: ClassVar[bool] = True  # whether rows count from an offset
    is_whole: ClassVar[bool] = False  # whether it has rows of its own, so that positions may be None, as a Grid

    def __hash__(self) -> int:
        return hash(self.text) if is_dataclass(self) else object.__hash__(self)

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return False

    @property
    def arrays(self) -> dict[str, Any]:
        """The caller's arrays that it holds, by field name."""
        return {}

    def repeats(self, seq_len: Any) -> bool:
        """Whether a prepared call may serve later calls on arrays of the same layout. Equal texts must then mean equal encodings."""
        return not self.holds_arrays and text.says_all(self) and (not self.needs_length or type(seq_len) is int)

    def plan(self, dim: int, seq_len: int | None = None) -> Any:
        """Return what kernels need for a width, and for a length if ``needs_length``. Cache it: every new kind of call asks for it."""
        raise NotImplementedError(f"{type(self).__name__} must define plan(dim, seq_len).")

    def length(self, function: str, seq_len: int | None, rows: Rows, count: int) -> int | None:
        """The length for a rule that depends on it: ``seq_len``, or the largest position + 1."""
        if not self.needs_length or seq_len is not None:
            return seq_len
        return length_of(function, rows, count)

    def check_width(self, function: str, dim: int) -> None:
        """Raise ValueError for a width that the encoding cannot have."""

    def encoded_shape(self, function: str, positions: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape of what ``encode`` makes of positions of this shape, without its last axis."""
        if positions is None:
            raise TypeError(message(function, "positions must be numbers", "None", "Only a Grid has rows of its own."))
        return tuple(positions)


class Additive(Encoding):
    """An encoding that is added to rows: sines and cosines. ``plan(dim, seq_len)`` returns what ``sinusoids`` makes."""

    adds: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    amplitude: float = 1.0

    def additions(self, target: Target, where: Where, out: Memory, scale: float, seq_len: int | None) -> Sequence[Any]:
        """The kernel calls that add it to the rows of ``target.memory`` and write them to ``out``."""
        rows = resolve(target, where)
        checks.fits(target.function, "the encoding's amplitude", self.amplitude, out.dtype)
        if 0 in out.shape:
            return ()
        length = self.length(target.function, seq_len, rows, target.rows)
        return (AddSinusoidal(target.memory, out, rows, target.seq_axis, self.plan(out.shape[-1], length), scale),)

    def encodings(
        self, library: ModuleType, positions: Memory | None, out: Memory, seq_len: int | None, validate: bool
    ) -> Iterable[Any]:
        """The kernel calls that write the encoding of positions to ``out``."""
        checks.fits("encode", "the encoding's amplitude", self.amplitude, out.dtype)
        assert positions is not None
        rows = rows_of_positions("encode", library, positions, validate)
        if 0 in out.shape:
            return ()
        length = self.length("encode", seq_len, rows, 1)
        plan = self.plan(out.shape[-1], length)
        if len(out.shape) == 1:  # a single row
            out = out._replace(shape=(1, *out.shape), strides=(0, *out.strides))
        return (AddSinusoidal(None, out, rows, len(out.shape) - 2, plan, 1.0),)

    def summand(self, target: Target, where: Where, out: Memory, seq_len: int | None) -> tuple[Rows, dict[str, Any]]:
        """The positions of an embedding's rows, and what its kernel needs to add the encoding."""
        rows = resolve(target, where)
        checks.fits(target.function, "the encoding's amplitude", self.amplitude, out.dtype)
        return rows, {"plan": self.plan(out.shape[-1], self.length(target.function, seq_len, rows, target.rows))}


class Rotational(Encoding):
    """An encoding that rotates pairs of channels of queries and keys. ``plan(head_dim, seq_len)`` returns what ``rotations`` makes."""

    position_axes: int | None = None  # A, if positions have several axes: (A, T) or (A, B, T)
    softmax_scale: float = 1.0  # by what attention multiplies its scores, beside 1/sqrt(D)

    @property
    def differs_for_keys(self) -> bool:
        """Whether queries and keys are multiplied by different factors."""
        return False

    def resolve(self, target: Target, where: Where) -> tuple[Rows, int]:
        """The positions of the rows of q and k, and the stride from one axis of the positions to the next."""
        if self.position_axes is not None and where.positions is not None:
            return resolve_axes(target, where, self.position_axes)
        return resolve(target, where), 0

    def check_like(self, function: str, target: Any) -> None:
        """Raise an error for a target to which rotated keys cannot be moved: only frequencies and factors may differ."""
        if type(target) is not type(self):
            got = f"{type(self).__name__} and {type(target).__name__}"
            raise TypeError(message(function, "source and target must be of one class", got))

    @staticmethod
    @functools.lru_cache(maxsize=32)
    def difference(before: RotaryPlan, after: RotaryPlan) -> RotaryPlan:
        """The plan that takes keys rotated by one plan to those of another, at the same position."""
        fraction = after.turns.fraction - before.turns.fraction  # modulo 2^64, and the borrow
        whole = after.turns.whole - before.turns.whole - (after.turns.fraction < before.turns.fraction)
        return replace(
            after,
            key=("difference", before.key, after.key),
            angular=after.angular - before.angular,
            turns=Turns(fraction, whole),
            attention_factor=after.attention_factor / before.attention_factor,
            growths=None,
        )


# ---- plans from frequencies --------------------------------------------------------------------------------------------------


def sinusoids(
    key: Any,
    dim: int,
    frequencies: Sequence[float | Decimal],
    *,
    interleaved: bool = True,
    cos_first: bool = False,
    amplitude: float = 1.0,
) -> SinusoidalPlan:
    """Return the plan of an additive encoding of an even width from its dim / 2 frequencies, in radians a position, 0 or more.

    Frequencies are exact: floats count as the numbers that they are, Decimals to 60 digits. The key is a hashable that is equal only for
    equal plans, such as ``(self, dim, seq_len)``; tables on a GPU are kept under it. Other arguments are as ``layout`` and the fields of
    ``fastpe.Sinusoidal``.
    """
    if dim % 2 or len(frequencies) != dim // 2:
        raise ValueError(message("sinusoids", "frequencies must be dim / 2 numbers", f"{len(frequencies)} for dim {dim}"))
    with phase.precise():
        _, turns = phase.rounded([Decimal(frequency) for frequency in frequencies])
    return SinusoidalPlan(key, dim, turns, interleaved, cos_first, dim // 2, -1, False, float(amplitude))


def rotations(
    key: Any,
    head_dim: int,
    frequencies: Sequence[float | Decimal],
    *,
    interleaved: bool = False,
    rotary_offset: int = 0,
    attention_factor: float = 1.0,
) -> RotaryPlan:
    """Return the plan of a rotary encoding that rotates 2 * len(frequencies) channels of a head, from ``rotary_offset`` on.

    Key and frequencies are as for ``sinusoids``, other arguments as the fields of ``fastpe.Rotary``.
    """
    width = 2 * len(frequencies)
    if rotary_offset < 0 or rotary_offset + width > head_dim:
        got = f"{width} channels from {rotary_offset} on for a head of {head_dim}"
        raise ValueError(message("rotations", "the channels that rotate must lie in the head", got))
    with phase.precise():
        angular, turns = phase.rounded([Decimal(frequency) for frequency in frequencies])
    return RotaryPlan(
        key=key,
        head_dim=head_dim,
        rotary_dim=width,
        angular=angular,
        turns=turns,
        axes=np.zeros(len(frequencies), np.int64),
        first_channel=rotary_offset,
        interleaved=interleaved,
        attention_factor=float(attention_factor),
    )
