"""The loops over the columns of `add_sinusoidal.py`, emitted for each element type, layout and kind of position.

A loop takes a vector of columns in one straight run of instructions (`simd.py`), and the rest of a row one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .loops import address_of, either, is_set, steps, vectors
from .scheduler import REAL, WORD, load_word, variants
from .simd import I64, Vector

Pair = tuple[Vector, Vector]

at = abi.ADD_SINUSOIDAL.index


# ---- functions of the frequencies --------------------------------------------------------------------------------------------


class Functions:
    """Amplitude times sine and cosine of a plan's frequencies at a position in units of 2^-32; NaN at NOT_A_POSITION."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        element: a.Element,
        call: ir.Value,
        position: ir.Value,
        amplitude: ir.Value,
        frequencies: tuple[int, int] = (at.frequencies, at.whole_turns),
    ) -> None:
        self._builder, self._element = builder, element
        invalid = builder.icmp_signed("==", position, I64(abi.NOT_A_POSITION))
        self._amplitude = builder.select(invalid, ir.Constant(element.real, np.nan), amplitude)
        position = builder.select(invalid, I64(0), position)
        self._whole, self._part = builder.ashr(position, I64(32)), builder.and_(position, I64(0xFFFFFFFF))
        self._fraction_of_turn, self._whole_turns = (load_word(builder, call, index) for index in frequencies)
        self.fractional = is_set(builder, self._part)

    def at(self, f: ir.Value, count: int, fractional: bool, phases: ir.Value | None = None) -> Pair:
        """Sine and cosine of the frequencies f, f + 1, ...; ``fractional`` is right for every position, and slower.

        At a whole position they may follow from the ``phases`` of the position before, which become its own.
        """
        builder = self._builder
        whole = simd.spread(builder, self._whole, count)
        fraction = simd.load(builder, address_of(builder, self._fraction_of_turn, f, 8), simd.I64, count, 8)
        if fractional:
            turns = simd.load(builder, address_of(builder, self._whole_turns, f, 8), simd.I64, count, 8)
            phase = a.phase(whole, simd.spread(builder, self._part, count), fraction, turns)
        elif phases is None:
            phase = whole * fraction
        else:
            kept = address_of(builder, phases, f, 8)
            phase = simd.load(builder, kept, simd.I64, count, 8) + fraction
            simd.store(phase, kept, 8)
        sine, cosine = a.sincos(phase if self._element.real is simd.F64 else (phase >> 32).to(simd.I32))
        factor = simd.spread(builder, self._amplitude, count)
        return sine * factor, cosine * factor

    def store_phases_before(self, frequencies: ir.Value, phases: ir.Value) -> None:
        """Write the phases of so many frequencies, and of up to MARGIN more, at the whole position before this one."""
        builder, count = self._builder, self._element.per_vector
        before = simd.spread(builder, builder.sub(self._whole, I64(1)), count)
        for f in steps(builder, I64(0), frequencies, count):
            fraction = simd.load(builder, address_of(builder, self._fraction_of_turn, f, 8), simd.I64, count, 8)
            simd.store(before * fraction, address_of(builder, phases, f, 8), 8)

    def store(self, f0: ir.Value, f1: ir.Value, sines_at: ir.Value, cosines_at: ir.Value) -> None:
        """Write those of the frequencies f0 ... f1 - 1, and of up to MARGIN more."""
        builder, size, per_vector = self._builder, self._element.real_bytes, self._element.per_vector
        for fractional in either(builder, self.fractional):
            for f in steps(builder, f0, f1, per_vector):
                sine, cosine = self.at(f, per_vector, fractional)
                simd.store(sine, address_of(builder, sines_at, f, size), size)
                simd.store(cosine, address_of(builder, cosines_at, f, size), size)


@variants(types.void, WORD, WORD, REAL, WORD, WORD)
def evaluate(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, position, amplitude, first_at, second_at
):
    """Both functions of all frequencies at a position, in the order of their columns; it writes up to MARGIN more."""
    functions = Functions(builder, element, call, position, amplitude)
    cosine_first = is_set(builder, load_word(builder, call, at.cosine_first))
    sines, cosines = builder.select(cosine_first, second_at, first_at), builder.select(cosine_first, first_at, second_at)
    frequencies = builder.ashr(builder.add(load_word(builder, call, at.width), I64(1)), I64(1))
    functions.store(I64(0), frequencies, sines, cosines)


@variants(types.void, WORD, WORD, REAL, WORD, WORD)
def reckon(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, position, amplitude, phases, _
):
    """The phases of all frequencies at the position before this one, from which ``add_evaluated`` goes on; up to MARGIN more."""
    frequencies = builder.ashr(load_word(builder, call, at.width), I64(1))
    Functions(builder, element, call, position, amplitude).store_phases_before(frequencies, phases)


# ---- rows of contiguous elements ---------------------------------------------------------------------------------------------


class _Columns:
    """The columns of one row, by pairs, and how to add to them."""

    def __init__(self, builder: ir.IRBuilder, element: a.Element, reads: bool, call: ir.Value, *row: ir.Value) -> None:
        self._builder, self._element, self._reads, self._call = builder, element, reads, call
        self._source, self._target, self._scale, self._ahead = row
        self._apart = builder.mul(load_word(builder, call, at.second_half), I64(element.itemsize))
        self.pairs = builder.ashr(load_word(builder, call, at.width), I64(1))

    def interleaved(self) -> Iterator[bool]:
        return either(self._builder, is_set(self._builder, load_word(self._builder, self._call, at.interleaved)))

    def half_by_half(self) -> Iterator[bool]:
        """Whether the two halves of a row, which are not interleaved, are added one after the other.

        Two streams through memory that lie 0.5 to 2 KiB apart are slow: 128 MB of float32 rows, 512 columns, take 15.0 ms on one thread
        (AMD EPYC, Zen 5), and one half after the other 11.7. Farther apart they are as fast or faster; in shorter rows it does not matter.
        """
        builder = self._builder
        together = builder.icmp_signed("==", load_word(builder, self._call, at.second_half), self.pairs)
        near, far = (builder.icmp_signed(order, self._apart, I64(size)) for order, size in ((">=", 512), ("<", 2048)))
        return either(builder, builder.and_(together, builder.and_(near, far)))

    def add(self, f: ir.Value, both: Pair, interleaved: bool) -> None:
        """Add the pairs f, f + 1, ...: side by side if interleaved, else the second functions in the other half."""
        if interleaved:
            skipped = self._builder.mul(f, I64(2 * self._element.itemsize))
            if self._element is a.ELEMENTS["bfloat16"]:
                a.add_pairs(self._reads, both, *self._from(skipped))
            else:
                self._add(simd.interleave(*both), skipped)
            return
        for values, second in zip(both, (False, True), strict=True):
            self.add_one(f, values, second)

    def add_one(self, f: ir.Value, values: Vector, second: bool) -> None:
        """Add the first or the second functions of the pairs f, f + 1, ..., which are not interleaved."""
        skipped = self._builder.mul(f, I64(self._element.itemsize))
        self._add(values, self._builder.add(skipped, self._apart) if second else skipped)

    def add_tail(self, pair: Callable[[ir.Value], Pair]) -> None:
        """Add the column without a partner, if there is one, from the function of its pair that it holds."""
        builder, call = self._builder, self._call
        column = load_word(builder, call, at.tail_column)
        with builder.if_then(builder.icmp_signed(">=", column, I64(0))):
            first, second = pair(self.pairs)
            flags = [is_set(builder, load_word(builder, call, index)) for index in (at.tail_is_cosine, at.cosine_first)]
            takes_second = Vector(builder, builder.xor(*flags))
            self._add(takes_second.choose(second, first), builder.mul(column, I64(self._element.itemsize)))

    def _add(self, values: Vector, skipped: ir.Value) -> None:
        a.add(self._element, self._reads, values, *self._from(skipped))

    def _from(self, skipped: ir.Value) -> tuple[ir.Value, ...]:
        """Where x and its result are so many bytes into the row, the scale, and how far ahead to prefetch."""
        return *(self._builder.add(base, skipped) for base in (self._source, self._target)), self._scale, self._ahead


ANCHOR_ROWS = 8


@variants(types.void, WORD, WORD, REAL, WORD, WORD, WORD, WORD, REAL, WORD)
def add_rotated(  # type: ignore[no-untyped-def]
    element: a.Element, reads: bool, builder, call, position, amplitude, first_at, second_at, source, target, scale, ahead
):
    """Add to a row of 16- or 32-bit elements: the functions at the position's anchor, rotated to the position."""
    columns = _Columns(builder, element, reads, call, source, target, scale, ahead)
    j = builder.and_(builder.ashr(position, I64(32)), I64(ANCHOR_ROWS - 1))
    frequencies = builder.ashr(builder.add(load_word(builder, call, at.width), I64(1)), I64(1))
    skipped = builder.mul(builder.mul(frequencies, j), I64(element.real_bytes))
    rotation = (builder.add(load_word(builder, call, index), skipped) for index in (at.cosines, at.sines))
    bases = first_at, second_at, *rotation

    def pair(f: ir.Value, count: int = 1) -> Pair:
        return a.rotate(*(simd.load(builder, address_of(builder, base, f, 4), simd.F32, count, 4) for base in bases))

    for interleaved in columns.interleaved():
        for half_by_half in (False,) if interleaved else columns.half_by_half():
            for second in (False, True) if half_by_half else (None,):
                for f, count in vectors(builder, columns.pairs, element.per_vector):
                    if second is None:
                        columns.add(f, pair(f, count), interleaved)
                    else:  # though each half rotates anew
                        columns.add_one(f, pair(f, count)[second], second)
    columns.add_tail(pair)


@variants(types.void, WORD, WORD, REAL, WORD, WORD, WORD, WORD, REAL, WORD)
def add_evaluated(  # type: ignore[no-untyped-def]
    element: a.Element, reads: bool, builder, call, position, amplitude, phases, _, source, target, scale, ahead
):
    """As ``add_rotated``, to float64 elements: evaluated at the position itself, without an anchor.

    At a whole position ``phases`` must be those of the position before, and become its own.
    """
    functions = Functions(builder, element, call, position, amplitude)
    columns = _Columns(builder, element, reads, call, source, target, scale, ahead)
    cosine_first = Vector(builder, is_set(builder, load_word(builder, call, at.cosine_first)))

    def pair(f: ir.Value, count: int = 1, fractional: bool = True) -> Pair:
        sine, cosine = functions.at(f, count, fractional, phases)
        return cosine_first.choose(cosine, sine), cosine_first.choose(sine, cosine)

    for interleaved in columns.interleaved():
        for fractional in either(builder, functions.fractional):
            for f, count in vectors(builder, columns.pairs, element.per_vector):
                columns.add(f, pair(f, count, fractional), interleaved)
    columns.add_tail(pair)
