"""How calls split: a block of an array, encoded with what its part of the call says, has the bits that it has in the whole."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import numpy as np
import pytest

import fastpe
from fastpe import FIRE, ALiBi, Grid, Rotary, Sinusoidal, T5Bias
from fastpe._core.operations import Add, AddBias, Between, Embed, Rerotate, Rotate
from fastpe._core.run import run
from fastpe._core.where import Where
from fastpe.scaling import DynamicNTK

RANDOM = np.random.default_rng(5)
B, H, T, D = 4, 2, 12, 8
KEPT = RANDOM.random((B, T)) < 0.7
WHERE = {
    "offset": Where(7),
    "offset_of_numpy": Where(np.int32(7)),
    "offsets": Where(np.array([3, -1, 1 << 30, 0])),
    "positions": Where(positions=RANDOM.permutation(T)),
    "positions_of_sequences": Where(positions=RANDOM.normal(size=(B, T)) * 100),
    "boundaries": Where(2, cu_seqlens=[0, 5, 5, T]),
    "mask": Where(1, mask=KEPT),
    "mask_of_rows": Where(mask=KEPT[0]),
    "positions_and_mask": Where(positions=np.arange(T) * 3, mask=KEPT),
}


def blocks(shape: tuple[int, ...], *axes: int) -> list[list[tuple[int, int]]]:
    """Every axis named in halves of unequal size, all others whole."""
    ends = [[(0, size // 3), (size // 3, size)] if axis in axes else [(0, size)] for axis, size in enumerate(shape)]
    return [list(block) for block in itertools.product(*ends)]


def cut(array: Any, block: Any) -> Any:
    return array[tuple(slice(*ends) for ends in block)]


def check(operation: Any, where: Any, shape: tuple[int, ...], *axes: int) -> None:
    x = RANDOM.normal(size=shape).astype(np.float32)
    whole, parts = x.copy(), x.copy()
    arrays = (
        (whole,) if isinstance(operation, (Add, AddBias)) else (whole, 5) if isinstance(operation, Rerotate) else (whole, None)
    )
    run(operation, arrays, where)
    for block in blocks(shape, *axes):
        own, own_where = operation.part(where, shape, block)
        run(own, (cut(parts, block), *arrays[1:]), own_where)
    cases.assert_same_bits(parts, whole)


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize(
    "operation",
    [Add(Sinusoidal(), 2.0), Add(Sinusoidal(scaling=DynamicNTK(4.0, 6))), Rotate(Rotary()), Rotate(Rotary(), inverse=True)],
    ids=["add", "add_by_length", "rotate", "inverse"],
)
def test_rows_sequences_and_heads(name, operation):
    check(operation, WHERE[name], (B, H, T, D), 0, 1, 2)


@pytest.mark.parametrize("seq_axis", [0, 1])
def test_other_axes(seq_axis):
    shape = (B, T, D) if seq_axis == 1 else (T, B, D)
    check(Add(Sinusoidal()), Where(np.arange(B), seq_axis=seq_axis), shape, 0, 1)
    mask = KEPT if seq_axis == 1 else KEPT.T
    check(Add(Sinusoidal()), Where(mask=mask, seq_axis=seq_axis), shape, 0, 1)


def test_positions_of_every_row():
    positions = RANDOM.integers(-50, 50, (B, H, T))
    check(Add(Sinusoidal()), Where(positions=positions), (B, H, T, D), 0, 1, 2)


def test_sections_and_grids():
    positions = RANDOM.integers(0, 50, (3, B, T))
    check(Rotate(Rotary(sections=(2, 1, 1))), Where(positions=positions), (B, H, T, D), 0, 2)
    check(Add(Grid((3, 4))), Where(), (B, T, D), 0, 1)
    check(Add(Grid((3, 4), extent=(2.0, 7.0), start=0.5, column_major=True)), Where(mask=KEPT), (B, T, D), 0, 1)


@pytest.mark.parametrize("grid", [Grid((3, 4), extent=2.0), Grid(None, axes=(1, 0))], ids=["own", "given"])
def test_pictures(grid):
    """Blocks of pictures, (B, 3, 4, D): along sequences and both axes of the grid."""
    shapes = [None] if grid.shape else [(2, 3, 4), (2, B, 3, 4), (2, T), (2, B, T)]
    for shape in shapes:
        positions = None if shape is None else RANDOM.normal(size=shape)
        for mask in (None, KEPT, KEPT[0], KEPT.reshape(B, 3, 4), KEPT[0].reshape(3, 4)):
            check(Add(grid), Where(positions=positions, mask=mask), (B, 3, 4, D), 0, 1, 2)
    check(Add(grid), Where(positions=None if grid.shape else RANDOM.normal(size=(2, 3, 4))), (B, 2, 3, 4, D), 0, 1, 2, 3)


def test_positions_of_sequences_are_not_taken_for_those_of_heads():
    """A block of as many sequences as there are heads."""
    for mask in (None, KEPT, KEPT[0]):
        for shape in ((2, B, T), (2, B, 3, 4), (2, T), (2, 3, 4)):
            check(Add(Grid(None, axes=(0, 1))), Where(positions=RANDOM.normal(size=shape), mask=mask), (B, 3, T, D), 0, 2)


def test_axes_of_positions_are_not_taken_for_sequences():
    """Positions of three axes beside three sequences, and one row of each sequence."""
    positions = RANDOM.integers(0, 50, (3, T))
    check(Rotate(Rotary(sections=(2, 1, 1))), Where(positions=positions), (3, H, T, D), 0, 2)
    check(Rotate(Rotary()), Where(positions=RANDOM.integers(0, 50, (B, 1))), (B, H, 1, D), 0)


def test_moves():
    rotary = Rotary()
    check(Rerotate(rotary, rotary), Where(), (B, H, T, D), 0, 1, 2)
    check(Rerotate(rotary, Rotary(base=500.0)), WHERE["mask"], (B, H, T, D), 0, 2)


def test_embeddings():
    table, ids = RANDOM.normal(size=(9, D)).astype(np.float32), RANDOM.integers(0, 9, (B, T))
    operation, where = Embed(Sinusoidal(), 2.0), WHERE["mask"]
    whole = run(operation, (table, ids, None, None, None, None), where)
    for block in blocks(whole.shape, 0, 1):
        own, own_where = operation.part(where, whole.shape, block)
        made = run(own, (table, cut(ids, block[:-1]), None, None, None, None), own_where)
        cases.assert_same_bits(made, np.ascontiguousarray(cut(whole, block)))
    own, own_where = Embed(None).part(Where(mask=KEPT), whole.shape, [(1, 3), (2, 9), (0, D)])
    assert (own, own_where.offset) == (Embed(None), 0)  # without an encoding rows stand nowhere
    assert np.array_equal(own_where.mask, KEPT[1:3, 2:9])
    with pytest.raises(ValueError, match="cannot be split"):
        Embed(Sinusoidal(), padding_idx=0).part(where, whole.shape, blocks(whole.shape)[0])


@pytest.mark.parametrize(
    "where",
    [
        Between(),
        Between(3),
        Between(np.arange(B) * 2),
        Between(q_positions=RANDOM.integers(0, 20, (B, 5)), k_positions=RANDOM.integers(0, 20, 9)),
    ],
    ids=["last", "offset", "offsets", "positions"],
)
def test_scores(where):
    check(AddBias(ALiBi(H), causal=True), where, (B, H, 5, 9), 0, 1, 2, 3)
    check(AddBias(T5Bias(RANDOM.normal(size=(32, H))), input_scale=2.0), where, (B, H, 5, 9), 1, 2)
    fire = FIRE(*(RANDOM.normal(size=shape) for shape in ((4, 1), (4,), (H, 4), (H,))))
    check(AddBias(fire), where, (B, H, 5, 9), 1, 2)


WRONG = {
    "mask": (Where(mask=KEPT[:, 1:]), r"mask must have shape \(12,\) or \(4, 12\).*, got shape \(4, 11\)"),
    "positions": (Where(positions=np.arange(T + 1)), r"positions must have shape \(12,\) or .*, got shape \(13,\)"),
    "offsets": (Where(np.arange(B + 1)), r"offset must be an integer, or have shape \(4,\), got shape \(5,\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_of_the_whole(name):
    where, words = WRONG[name]
    shape = (B, H, T, D)
    with pytest.raises(ValueError, match=words):
        Add(Sinusoidal()).part(where, shape, blocks(shape, 2)[0])


def test_an_integer_of_numpy():
    check(Add(Sinusoidal()), Where(np.int64(7)), (B, T, D), 1)


def test_blocks_are_of_whole_rows():
    with pytest.raises(ValueError, match="whole rows"):
        Add(Sinusoidal()).part(Where(), (B, T, D), [(0, B), (0, T), (0, 4)])


@pytest.mark.parametrize("rows", [4, 6])
def test_grid_positions_of_sequences_beside_a_mask_of_rows(rows):
    """Positions (axes, B, T) look like those of a picture; a mask (T,) beside them has the rows alone."""
    grid, shape = fastpe.Grid(None, axes=(0, 1)), (4, rows, 8)
    positions, mask = np.random.default_rng(0).integers(0, 50, (2, 4, rows)), np.arange(rows) < 1
    x = np.zeros(shape, np.float32)
    whole = fastpe.add_encoding(x.copy(), grid, positions=positions, mask=mask)
    for block in itertools.product([(0, 2), (2, 4)], [(0, rows // 2), (rows // 2, rows)]):
        operation, where = Add(grid).part(Where(0, positions, None, mask, -2), shape, [*block, (0, 8)])
        own = tuple(slice(*ends) for ends in block)
        made = fastpe.add_encoding(x[own].copy(), operation.encoding, positions=where.positions, mask=where.mask)
        assert np.array_equal(made, whole[own])
