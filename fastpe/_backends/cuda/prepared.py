"""Prepared calls on devices: the argument block is packed once, and only addresses and the first position are written anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..calls import AddSinusoidal, Call, GatherSum, Rotate
from .compile import function
from .launch import Launch, launches

WIDE = 16  # bytes that vector kernels read and write at a time


def prepare(call: Call) -> PreparedLaunch | None:
    """A call of one launch, prepared; None for biases and grids, and for frequencies of one length, which do not stay."""
    if not isinstance(call, (AddSinusoidal, GatherSum, Rotate)) or getattr(call.plan, "of_length", False):
        return None
    first, *more = itertools.islice(launches(call), 2)
    if more:
        return None
    if isinstance(call, AddSinusoidal):
        return PreparedLaunch(first, [("x",), ("out",)])
    if isinstance(call, GatherSum):
        return PreparedLaunch(first, [("x",), ("ids",), ("out",)])
    arrays = [name for name, pair in (("q", call.q), ("k", call.k)) if pair is not None]
    if all(pair.x is pair.out for pair in call.pairs):
        return PreparedLaunch(first, [(f"{name}_x", f"{name}_out") for name in arrays])
    return PreparedLaunch(first, [(f"{name}_{end}",) for name in arrays for end in ("x", "out")])


class PreparedLaunch:
    """A launch whose arguments are packed (``fastpe._backends.base.Prepared``). ``fields``: those that have each array's address."""

    def __init__(self, one: Launch, fields: Sequence[tuple[str, ...]]) -> None:
        import cupy

        self._one, self._index = one, vars(one.layout.index)
        self._fields = [(self._index[name], number) for number, names in enumerate(fields) for name in names]
        self._names = [(name, number) for number, names in enumerate(fields) for name in names]
        self._step = 2 if any("ids" in names for names in fields) else 1  # ids are read one by one
        self._variants: dict[bool, Any] = {}  # by whether arrays are aligned to what vector kernels read
        self._idle: list[tuple[Any, Any]] = []  # argument blocks that no thread writes
        self._position = self._index["positions" if one.arguments["positions"] else "start"]
        self._get_device, self._on = cupy.cuda.runtime.getDevice, cupy.cuda.Device(one.device)
        self.rows, self.addresses = one.arguments["rows"], tuple([one.arguments[names[-1]] for names in fields])
        self.positions = one.arguments["positions"] if one.arguments["start"] else 0

    def takes(self, where: Any) -> bool:
        """Whether the positions or offsets are read where the caller has them."""
        return bool(where.data.ptr == self.positions)

    def again(self) -> None:
        """Launch on the arrays that it was made for."""
        arguments = self._one.arguments
        self.run(self.addresses, arguments["positions"] or arguments["start"])

    def run(self, addresses: Sequence[int], start: int, stream: Any = None) -> None:
        """Launch on the arrays at these addresses; ``start`` is the first position, or the address of positions or offsets."""
        bits = 0
        for address in addresses[:: self._step]:
            bits |= address
        entry, grid, block = self._variants.get(not bits % WIDE) or self._variant(addresses, not bits % WIDE)
        try:
            element, words = self._idle.pop()
        except IndexError:
            element, words = self._packed()
        for word, number in self._fields:
            words[word] = addresses[number]
        words[self._position] = start
        if self._get_device() == self._one.device:
            entry(grid, block, (element,), stream=stream)
        else:
            with self._on:
                entry(grid, block, (element,), stream=stream)
        self._idle.append((element, words))  # the driver has copied it

    def _variant(self, addresses: Sequence[int], is_wide: bool) -> Any:
        one = self._one
        arguments = {**one.arguments, **{name: addresses[number] for name, number in self._names}}
        entry, shape = one.choose(arguments)
        found = self._variants[is_wide] = (function(one.name, entry, one.device, one.options), *shape)
        return found

    def _packed(self) -> tuple[Any, Any]:
        """An argument block as CuPy passes it, and as words."""
        block = self._one.layout.pack(self._one.arguments)
        return np.frombuffer(block, self._one.layout.dtype), np.frombuffer(block, np.int64).data
