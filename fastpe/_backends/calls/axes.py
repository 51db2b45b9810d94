"""What calls have in common: positions of rows, addresses of tables, and the axes of arrays as the kernels' batch and heads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

Arguments = dict[str, Any]  # of one kernel call, by the names of its layout's fields


class Rows(NamedTuple):
    """Positions and mask of the rows of an array.

    ``start`` is the first row's position, or ``table`` the address of a table of positions (both in units of 2^-32). ``mask`` is the
    address of a mask, or 0. Strides are in bytes, one for each axis of x but the last; 0 along an axis that plays no part. ``keepalive``
    owns the memory.
    """

    start: int
    table: int
    table_strides: tuple[int, ...]
    mask: int
    mask_strides: tuple[int, ...]
    keepalive: tuple[Any, ...]


class Tables(NamedTuple):
    """Addresses of a sinusoidal plan's tables, in the memory of the device that will read them; named as in the argument block."""

    frequencies: int = 0
    whole_turns: int = 0
    cosines: int = 0
    sines: int = 0


class RotaryTables(NamedTuple):
    """As ``Tables``, of a rotary plan; ``axes`` and ``growths`` are 0 where it has none."""

    frequencies: int
    whole_turns: int
    axes: int
    growths: int


class CallerTable(NamedTuple):
    """As ``Tables``, of a caller's table of cosines and sines."""

    cosines: int
    sines: int
    table_rows: int
    table_row_stride: int


class Axis(NamedTuple):
    """An axis other than T and D: its size, and its stride in bytes in each array."""

    size: int
    strides: tuple[int, ...]

    def continues(self, inner: Axis) -> bool:
        """Whether this axis and the one inside it are one axis in memory."""
        return all(outer == stride * inner.size for outer, stride in zip(self.strides, inner.strides, strict=True))


def outer_axes(shape: tuple[int, ...], seq_axis: int, *strides: tuple[int, ...]) -> list[Axis]:
    """The axes other than T and D, outermost first, merged where one stride serves; two at least."""
    axes: list[Axis] = []
    for number, (size, *steps) in enumerate(zip(shape[:-1], *strides, strict=False)):
        axis = Axis(size, tuple(steps))
        if number == seq_axis or size == 1:
            continue
        if axes and axes[-1].continues(axis):
            axis = axis._replace(size=size * axes.pop().size)
        axes.append(axis)
    # The kernel's heads axis has no mask: only the batch axis may have one, and with a second axis it comes first.
    none = Axis(1, (0,) * len(strides))
    return axes if len(axes) >= 2 else [*axes, none, none][:2]


def each_call(arguments: Arguments, axes: list[Axis], addresses: tuple[str, ...]) -> Iterator[Arguments]:
    """The arguments for every index of all axes but the last two, which the kernel has itself: with these addresses moved along."""
    if len(axes) == 2:
        yield arguments
        return
    for indices in itertools.product(*(range(axis.size) for axis in axes[:-2])):
        moved = arguments.copy()
        for index, axis in zip(indices, axes, strict=False):
            for name, stride in zip(addresses, axis.strides, strict=True):
                moved[name] += index * stride if moved[name] else 0
        yield moved
