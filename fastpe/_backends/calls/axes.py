"""What calls have in common: positions of rows, and the axes of arrays as the kernels' batch and heads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..._arrays import Memory

Arguments = dict[str, Any]  # of one kernel call, by the names of its layout's fields


class Rows(NamedTuple):
    """Positions and mask of the rows of an array.

    ``start`` is the first row's position, or ``table`` the address of a table of positions (both in units of 2^-32). Where ``table`` is
    the address of the caller's own positions, ``start`` is the backend's kind of those. ``mask`` is the address of a mask, or 0. Strides
    are in bytes, one for each axis of x but the last; 0 along an axis that plays no part. ``keepalive`` owns the memory. ``sequences``:
    the fields of the argument block that say how positions restart, where ``table`` is the address of boundaries. ``counts``: whether
    kernels count the rows that the mask keeps; else it only protects.
    """

    start: int
    table: int
    table_strides: tuple[int, ...]
    mask: int
    mask_strides: tuple[int, ...]
    keepalive: tuple[Any, ...]
    sequences: tuple[tuple[str, int], ...] = ()
    counts: bool = False


class Axis(NamedTuple):
    """An axis other than T and D: its size, and its stride in bytes in each array."""

    size: int
    strides: tuple[int, ...]

    def continues(self, inner: Axis) -> bool:
        """Whether this axis and the one inside it are one axis in memory."""
        return all(outer == stride * inner.size for outer, stride in zip(self.strides, inner.strides, strict=True))


def merged(axes: Iterable[Axis], first_varies: bool = False) -> list[Axis]:
    """Axes, outermost first, as one where one stride serves; the first stays alone where its sequences differ."""
    found: list[Axis] = []
    for axis in axes:
        if found and (len(found) > 1 or not first_varies) and found[-1].continues(axis):
            axis = axis._replace(size=axis.size * found.pop().size)
        found.append(axis)
    return found


def stride_fields(array: str, batch: int, row: int, head: int, column: int) -> Arguments:
    """The fields of an array's strides."""
    return {
        f"{array}_batch_stride": batch,
        f"{array}_row_stride": row,
        f"{array}_head_stride": head,
        f"{array}_column_stride": column,
    }


def sum_calls(
    x: Memory | None, out: Memory, rows: Rows, seq_axis: int, arguments: Arguments, **ids: tuple[int, tuple[int, ...]]
) -> Iterator[Arguments]:
    """These arguments for every kernel call that writes to the rows of out, with the fields that say where arrays are.

    ``ids``: addresses and strides of arrays that have no columns.
    """
    source = out if x is None else x
    arrays = {
        "x": (0 if x is None else x.address, source.strides),
        "out": (out.address, out.strides),
        "positions": (rows.table, rows.table_strides),
        "mask": (rows.mask, rows.mask_strides),
        **ids,
    }
    steps = zip(*[strides for _, strides in arrays.values()], strict=False)
    outer = enumerate(zip(out.shape[:-1], steps, strict=False))
    axes = merged(Axis(size, strides) for axis, (size, strides) in outer if axis != seq_axis and size != 1)
    none = Axis(1, (0,) * len(arrays))
    # The kernel's heads axis has no mask: only the batch axis may have one, and with a second axis it comes first.
    *extra, batch, heads = axes if len(axes) >= 2 else [*axes, none, none][:2]
    arguments["batch"], arguments["rows"], arguments["heads"] = batch.size, out.shape[seq_axis], heads.size
    arguments.update(rows.sequences, start=rows.start)
    for number, (name, (address, strides)) in enumerate(arrays.items()):
        by_batch, by_row, by_head = _STRIDES[name]
        arguments[name], arguments[by_row] = address, strides[seq_axis]
        arguments[by_batch], arguments[by_head] = batch.strides[number], heads.strides[number]
    del arguments["mask_head_stride"]
    arguments["x_column_stride"], arguments["out_column_stride"] = source.strides[-1], out.strides[-1]
    return each_call(arguments, extra, tuple(arrays))


_STRIDES = {
    name: tuple(f"{name}_{axis}_stride" for axis in ("batch", "row", "head"))
    for name in ("x", "out", "positions", "mask", "ids", "type_ids")
}


def each_call(arguments: Arguments, axes: list[Axis], addresses: tuple[str, ...]) -> Iterator[Arguments]:
    """The arguments for every index of axes that the kernel does not have itself: with these addresses moved along."""
    if not axes:
        yield arguments
        return
    for indices in itertools.product(*(range(axis.size) for axis in axes)):
        moved = arguments.copy()
        for index, axis in zip(indices, axes, strict=True):
            for name, stride in zip(addresses, axis.strides, strict=True):
                moved[name] += index * stride if moved[name] else 0
        yield moved
