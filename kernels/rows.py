"""Rows of an encoding, made and added: the loops of `add_sinusoidal.py`, emitted for each element type, layout and kind of position.

A loop takes a vector's worth of columns in one straight run of instructions (`lanes.py`); what is left of a row goes one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import arithmetic as a
from . import blocks as at
from . import lanes
from .lanes import I64, Lanes
from .sharing import WORD, emitted, load_word

Pair = tuple[Lanes, Lanes]


# ---- control flow ------------------------------------------------------------------------------------------------------------


def steps(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
    """A loop: what is emitted while its index is looked at is run for start, start + step, ..."""
    with cgutils.for_range_slice(builder, start, stop, I64(step), intp=I64) as (index, _):
        yield index


def vectors(builder: ir.IRBuilder, number: ir.Value, count: int) -> Iterator[tuple[ir.Value, int]]:
    """Two loops over 0 ... number - 1, with how many are taken at a time: as many whole vectors of ``count`` as there are, then ones."""
    whole = builder.and_(number, I64(-count))
    for index in steps(builder, I64(0), whole, count):
        yield index, count
    for index in steps(builder, whole, number, 1):
        yield index, 1


def either(builder: ir.IRBuilder, truth: ir.Value) -> Iterator[bool]:
    """What is emitted for True is run if the value is true, and what is emitted for False if it is not."""
    with builder.if_else(truth) as (then, otherwise):
        with then:
            yield True
        with otherwise:
            yield False


def _is_set(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    return builder.icmp_signed("!=", word, I64(0))


def _address(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, size: int) -> ir.Value:
    return builder.add(base, builder.mul(index, I64(size)))


def _real(element: a.Element) -> Any:
    return types.float64 if element.real is lanes.F64 else types.float32


# ---- functions of the frequencies --------------------------------------------------------------------------------------------


class _Functions:
    """Amplitude times sine and cosine of a plan's frequencies at a position in units of 2^-32; NaN where it is NOT_A_POSITION."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        element: a.Element,
        call: ir.Value,
        position: ir.Value,
        amplitude: ir.Value,
        places: tuple[int, int] = (at.FREQUENCIES, at.WHOLE_TURNS),
    ) -> None:
        self._builder, self._element = builder, element
        nowhere = builder.icmp_signed("==", position, I64(a.NOT_A_POSITION))
        self._amplitude = builder.select(nowhere, ir.Constant(element.real, np.nan), amplitude)
        position = builder.select(nowhere, I64(0), position)
        self._whole, self._part = builder.ashr(position, I64(32)), builder.and_(position, I64(0xFFFFFFFF))
        self._fraction_of_turn, self._whole_turns = (load_word(builder, call, place) for place in places)
        self.fractional = _is_set(builder, self._part)

    def at(self, f: ir.Value, count: int, fractional: bool) -> Pair:
        """Sine and cosine of the frequencies f, f + 1, ...; the way of a fractional position is right for every one."""
        builder = self._builder
        places = lanes.spread(builder, self._whole, count)
        fraction = lanes.load(builder, _address(builder, self._fraction_of_turn, f, 8), lanes.I64, count, 8)
        if fractional:
            turns = lanes.load(builder, _address(builder, self._whole_turns, f, 8), lanes.I64, count, 8)
            phase = a.phase(places, lanes.spread(builder, self._part, count), fraction, turns)
        else:
            phase = places * fraction
        sine, cosine = a.sincos_64(phase) if self._element.real is lanes.F64 else a.sincos_32((phase >> 32).to(lanes.I32))
        factor = lanes.spread(builder, self._amplitude, count)
        return sine * factor, cosine * factor


def evaluator(element: a.Element) -> Any:
    """Make ``evaluate``: both functions of all frequencies at a position, and of up to MARGIN more, in the order of their columns."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, types.float32, WORD, WORD)
    def evaluate(builder, call, position, amplitude, first_at, second_at):  # type: ignore[no-untyped-def]
        functions = _Functions(builder, element, call, position, amplitude)
        cosine_first = _is_set(builder, load_word(builder, call, at.COSINE_FIRST))
        sines, cosines = builder.select(cosine_first, second_at, first_at), builder.select(cosine_first, first_at, second_at)
        frequencies = builder.ashr(builder.add(load_word(builder, call, at.WIDTH), I64(1)), I64(1))
        for fractional in either(builder, functions.fractional):
            for f in steps(builder, I64(0), frequencies, element.lanes):
                sine, cosine = functions.at(f, element.lanes, fractional)
                lanes.store(sine, _address(builder, sines, f, size), size)
                lanes.store(cosine, _address(builder, cosines, f, size), size)

    return evaluate


# ---- rows of contiguous elements ---------------------------------------------------------------------------------------------


class _Columns:
    """Where the columns of a row's pairs are, and how they are added to."""

    def __init__(self, builder: ir.IRBuilder, element: a.Element, reads: bool, call: ir.Value, *row: ir.Value) -> None:
        self._builder, self._element, self._reads, self._call = builder, element, reads, call
        self._source, self._target, self._scale, self._ahead = row
        self._apart = builder.mul(load_word(builder, call, at.SECOND_HALF), I64(element.itemsize))
        self.pairs = builder.ashr(load_word(builder, call, at.WIDTH), I64(1))

    def interleaved(self) -> Iterator[bool]:
        return either(self._builder, _is_set(self._builder, load_word(self._builder, self._call, at.INTERLEAVED)))

    def in_turn(self) -> Iterator[bool]:
        """Whether blocks of columns, not interleaved, are taken one after the other.

        Two streams through memory that lie 0.5 to 2 KiB apart are slow: 128 MB of float32 rows, 512 columns, take 15.0 ms on one thread
        (AMD EPYC, Zen 5), and one block after the other 11.7. Further apart they are as fast or faster, and closer a row is not worth it.
        """
        builder = self._builder
        together = builder.icmp_signed("==", load_word(builder, self._call, at.SECOND_HALF), self.pairs)
        near, far = (builder.icmp_signed(order, self._apart, I64(size)) for order, size in ((">=", 512), ("<", 2048)))
        return either(builder, builder.and_(together, builder.and_(near, far)))

    def add(self, f: ir.Value, both: Pair, interleaved: bool) -> None:
        """Add the pairs f, f + 1, ...: interleaved they lie side by side, otherwise the second functions in the other half."""
        if interleaved:
            self._add(lanes.interleave(*both), self._builder.mul(f, I64(2 * self._element.itemsize)))
            return
        skipped = self._builder.mul(f, I64(self._element.itemsize))
        self._add(both[0], skipped)
        self._add(both[1], self._builder.add(skipped, self._apart))

    def add_one(self, f: ir.Value, values: Lanes, second: bool) -> None:
        """Add the first or the second functions of the pairs f, f + 1, ..., which are not interleaved."""
        skipped = self._builder.mul(f, I64(self._element.itemsize))
        self._add(values, self._builder.add(skipped, self._apart) if second else skipped)

    def add_tail(self, pair: Callable[[ir.Value], Pair]) -> None:
        """Add the column without a partner, if there is one: of its pair the one that it is."""
        builder, call = self._builder, self._call
        column = load_word(builder, call, at.TAIL_COLUMN)
        with builder.if_then(builder.icmp_signed(">=", column, I64(0))):
            first, second = pair(self.pairs)
            flags = [_is_set(builder, load_word(builder, call, place)) for place in (at.TAIL_IS_COSINE, at.COSINE_FIRST)]
            takes_second = Lanes(builder, builder.xor(*flags))
            self._add(takes_second.choose(second, first), builder.mul(column, I64(self._element.itemsize)))

    def _add(self, values: Lanes, skipped: ir.Value) -> None:
        source, target = self._builder.add(self._source, skipped), self._builder.add(self._target, skipped)
        a.add(self._element, self._reads, values, source, target, self._scale, self._ahead)


ANCHOR_ROWS = 8


def rotated_adder(element: a.Element, reads: bool) -> Any:
    """Make ``add_row`` for 16- and 32-bit elements: from the functions at the position's anchor, rotated."""

    @emitted(types.void, WORD, WORD, types.float32, WORD, WORD, WORD, WORD, types.float32, WORD)
    def add_row(  # type: ignore[no-untyped-def]
        builder, call, position, amplitude, first_at, second_at, source, target, scale, ahead
    ):
        columns = _Columns(builder, element, reads, call, source, target, scale, ahead)
        j = builder.and_(builder.ashr(position, I64(32)), I64(ANCHOR_ROWS - 1))
        frequencies = builder.ashr(builder.add(load_word(builder, call, at.WIDTH), I64(1)), I64(1))
        turn = builder.mul(builder.mul(frequencies, j), I64(element.real_bytes))
        bases = first_at, second_at, *(builder.add(load_word(builder, call, place), turn) for place in (at.COSINES, at.SINES))

        def pair(f: ir.Value, count: int = 1) -> Pair:
            return a.rotate(*(lanes.load(builder, _address(builder, base, f, 4), lanes.F32, count, 4) for base in bases))

        for interleaved in columns.interleaved():
            for in_turn in (False,) if interleaved else columns.in_turn():
                for second in (False, True) if in_turn else (None,):
                    for f, count in vectors(builder, columns.pairs, element.lanes):
                        if second is None:
                            columns.add(f, pair(f, count), interleaved)
                        else:  # though each block rotates anew
                            columns.add_one(f, pair(f, count)[second], second)
        columns.add_tail(pair)

    return add_row


def evaluated_adder(element: a.Element, reads: bool) -> Any:
    """Make ``add_row`` for float64 elements: evaluated at the position itself. There are no functions at an anchor."""

    @emitted(types.void, WORD, WORD, types.float64, WORD, WORD, WORD, WORD, types.float64, WORD)
    def add_row(  # type: ignore[no-untyped-def]
        builder, call, position, amplitude, first_at, second_at, source, target, scale, ahead
    ):
        functions = _Functions(builder, element, call, position, amplitude)
        columns = _Columns(builder, element, reads, call, source, target, scale, ahead)
        cosine_first = Lanes(builder, _is_set(builder, load_word(builder, call, at.COSINE_FIRST)))

        def pair(f: ir.Value, count: int = 1, fractional: bool = True) -> Pair:
            sine, cosine = functions.at(f, count, fractional)
            return cosine_first.choose(cosine, sine), cosine_first.choose(sine, cosine)

        for interleaved in columns.interleaved():
            for fractional in either(builder, functions.fractional):
                for f, count in vectors(builder, columns.pairs, element.lanes):
                    columns.add(f, pair(f, count, fractional), interleaved)
        columns.add_tail(pair)

    return add_row


def value_adder(element: a.Element, reads: bool, streams: bool) -> Any:
    """Make ``add_values``: finished values to as many contiguous elements, past the caches if ``streams``."""
    item, size = element.itemsize, element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, _real(element), WORD)
    def add_values(builder, values, source, target, number, scale, ahead):  # type: ignore[no-untyped-def]
        def add(index: ir.Value, count: int, streams: bool = False) -> None:
            found = lanes.load(builder, _address(builder, values, index, size), element.real, count, size)
            x, out = _address(builder, source, index, item), _address(builder, target, index, item)
            a.add(element, reads, found, x, out, scale, ahead, streams)

        if streams:  # up to the first line of the target by ones
            before = builder.udiv(builder.and_(builder.neg(target), I64(at.LINE_BYTES - 1)), I64(item))
            before = builder.select(builder.icmp_signed("<", before, number), before, number)
            for index in steps(builder, I64(0), before, 1):
                add(index, 1)
            values, source, target = (
                _address(builder, base, before, step) for base, step in ((values, size), (source, item), (target, item))
            )
            number = builder.sub(number, before)
        for index, count in vectors(builder, number, at.LINE_BYTES // item):
            add(index, count, streams and count > 1)

    return add_values


# ---- rows of any strides -----------------------------------------------------------------------------------------------------


def strided_adder(element: a.Element, reads: bool) -> Any:
    """Make ``add_strided``: a finished row to elements of any strides."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, _real(element))
    def add_strided(builder, call, values, source, target, scale):  # type: ignore[no-untyped-def]
        for index, x, out in _columns(builder, call, source, target):
            found = lanes.load(builder, _address(builder, values, index, size), element.real, 1, size)
            a.add(element, reads, found, x, out, scale, I64(0))

    return add_strided


def row_copier(element: a.Element) -> Any:
    """Make ``copy_row``: a row to another place, for a masked one out of place."""

    @emitted(types.void, WORD, WORD, WORD)
    def copy_row(builder, call, source, target):  # type: ignore[no-untyped-def]
        for _, x, out in _columns(builder, call, source, target):
            lanes.store(lanes.load(builder, x, element.stored, 1, 1), out, 1)

    return copy_row


def _columns(builder: ir.IRBuilder, call: ir.Value, source: ir.Value, target: ir.Value) -> Iterator[tuple[ir.Value, ...]]:
    x_stride, out_stride = (load_word(builder, call, place) for place in (at.X_COLUMN_STRIDE, at.OUT_COLUMN_STRIDE))
    for index in steps(builder, I64(0), load_word(builder, call, at.WIDTH), 1):
        x, out = builder.mul(index, x_stride), builder.mul(index, out_stride)
        yield index, builder.add(source, x), builder.add(target, out)


# ---- rotations ---------------------------------------------------------------------------------------------------------------


def angle_evaluator(element: a.Element) -> Any:
    """Make ``evaluate_angles``: cosines and sines, times a factor, of the frequencies f0 ... f1 - 1, and of up to MARGIN more."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, _real(element), WORD, WORD, WORD, WORD)
    def evaluate_angles(builder, call, position, factor, f0, f1, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        functions = _Functions(builder, element, call, position, factor, (at.R_FREQUENCIES, at.R_WHOLE_TURNS))
        for fractional in either(builder, functions.fractional):
            for f in steps(builder, f0, f1, element.lanes):
                sine, cosine = functions.at(f, element.lanes, fractional)
                lanes.store(sine, _address(builder, sines_at, f, size), size)
                lanes.store(cosine, _address(builder, cosines_at, f, size), size)

    return evaluate_angles


def angle_scaler(element: a.Element) -> Any:
    """Make ``scale_angles``: cosines and sines of the frequencies f0 ... f1 - 1 times two to the power of distance * growth (xPos)."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
    def scale_angles(builder, call, distance, f0, f1, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        growths, grows = load_word(builder, call, at.R_GROWTHS), _is_set(builder, load_word(builder, call, at.R_GROWS))
        behind = builder.icmp_signed("<", distance, I64(0))
        rises = Lanes(builder, builder.xor(behind, grows))
        distance = builder.select(behind, builder.neg(distance), distance)
        whole, part = builder.lshr(distance, I64(32)), builder.and_(distance, I64(0xFFFFFFFF))
        for f in steps(builder, f0, f1, element.lanes):
            growth = lanes.load(builder, _address(builder, growths, f, 8), lanes.I64, element.lanes, 8)
            places = (lanes.spread(builder, value, element.lanes) for value in (whole, part))
            factor = (a.exp2_64 if element.real is lanes.F64 else a.exp2_32)(*a.exponent(*places, growth), rises)
            for base in (cosines_at, sines_at):
                place = _address(builder, base, f, size)
                lanes.store(lanes.load(builder, place, element.real, element.lanes, size) * factor, place, size)

    return scale_angles


def angle_copier(element: a.Element) -> Any:
    """Make ``copy_angles``: a row of the caller's cosines and sines, so many bytes into its table; NaN where it is not known."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, types.boolean, WORD, WORD)
    def copy_angles(builder, call, skipped, known, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        for base, place in ((cosines_at, at.R_COSINES), (sines_at, at.R_SINES)):
            table = builder.add(load_word(builder, call, place), skipped)
            for f in steps(builder, I64(0), load_word(builder, call, at.R_PAIRS), 1):
                value = builder.load(builder.inttoptr(_address(builder, table, f, size), element.real.as_pointer()))
                value = builder.select(known, value, ir.Constant(element.real, np.nan))
                builder.store(value, builder.inttoptr(_address(builder, base, f, size), element.real.as_pointer()))

    return copy_angles


def pair_rotator(element: a.Element, heads: int) -> Any:
    """Make ``rotate_row``: turn the pairs of a row by the angles of these cosines and sines, back if ``inverse``.

    It takes so many ``heads`` at a time, ``x_step`` and ``out_step`` bytes apart: beside x, cosines and sines are what passes the caches.
    ``u' = fma(u, cos, -(v sin))``, ``v' = fma(v, cos, u sin)``. Where columns lie apart, pair by pair.
    """
    item, size = element.itemsize, element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
    def rotate_row(  # type: ignore[no-untyped-def]
        builder, call, cosines_at, sines_at, source, target, x_stride, out_stride, ahead, x_step, out_step
    ):
        pairs, first = load_word(builder, call, at.R_PAIRS), load_word(builder, call, at.R_FIRST_CHANNEL)
        inverse = Lanes(builder, _is_set(builder, load_word(builder, call, at.R_INVERSE)))
        dense = builder.and_(*(builder.icmp_signed("==", stride, I64(item)) for stride in (x_stride, out_stride)))
        steps_to = [(builder.mul(x_step, I64(head)), builder.mul(out_step, I64(head))) for head in range(heads)]
        bases = [(builder.add(source, x), builder.add(target, out)) for x, out in steps_to]

        def read(address: ir.Value, count: int) -> Lanes:
            for line in range(0, count * item, at.LINE_BYTES):
                lanes.prefetch(builder, builder.add(address, builder.add(ahead, I64(line))))
            return lanes.load(builder, address, element.stored, count, 1)

        for interleaved in either(builder, _is_set(builder, load_word(builder, call, at.R_INTERLEAVED))):
            for together in either(builder, dense):
                loop = (
                    vectors(builder, pairs, element.lanes) if together else ((f, 1) for f in steps(builder, I64(0), pairs, 1))
                )
                for f, count in loop:
                    one = builder.add(first, builder.mul(f, I64(2)) if interleaved else f)
                    other = builder.add(one, I64(1) if interleaved else pairs)
                    cosine, sine = (
                        lanes.load(builder, _address(builder, base, f, size), element.real, count, size)
                        for base in (cosines_at, sines_at)
                    )
                    sine = inverse.choose(sine, -sine)
                    for x_base, out_base in bases:
                        if together and interleaved:
                            skipped = builder.mul(one, I64(item))
                            pair = lanes.separate(read(builder.add(x_base, skipped), 2 * count))
                            turned = a.rotate(*(element.read(value) for value in pair), cosine, sine)
                            both = lanes.interleave(*(element.write(value) for value in turned))
                            lanes.store(both, builder.add(out_base, skipped), 1)
                            continue
                        channels = [(builder.mul(place, x_stride), builder.mul(place, out_stride)) for place in (one, other)]
                        pair = [element.read(read(builder.add(x_base, x), count)) for x, _ in channels]
                        for value, (_, out) in zip(a.rotate(*pair, cosine, sine), channels, strict=True):
                            lanes.store(element.write(value), builder.add(out_base, out), 1)

    return rotate_row


def channel_copier(element: a.Element) -> Any:
    """Make ``copy_channels``: the channels c0 ... c1 - 1 of a row to another place."""

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
    def copy_channels(builder, c0, c1, source, target, x_stride, out_stride):  # type: ignore[no-untyped-def]
        for channel in steps(builder, c0, c1, 1):
            x, out = builder.add(source, builder.mul(channel, x_stride)), builder.add(target, builder.mul(channel, out_stride))
            lanes.store(lanes.load(builder, x, element.stored, 1, 1), out, 1)

    return copy_channels
