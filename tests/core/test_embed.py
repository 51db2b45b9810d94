"""embed and Learned: against NumPy, one operation after the other; ids, positions, padding, quantised tables, the GPU, errors."""

from __future__ import annotations

import itertools

import cases
import numpy as np
import pytest
from embed_cases import ROWS, SCALES, hard_to_round, some_ids, words

import fastpe
from fastpe import Learned, Sinusoidal
from fastpe._backends.host import chunking
from fastpe._core.operations import embed
from fastpe.scaling import DynamicNTK

TABLES = (*cases.DTYPES, "int8", "uint8")
ENCODINGS = {"none": None, "sinusoidal": Sinusoidal(), "concatenated": Sinusoidal(layout="concatenated"), "learned": "learned"}


def expected(ids, table, out, *, scale=1.0, encoding=None, positions=None, types=None, row_scale=None, zero=None):
    """The sum in the type of the arithmetic, step by step, rounded once."""
    learned = encoding.table if isinstance(encoding, Learned) else None
    present = [str(part.dtype) for part in (table, learned, None if types is None else types[1]) if part is not None]
    real = np.float64 if "float64" in (*present, out) else np.float32
    found = table[ids].astype(real)
    if row_scale is not None:
        found = (found - real(zero)) * np.asarray(row_scale).astype(real)[ids][..., None]
    found = found * real(scale)
    if types is not None:
        found = found + types[1][types[0]].astype(real)
    places = np.arange(ids.shape[-1]) if positions is None else positions
    if learned is not None:
        found = found + learned[places].astype(real)
    elif encoding is not None:
        found = found + fastpe.encode(places, table.shape[1], encoding, dtype=np.dtype(real).name)
    with np.errstate(over="ignore"):
        return found.astype(cases.DTYPES[out])


# ---- the values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("dtype", TABLES)
def test_every_pair_of_types(dtype, name):
    """Multiply, then add, in float32 or float64, and round once."""
    ids = some_ids(3, 11)
    for out, width in itertools.product(cases.DTYPES, (24, 7)):
        table = words(dtype, width)
        encoding = Learned(words("float16", width, seed=3)) if name == "learned" else ENCODINGS[name]
        given = {} if dtype in cases.DTYPES else {"row_scale": SCALES}
        wanted = expected(ids, table, out, scale=3.3, encoding=encoding, zero={"uint8": 128}.get(dtype, 0), **given)
        got = fastpe.embed(ids, table, encoding, scale=3.3, dtype=out, **given)
        cases.assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("encoding", [Sinusoidal(), Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5)])
def test_the_bits_are_those_of_add_encoding(dtype, encoding):
    table, ids = words(dtype, 33), some_ids(4, 50)
    for offset in (0, 1_000_003):
        got = fastpe.embed(ids, table, encoding, scale=np.sqrt(33), offset=offset)
        cases.assert_same_bits(got, fastpe.add_encoding(table[ids], encoding, input_scale=np.sqrt(33), offset=offset))


def test_token_types_come_before_positions():
    """As in BERT, whose sum this is to the last bit."""
    table, kinds, ids = words(), words(rows=2, seed=4), some_ids(3, 9)
    types = (some_ids(3, 9, rows=2), kinds)
    learned = Learned(words("float64", seed=5))
    for encoding in (None, Sinusoidal(), Learned(words(seed=5)), learned):
        got = fastpe.embed(ids, table, encoding, token_types=types)
        cases.assert_same_bits(got, expected(ids, table, "float32", encoding=encoding, types=types))
    half = words("float16"), (types[0].astype(np.uint8), kinds.astype(np.float16))
    got = fastpe.embed(ids, half[0], token_types=half[1], dtype="bfloat16")
    cases.assert_same_bits(got, expected(ids, half[0], "bfloat16", types=half[1]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float64_is_rounded_to_sixteen_bits_once(dtype):
    """Halfway cases that two roundings, by way of float32, get wrong; infinities, NaN, numbers too large and too small."""
    table = hard_to_round(dtype)
    bits, least = (11, -24) if dtype == "float16" else (8, -133)
    unit = 2.0 ** np.maximum(np.frexp(table)[1] - bits, least)  # of the last place
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = (np.rint(table / unit) * unit).astype(cases.DTYPES[dtype])  # the product is exact, so this rounds nothing
    cases.assert_same_bits(fastpe.embed([0], table, dtype=dtype), wanted)


def test_a_nan_stays_one_in_bfloat16():
    bits = np.array([[0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7FC00000]], np.uint32)
    assert np.isnan(fastpe.embed([0], bits.view(np.float32), dtype="bfloat16").astype(np.float32)).all()


def test_zero_points():
    table, ids = words("uint8"), some_ids(2, 5)
    points = np.random.default_rng(3).integers(0, 256, ROWS)
    got = fastpe.embed(ids, table, row_scale=(SCALES, points))
    want = (table.astype(np.float32) - points.astype(np.float32)[:, None]) * SCALES[:, None]
    cases.assert_same_bits(got, want[ids])
    signed = words("int8")
    got = fastpe.embed(ids, signed, row_scale=(SCALES, -3))
    cases.assert_same_bits(got, ((signed.astype(np.float32) + 3) * SCALES[:, None])[ids])


# ---- ids and positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.int16])
def test_any_integer_type(dtype):
    table, ids = words(), some_ids(3, 8).astype(dtype)
    cases.assert_same_bits(fastpe.embed(ids, table), table[ids])


def test_no_ids():
    """An empty list has no type of its own."""
    for ids in ([], np.zeros((0, 3), int), range(0)):
        assert fastpe.embed(ids, words(), Sinusoidal()).shape == (*np.shape(ids), 24)


def test_any_rank():
    table = words()
    for shape in ((), (5,), (2, 5), (2, 3, 5), (2, 3, 2, 5), (0,), (3, 0), (0, 4)):
        ids = some_ids(*shape)
        got = fastpe.embed(ids, table, Sinusoidal(), scale=2.0)
        want = np.array(table[ids])
        fastpe.add_encoding(want if shape else want[None], input_scale=2.0, seq_axis=max(len(shape) - 1, 0))
        cases.assert_same_bits(got, want)
    cases.assert_same_bits(fastpe.embed([1, 2], table), table[[1, 2]])
    cases.assert_same_bits(fastpe.embed(7, table), table[7])
    turned = some_ids(5, 4).T  # strides
    cases.assert_same_bits(fastpe.embed(turned, table), table[turned])


@pytest.mark.parametrize("mode", cases.POSITION_MODES)
def test_position_modes(mode):
    """As add_encoding, but for masked rows, which become zero."""
    table, ids = words(), some_ids(3, 21)
    given = cases.POSITION_MODES[mode](3, 21)
    for encoding in (Sinusoidal(), Sinusoidal(layout="concatenated")):
        want = fastpe.add_encoding(table[ids], encoding, input_scale=4.5, **given)
        if "mask" in given:
            want[~np.broadcast_to(given["mask"], ids.shape)] = 0
        cases.assert_same_bits(fastpe.embed(ids, table, encoding, scale=4.5, **given), want)
    several = np.broadcast_to(np.arange(21), (2, 3, 21)) * 5 + np.arange(6).reshape(2, 3, 1)
    many = some_ids(2, 3, 21)
    got = fastpe.embed(many, table, Sinusoidal(), positions=several)
    cases.assert_same_bits(got, fastpe.add_encoding(table[many], Sinusoidal(), seq_axis=2, positions=several))


def test_padding():
    """Zero rows that are not counted; fairseq begins to count behind the padding's own number."""
    table, ids = words(), np.array([[1, 1, 5, 7, 1], [4, 9, 8, 1, 2]])
    got = fastpe.embed(ids, table, Sinusoidal(), padding_idx=1, offset=2)
    assert not got[ids == 1].any()
    places = 2 + np.cumsum(ids != 1, axis=1) - 1
    want = table[ids] + fastpe.encode(places, 24)
    cases.assert_same_bits(got[ids != 1], want[ids != 1])
    mask = np.arange(5) > 2
    got = fastpe.embed(ids, table, None, padding_idx=1, mask=mask)
    cases.assert_same_bits(got, np.where(((ids != 1) & mask)[..., None], table[ids], np.float32(0)))
    got = fastpe.embed(ids, table, Sinusoidal(), padding_idx=1, positions=np.arange(5))
    cases.assert_same_bits(got[ids != 1], (table[ids] + fastpe.encode(np.arange(5), 24))[ids != 1])


def test_masked_rows_are_written_as_zeros():
    """Also where they would be something else, which new memory seldom is."""
    table, ids, mask = words(), some_ids(2, 5), np.arange(5) % 2 == 0
    for out in (np.full((2, 5, 24), np.nan, np.float32), np.full((2, 5, 48), np.nan, np.float32)[..., ::2]):
        fastpe.embed(ids, table, Sinusoidal(), mask=mask, out=out)
        assert (out[:, ~mask] == 0).all()
        cases.assert_same_bits(
            out[:, mask].copy(), fastpe.embed(ids, table, Sinusoidal(), positions=np.arange(5) // 2)[:, mask]
        )


def test_length_is_the_largest_position_and_one():
    encoding, table, ids = Sinusoidal(scaling=DynamicNTK(2.0, 10)), words(), some_ids(2, 30)
    want = fastpe.add_encoding(table[ids], encoding, seq_len=45, offset=15)
    for given in ({"offset": 15}, {"positions": np.arange(15, 45)}, {"offset": 15, "seq_len": 45}):
        cases.assert_same_bits(fastpe.embed(ids, table, encoding, **given), want)


# ---- where it is read and written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", cases.VIEWS)
@pytest.mark.parametrize("name", ["sinusoidal", "learned"])
def test_views(view, name):
    encoding = Learned(words(seed=3)) if name == "learned" else Sinusoidal()
    table, ids = words(), some_ids(3, 10)
    want = fastpe.embed(ids, table, encoding)
    out = cases.VIEWS[view](np.zeros((3, 10, 24), np.float32))
    assert fastpe.embed(ids, table, encoding, out=out) is out
    cases.assert_same_bits(np.array(out), want)
    wide = np.zeros((2 * ROWS, 30), np.float32)
    wide[::2, 3:27] = table
    cases.assert_same_bits(fastpe.embed(ids, wide[::2, 3:27], encoding), want)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_stores_past_the_caches_change_nothing(dtype, monkeypatch):
    table, ids = words(dtype, 200), some_ids(3, 70)
    for encoding in (None, Sinusoidal(), Learned(words(dtype, 200, rows=80))):
        want = fastpe.embed(ids, table, encoding)
        with monkeypatch.context() as patch:
            patch.setattr(chunking, "cache_bytes", lambda: 0)
            buffer = np.zeros(3 * 70 * 200 + 5, table.dtype)
            for first in (0, 1, 5):
                out = buffer[first : first + want.size].reshape(want.shape)
                cases.assert_same_bits(fastpe.embed(ids, table, encoding, out=out), want)


def test_threads_change_nothing():
    table, ids = words(width=256), some_ids(16, 200)
    for encoding in (None, Sinusoidal(), Learned(words(width=256, rows=300))):
        found = []
        for threads in (1, 2, 5):
            fastpe.set_num_threads(threads)
            found.append(fastpe.embed(ids, table, encoding))
            fastpe.set_num_threads(None)
        for got in found:
            cases.assert_same_bits(got, found[0])
        cases.assert_same_bits(found[0], expected(ids, table, "float32", encoding=encoding))


def test_a_mapped_table_of_more_than_two_to_the_31_elements(tmp_path):
    """A sparse file; its last rows are read, and little else."""
    rows, width = (1 << 21) + 8, 1024
    table = np.memmap(tmp_path / "table", np.int8, "w+", shape=(rows, width))
    assert table.size > 2**31
    last = words("int8", width, rows=4)
    table[-4:] = last
    scales = np.full(rows, 0.5)
    ids = np.array([[rows - 1, 0, rows - 4, 1 << 20]])
    got = fastpe.embed(ids, table, row_scale=scales)
    zero = np.zeros(width, np.float32)
    cases.assert_same_bits(got[0], np.stack((last[3] * np.float32(0.5), zero, last[0] * np.float32(0.5), zero)))


# ---- learned positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("table", cases.DTYPES)
def test_learned_positions_are_added(dtype, table):
    x, rows = cases.random((3, 9, 24), dtype), words(table, seed=2)
    real = np.float64 if "float64" in (dtype, table) else np.float32
    want = (x.astype(real) * real(1.7) + rows[4:13].astype(real)).astype(x.dtype)
    out = np.empty_like(x)
    assert fastpe.add_encoding(x, Learned(rows), offset=4, input_scale=1.7, out=out) is out
    cases.assert_same_bits(out, want)
    assert fastpe.add_encoding(x, Learned(rows), offset=4, input_scale=1.7) is x
    cases.assert_same_bits(x, want)


@pytest.mark.parametrize("view", cases.VIEWS)
def test_learned_positions_of_any_view(view):
    plain, rows = cases.random((3, 10, 24), "float32"), words(seed=2)
    x = cases.VIEWS[view](plain)
    fastpe.add_encoding(x, Learned(rows))
    cases.assert_same_bits(np.array(x), plain + rows[:10])


def test_learned_positions_masked_clipped_and_for_every_head():
    x, rows = cases.random((3, 9, 24), "float32"), words(seed=2)
    mask = np.arange(9) >= np.array([0, 4, 9])[:, None]
    got = fastpe.add_encoding(x.copy(), Learned(rows), mask=mask, input_scale=2.0)
    places = np.cumsum(mask, axis=1) - 1
    cases.assert_same_bits(got, np.where(mask[..., None], x * np.float32(2) + rows[places], x))
    clipped = fastpe.add_encoding(
        x.copy(), Learned(rows, "clip"), positions=np.array([-5, 0, 1, 39, 40, 2**31 - 1, -(2**31), 3, 2])
    )
    cases.assert_same_bits(clipped, x + rows[[0, 0, 1, 39, 39, 39, 0, 3, 2]])
    heads = cases.random((2, 3, 5, 24), "float32")
    positions = np.random.default_rng(0).integers(0, ROWS, (2, 3, 5))
    cases.assert_same_bits(
        fastpe.add_encoding(heads.copy(), Learned(rows), seq_axis=2, positions=positions), heads + rows[positions]
    )
    packed = fastpe.add_encoding(x.copy(), Learned(rows), cu_seqlens=[0, 4, 9], offset=np.array([1, 30]))
    cases.assert_same_bits(packed, x + rows[[1, 2, 3, 4, 30, 31, 32, 33, 34]])


# ---- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"ids": np.ones((2, 5))}, TypeError, "ids must be integers, got float64.* Convert them first"),
        ({"ids": np.ones((2, 5), bool)}, TypeError, r"ids must be integers, got bool of shape \(2, 5\)\.$"),
        ({"ids": np.array([[0, -1]])}, IndexError, r"ids must lie in \[0, 40\), got -1 at index \(0, 1\)"),
        ({"ids": np.array([[0, 40]])}, IndexError, r"got 40 at index \(0, 1\)"),
        ({"ids": np.array([2**64 - 1], np.uint64)}, IndexError, "got 18446744073709551615"),
        ({"ids": "text"}, TypeError, "ids must be a number"),
        ({"table": np.ones((4, 5), complex)}, TypeError, "table must be a floating-point array"),
        ({"table": np.ones((4, 5), np.int32)}, TypeError, "table must be a floating-point array"),
        ({"table": np.ones(5)}, ValueError, r"table must have shape \(rows, D\)"),
        ({"table": np.ones((0, 5))}, ValueError, r"table must have shape \(rows, D\)"),
        ({"table": np.ones((5, 40)).T}, ValueError, r"rows of contiguous elements.*Pass a copy of table"),
        ({"table": words("int8")}, ValueError, "row_scale must be given for an int8 table"),
        ({"table": words("int8"), "row_scale": np.ones(3)}, ValueError, r"row_scale must be \(40,\) real numbers"),
        ({"row_scale": np.ones(ROWS)}, ValueError, "row_scale is for int8 and uint8 tables"),
        ({"scale": np.inf}, ValueError, "scale must be finite"),
        ({"scale": 1e39}, ValueError, "scale must be finite in float32"),
        ({"encoding": 3}, TypeError, "encoding must be an encoding"),
        ({"encoding": None, "offset": 3}, ValueError, "offset needs an encoding"),
        ({"encoding": None, "positions": [0, 1, 2, 3, 4]}, ValueError, "positions needs an encoding"),
        ({"token_types": np.ones((2, 5), int)}, TypeError, r"token_types must be a pair \(ids, table\)"),
        ({"token_types": (np.ones((2, 5), int), None)}, TypeError, r"token_types must be a pair \(ids, table\)"),
        ({"row_scale": (None, 128)}, ValueError, "row_scale is for int8 and uint8 tables"),
        ({"token_types": (np.ones((2, 4), int), words(rows=2))}, ValueError, r"must have the shape of ids, \(2, 5\)"),
        ({"token_types": (np.full((2, 5), 2), words(rows=2))}, IndexError, r"the ids of token_types must lie in \[0, 2\)"),
        ({"token_types": (np.ones((2, 5), int), words(width=8))}, ValueError, "must have the table's width, 24"),
        ({"encoding": Learned(words(width=8))}, ValueError, "must have the width of the array, 24"),
        ({"encoding": Learned(words(rows=3))}, IndexError, r"the table's \[0, 3\), got 3 at row 3 of sequence 0"),
        ({"encoding": Learned(words()), "positions": np.arange(5) / 2}, TypeError, "positions of a table must be integers"),
        ({"dtype": "int8"}, TypeError, "dtype must be one of"),
        ({"mask": np.ones((2, 5), int)}, TypeError, "mask must be booleans"),
        ({"padding_idx": 1.5}, TypeError, "padding_idx must be an integer"),
        ({"padding_idx": -1}, ValueError, r"padding_idx must lie in \[0, 40\), got -1"),
        ({"padding_idx": 40}, ValueError, r"padding_idx must lie in \[0, 40\), got 40"),
        ({"padding_idx": 1, "mask": np.ones((2, 5), int)}, TypeError, "mask must be booleans"),
        ({"padding_idx": 1, "mask": np.ones((2, 4), bool)}, ValueError, "mask must have shape"),
        ({"padding_idx": 1, "ids": np.zeros((2, 2, 5), int)}, ValueError, "padding_idx needs ids of shape"),
        ({"out": np.zeros((2, 5, 23), np.float32)}, ValueError, r"out must have shape \(2, 5, 24\)"),
        ({"out": np.zeros((2, 5, 24), np.float16), "dtype": "float32"}, TypeError, "out must have dtype float32"),
        ({"out": np.broadcast_to(np.float32(0), (2, 5, 24))}, ValueError, "out must"),
        ({"validate": 1}, TypeError, "validate must be True or False"),
    ],
)
def test_nothing_is_written_when_the_call_is_wrong(change, error, text):
    given = {"ids": some_ids(2, 5), "table": words(), "encoding": Sinusoidal(), **change}
    shape = np.shape(given["ids"]) if not isinstance(given["ids"], str) else (2, 5)
    given.setdefault("out", np.full((*shape, given["table"].shape[-1]), 7, np.float32 if "dtype" not in change else None))
    before = np.array(given["out"])
    with pytest.raises(error, match=text):
        fastpe.embed(given.pop("ids"), given.pop("table"), given.pop("encoding"), **given)
    assert (np.array(given["out"]) == before).all()


def test_the_result_must_not_overlap_what_is_read():
    buffer = cases.random((60, 24), "float32")
    before = buffer.copy()
    for out in (buffer[:10], buffer[30:40], buffer[::2][:10]):
        with pytest.raises(ValueError, match="the result must lie apart from the table"):
            fastpe.embed(some_ids(10), buffer[:ROWS], out=out)
    cases.assert_same_bits(buffer, before)
    fastpe.embed(some_ids(10), buffer[:ROWS], out=buffer[ROWS : ROWS + 10])
    for call in (
        lambda: fastpe.add_encoding(buffer[3:10], Learned(buffer)),
        lambda: fastpe.add_encoding(buffer[:10], Learned(buffer[:10])),
        lambda: fastpe.embed(some_ids(10), words(), Learned(buffer[:ROWS]), out=buffer[ROWS - 1 : ROWS + 9]),
    ):
        with pytest.raises(ValueError, match="the result must lie apart from the learned table"):
            call()
    with pytest.raises(ValueError, match="out_of_range must be one of 'error', 'clip'"):
        Learned(words(), "wrap")
    with pytest.raises(TypeError, match="table must be a floating-point array"):
        Learned(words("int8"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", ["ids", "the ids of token_types"])
@pytest.mark.parametrize("bad", [-1, 5, 6, 2**40, -(2**63)])
def test_ids_that_change_after_they_were_looked_at(bad, which, dtype, monkeypatch):
    """Another thread may write them: the kernel makes a NaN row of an id that is in no table, and reads no other memory."""
    check, table = embed._ids, cases.random((8, 6), dtype)[1:6]

    def check_and_change(library, memory, name, ids, *more):
        checked = check(library, memory, name, ids, *more)
        if name == which:
            ids[1, 0] = bad
        return checked

    for encoding in (None, "sinusoidal"):
        for has_types in {True, which != "ids"}:
            ids, kinds = np.array([[0, 4], [1, 3]]), np.array([[4, 2], [2, 0]])
            types = {"token_types": (kinds, table)} if has_types else {}
            rows = fastpe.embed(ids, table, encoding, **types)
            rows[1, 0] = np.nan
            with monkeypatch.context() as patch:
                patch.setattr(embed, "_ids", check_and_change)
                fastpe.clear_caches()
                got = fastpe.embed(ids, table, encoding, **types)
            assert np.isnan(got[1, 0].astype(np.float32)).all()
            got[1, 0] = np.nan
            cases.assert_same_bits(got, rows)
