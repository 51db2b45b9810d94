"""Properties over random shapes, element types, strides, encodings and positions."""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpe

settings.register_profile("fastpe", deadline=None, max_examples=150, derandomize=True)
settings.load_profile("fastpe")

dtypes = st.sampled_from(list(cases.DTYPES))
encodings = st.builds(
    fastpe.Sinusoidal,
    base=st.sampled_from([10000.0, 500_000.0, 2.5]),
    layout=st.sampled_from(cases.LAYOUTS),
    cos_first=st.booleans(),
    frequency_shift=st.sampled_from([0, 1, 0.5]),
    amplitude=st.sampled_from([1.0, -0.5, 3.0]),
    position_scale=st.sampled_from([1.0, 0.25, 7.5]),
    zero_pad=st.booleans(),
)
integers = st.integers(-(2**31), 2**31 - 1)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 40))


def as_arguments(encoding):
    return {
        name: getattr(encoding, name) for name in (field.name for field in dataclasses.fields(encoding)) if name != "scaling"
    }


@given(encoding=encodings, shape=shapes, dtype=dtypes, offset=st.integers(-(2**31), 2**31 - 21), scale=st.floats(-4, 4))
def test_adds_the_formula(encoding, shape, dtype, offset, scale):
    x = cases.random(shape, dtype)
    scale = float(np.float32(scale))
    positions = np.broadcast_to(np.arange(offset, offset + shape[1]), shape[:2])
    expected = reference.add(x, positions, input_scale=scale, **as_arguments(encoding))
    fastpe.add_encoding(x, encoding, offset=offset, input_scale=scale)
    # The rounding of x*scale counts too; float64 angles err by 2^-65 turn a position.
    rounding = 16 * cases.UNIT[dtype] + (2.0**-64 * 2 * np.pi * 2**31 * abs(encoding.amplitude) if dtype == "float64" else 0)
    cases.assert_close(x, expected, dtype, amplitude=encoding.amplitude, position_error=rounding)


@given(
    encoding=encodings, positions=st.lists(integers | st.floats(-1e6, 1e6), min_size=1, max_size=12), width=st.integers(1, 40)
)
def test_encode_follows_the_formula(encoding, positions, width):
    positions = np.array(positions, np.float64)
    got = fastpe.encode(positions, width, encoding)
    expected = reference.sinusoidal(positions, width, **as_arguments(encoding))
    rounding = 2.0**-33 * 10 * abs(encoding.amplitude)
    cases.assert_close(got, expected, "float32", amplitude=encoding.amplitude, position_error=rounding)


@given(
    encoding=encodings,
    shape=shapes,
    dtype=dtypes,
    view=st.sampled_from(list(cases.VIEWS)),
    out_view=st.sampled_from(list(cases.VIEWS)),
    offset=st.integers(-100, 10**6),
)
def test_strides_change_nothing(encoding, shape, dtype, view, out_view, offset):
    plain = cases.random(shape, dtype)
    expected = fastpe.add_encoding(plain.copy(), encoding, offset=offset)
    x, out = cases.VIEWS[view](plain), cases.VIEWS[out_view](np.zeros_like(plain))
    fastpe.add_encoding(x, encoding, offset=offset, out=out)
    cases.assert_same_bits(out, expected)
    fastpe.add_encoding(x, encoding, offset=offset)
    cases.assert_same_bits(x, expected)


@given(data=st.data(), encoding=encodings, batch=st.integers(1, 4), rows=st.integers(1, 24), dtype=dtypes)
def test_positions_masks_and_boundaries(data, encoding, batch, rows, dtype):
    """Each row of the result is the encoding of the position that the slow reference gives it, bit for bit."""
    given_: dict = {}
    if data.draw(st.booleans(), "mask"):
        shape = (batch, rows) if data.draw(st.booleans(), "mask for each sequence") else (rows,)
        given_["mask"] = np.array(data.draw(st.lists(st.booleans(), min_size=rows * batch, max_size=rows * batch))).reshape(-1)[
            : int(np.prod(shape))
        ]
        given_["mask"] = given_["mask"].reshape(shape)
    way = data.draw(st.sampled_from(["offset", "offsets", "positions", "cu_seqlens"]))
    if way == "offset":
        given_["offset"] = data.draw(st.integers(-1000, 10**6))
    elif way == "offsets":
        given_["offset"] = np.array(data.draw(st.lists(st.integers(-1000, 1000), min_size=batch, max_size=batch)))
    elif way == "positions":
        values = data.draw(st.lists(integers, min_size=batch * rows, max_size=batch * rows))
        given_["positions"] = np.array(values).reshape(batch, rows)
    else:
        cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
        given_["cu_seqlens"] = np.array([0, *cuts, rows])
        given_["offset"] = np.arange(len(cuts) + 1) * 100
    x = np.zeros((batch, rows, 6), cases.DTYPES[dtype])
    fastpe.add_encoding(x, encoding, **given_)
    given_where = {k: v for k, v in given_.items() if k != "mask" or "positions" not in given_}
    expected = fastpe.encode(reference.rows((batch, rows), **given_where), 6, encoding, dtype=dtype)
    if "mask" in given_:
        expected = np.where(np.broadcast_to(given_["mask"], (batch, rows))[..., None], expected, expected.dtype.type(0))
    x += x.dtype.type(0)  # adding to zero may leave a zero of either sign
    cases.assert_same_bits(x, expected + expected.dtype.type(0))


@given(data=st.data(), rank=st.integers(2, 5), dtype=st.sampled_from(["float32", "float16"]))
def test_any_rank_axis_order_and_slices(data, rank, dtype):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    order = data.draw(st.permutations(range(rank)))
    steps = data.draw(st.lists(st.sampled_from([1, 2, -1]), min_size=rank, max_size=rank))
    stored = tuple(shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True))
    memory = np.zeros(stored, cases.DTYPES[dtype])
    view = memory[tuple(slice(None, None, step) for step in steps)].transpose(np.argsort(order))
    assert view.shape == shape
    axis = data.draw(st.integers(0, rank - 2))
    fastpe.add_encoding(view, seq_axis=axis, offset=3)
    table = fastpe.encode(np.arange(3, 3 + shape[axis]), shape[-1], dtype=dtype)
    expected = np.broadcast_to(table.reshape([shape[axis] if a == axis else 1 for a in range(rank - 1)] + [-1]), shape)
    cases.assert_same_bits(view + view.dtype.type(0), expected + view.dtype.type(0))
    assert np.count_nonzero(memory) == np.count_nonzero(view)


def test_checkers_can_fail():
    """assert_close and assert_same_bits fail on a wrong value, shape, dtype and NaN."""
    right = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    wrong = right.copy()
    wrong[1, 2] += np.float32(1e-6)
    nan = right.copy()
    nan[0, 0] = np.nan
    for check in (
        cases.assert_same_bits,
        lambda got, expected: cases.assert_close(got, expected.astype(np.float64), "float32"),
    ):
        check(right.copy(), right)
        for bad in (wrong, nan, right.astype(np.float64), right[:2], right.reshape(4, 3)):
            try:
                check(bad, right)
            except AssertionError:
                continue
            raise RuntimeError(f"{check} accepts a wrong array")


# ---- rotations ---------------------------------------------------------------------------------------------------------------

rotaries = st.builds(
    fastpe.Rotary,
    base=st.sampled_from([10000.0, 500_000.0, 100.0]),
    interleaved=st.booleans(),
    rotary_dim=st.sampled_from([2, 8, 14]),
    rotary_offset=st.integers(0, 4),
)
heads = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(18, 40))


@given(
    encoding=rotaries, shape=heads, dtype=dtypes, offset=st.integers(-(2**31), 2**31 - 10), seq_axis=st.sampled_from([-2, -3])
)
def test_rotates_by_the_formula(encoding, shape, dtype, offset, seq_axis):
    """Within the error of the type, in units of the pair's norm; k with fewer heads alike, and channels beside the pairs untouched."""
    shape = shape if seq_axis == -2 else (shape[0], shape[2], shape[1], shape[3])
    q = cases.random(shape, dtype)
    k = (q[:, :1] if seq_axis == -2 else q[:, :, :1]).copy()
    angle = reference.angles(
        np.arange(offset, offset + shape[seq_axis]), reference.angular_frequencies(encoding.rotary_dim, encoding.base)
    )
    angle = angle if seq_axis == -2 else angle[:, None]
    layout = {"interleaved": encoding.interleaved, "rotary_offset": encoding.rotary_offset}
    expected = reference.rotate(q, np.cos(angle), np.sin(angle), **layout)
    norm = reference.pair_norms(q, encoding.rotary_dim // 2, **layout)
    unit = {"float32": 2e-7, "float64": 2e-9, "float16": 2.0**-11 + 2e-7, "bfloat16": 2.0**-8 + 2e-7}[dtype]
    fastpe.apply_rotary(q, k, encoding, offset=offset, seq_axis=seq_axis)
    assert (np.abs(q.astype(np.float64) - expected) <= unit * norm).all()
    cases.assert_same_bits(k, np.ascontiguousarray(q[:, :1] if seq_axis == -2 else q[:, :, :1]))


@given(
    encoding=rotaries,
    shape=heads,
    view=st.sampled_from(list(cases.VIEWS)),
    out_view=st.sampled_from(list(cases.VIEWS)),
    offset=st.integers(-100, 10**6),
)
def test_strides_change_no_rotation(encoding, shape, view, out_view, offset):
    plain = cases.random(shape, "float32")
    expected = fastpe.apply_rotary(plain.copy(), None, encoding, offset=offset)
    x, out = cases.VIEWS[view](plain), cases.VIEWS[out_view](np.zeros_like(plain))
    fastpe.apply_rotary(x, None, encoding, offset=offset, out=out)
    cases.assert_same_bits(out, expected)
    fastpe.apply_rotary(x, None, encoding, offset=offset)
    cases.assert_same_bits(np.ascontiguousarray(x), expected)
    fastpe.apply_rotary(x, None, encoding, offset=offset, inverse=True)
    norm = reference.pair_norms(
        plain, encoding.rotary_dim // 2, interleaved=encoding.interleaved, rotary_offset=encoding.rotary_offset
    )
    assert (np.abs(x - plain) <= 4e-7 * norm).all()
