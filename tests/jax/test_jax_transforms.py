"""Transforms of JAX: gradients are those of the adjoint, to the bit; ``vmap`` is the same call for each element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from library_rows import ROWS, as_it_is, jax_array
from verb_cases import CASES

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

import fastpe  # noqa: E402
from fastpe import ALiBi, Grid, Rotary, Sinusoidal  # noqa: E402

SAME = "encode/", "no_rows", "wide", "listed", "16/", "64/"  # no array to derive by, no row, and what differs in no rule
LINEAR = [
    name
    for name, case in CASES.items()
    if ROWS["jax"].takes(case) and not ROWS["jax"].error(case) and not any(word in name for word in SAME)
]


def moved(value: Any) -> Any:
    return jax.tree.map(lambda one: jnp.asarray(one) if isinstance(one, np.ndarray) else one, value)


def same(one: Any, other: Any) -> bool:
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def numbers(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- derivatives -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
def test_a_gradient_is_what_differences_say(name):
    """Every verb is linear in its arrays but for what it adds, so a difference of any size is exact up to rounding."""
    case = CASES[name]
    arrays = moved(case.values())
    options = case.converted(as_it_is, jax_array)
    which = [index for index, array in enumerate(arrays) if array is not None and jnp.issubdtype(array.dtype, jnp.floating)]

    def function(*some):
        given = list(arrays)
        for index, one in zip(which, some, strict=True):
            given[index] = one
        return case.call(given, options)

    start = [arrays[index] for index in which]
    steps = [jnp.asarray(numbers(*array.shape, seed=7)) for array in start]
    before, tangents = jax.jvp(function, tuple(start), tuple(steps))
    after = function(*(one + step for one, step in zip(start, steps, strict=True)))
    for one, other, tangent in zip(before, after, tangents, strict=True):
        finite = np.isfinite(one)
        assert finite.any()
        np.testing.assert_allclose(np.asarray(other - one)[finite], np.asarray(tangent)[finite], atol=2e-5)
        assert not np.asarray(tangent)[~finite].any()
    weights = [jnp.where(jnp.isfinite(one), numbers(*one.shape, seed=9), 0) for one in before]
    _, back = jax.vjp(function, *start)
    forward = sum(float(jnp.vdot(tangent, weight)) for tangent, weight in zip(tangents, weights, strict=True))
    backward = sum(float(jnp.vdot(one, step)) for one, step in zip(back(tuple(weights)), steps, strict=True))
    assert abs(forward - backward) < 1e-4 * max(1.0, abs(forward))


def test_the_gradient_of_a_rotation_is_the_inverse_rotation_to_the_bit():
    q, k = numbers(2, 4, 9, 16), numbers(2, 2, 9, 16)
    encoding = Rotary(interleaved=True)

    def loss(q, k):
        q, k = fastpe.apply_rotary(q, k, encoding, offset=5)
        return (q * q).sum() + (3 * k).sum()

    at_q, at_k = jax.jit(jax.grad(loss, argnums=(0, 1)))(q, k)
    assert same(
        at_q,
        fastpe.apply_rotary(
            2 * fastpe.apply_rotary(q.copy(), None, encoding, offset=5), None, encoding, offset=5, inverse=True
        ),
    )
    assert same(at_k, fastpe.apply_rotary(np.full_like(k, 3), None, encoding, offset=5, inverse=True))
    only = jax.grad(lambda k: loss(jnp.asarray(q), k))(jnp.asarray(k))
    assert same(only, at_k)


def test_the_gradient_of_a_table_adds_up_its_rows():
    ids = np.array([[1, 4, 1], [0, 1, 2]], np.int32)
    table, weights = numbers(5, 8), numbers(2, 3, 8)
    loss = jax.jit(jax.grad(lambda table: (fastpe.embed(ids, table, Sinusoidal(), scale=2.0) * weights).sum()))
    expected = np.zeros_like(table)
    np.add.at(expected, ids, 2 * weights)
    np.testing.assert_allclose(loss(table), expected, rtol=1e-6)


def test_gradients_go_through_scan_and_checkpoint():
    weights, x = numbers(3, 16, 16) * 0.3, numbers(2, 5, 16)

    def layer(x, w):
        return fastpe.apply_rotary((x @ w).reshape(2, 5, 2, 8), seq_axis=1, offset=3).reshape(2, 5, 16), None

    def plain(weights):
        y = x
        for w in weights:
            y, _ = layer(y, w)
        return (y * y).sum()

    scanned = jax.jit(jax.grad(lambda weights: (jax.lax.scan(jax.checkpoint(layer), x, weights)[0] ** 2).sum()))
    np.testing.assert_allclose(scanned(weights), jax.grad(plain)(jnp.asarray(weights)), rtol=1e-4, atol=1e-5)


def test_donated_buffers_are_written_in_place():
    x = numbers(4, 300, 512)
    given = jnp.array(x)
    place = given.unsafe_buffer_pointer()
    made = jax.jit(lambda x, offset: fastpe.add_encoding(x, offset=offset), donate_argnums=0)(given, 9)
    assert made.unsafe_buffer_pointer() == place
    assert same(made, fastpe.add_encoding(x, offset=9))


@pytest.mark.parametrize("donated", [(), (0,), (1,), (0, 1)])
def test_arguments_are_copied_by_nobody(donated):
    """What is donated is written in place; what is not is read where it lies, and the result written beside it."""
    q, k = numbers(2, 4, 30, 64), numbers(2, 2, 30, 64)
    given = [jnp.array(one) for one in (q, k)]
    places = [one.unsafe_buffer_pointer() for one in given]
    program = jax.jit(lambda q, k: fastpe.apply_rotary(q, k, offset=9), donate_argnums=donated).lower(*given).compile()
    assert "copy(" not in program.as_text()
    made = program(*given)
    assert [made[i].unsafe_buffer_pointer() == places[i] for i in range(2)] == [i in donated for i in range(2)]
    assert all(same(given[i], (q, k)[i]) for i in range(2) if i not in donated)
    assert all(map(same, made, fastpe.apply_rotary(q, k, offset=9)))


def test_what_is_used_later_is_kept():
    """In a program results take the places of what ends there; XLA copies what does not."""
    x = numbers(2, 4, 30, 64)
    made = jax.jit(lambda x: (y := x + 1, fastpe.add_encoding(y), fastpe.add_encoding(y, offset=3)))(x)
    assert all(map(same, made, (x + 1, fastpe.add_encoding(x + 1), fastpe.add_encoding(x + 1, offset=3))))


# ---- vmap --------------------------------------------------------------------------------------------------------------------

VMAPPED = {
    "x": (numbers(3, 2, 5, 8), None, 0, None),
    "x, moved": (numbers(2, 3, 5, 8), None, 1, None),
    "offset": (numbers(2, 5, 8), np.array([1, 50, -3], np.int32), None, 0),
    "both": (numbers(3, 2, 5, 8), np.array([1, 50, -3], np.int32), 0, 0),
    "both, of a plane": (numbers(3, 5, 8), np.array([1, 50, -3], np.int32), 0, 0),
    "offsets": (numbers(3, 2, 5, 8), np.array([[1, 50], [2, 7], [-3, 0]], np.int32), 0, 0),
    "x beside offsets": (numbers(3, 2, 5, 8), np.array([1, 50], np.int32), 0, None),
}


@pytest.mark.parametrize("verb", [fastpe.add_encoding, fastpe.apply_rotary])
@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_is_the_call_for_each(name, verb):
    x, offset, x_axis, offset_axis = VMAPPED[name]
    function = jax.vmap(lambda x, offset: verb(x, offset=offset), (x_axis, offset_axis))
    made = jax.jit(function)(x, offset if offset is not None else 7)
    expected = [
        verb(
            (x if x_axis is None else np.take(x, index, x_axis)).copy(),
            offset=7 if offset is None else offset if offset_axis is None else offset[index],
        )
        for index in range(3)
    ]
    assert same(made, np.stack(expected))


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5)])
@pytest.mark.parametrize("x_axis", [0, None])
def test_vmap_over_positions_and_masks(shape, x_axis):
    x = numbers(3, 2, 5, 8)
    positions = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) * 7
    mask = positions % 3 != 1
    x = x if x_axis == 0 else x[0]
    axes = (x_axis, 0, 0)
    made = jax.vmap(lambda x, p, m: fastpe.apply_rotary(jnp.asarray(x), positions=p, mask=m), axes)(x, positions, mask)
    for index, one in enumerate(made):
        given = (x if x_axis is None else x[index]).copy()
        assert same(one, fastpe.apply_rotary(given, positions=positions[index], mask=mask[index]))


def test_vmap_of_other_verbs():
    ids, table = np.array([[1, 4, 1], [0, 1, 2]], np.int32), numbers(5, 8)
    made = jax.vmap(lambda ids, offset: fastpe.embed(ids, jnp.asarray(table), Sinusoidal(), offset=offset))(
        ids, np.array([3, 9], np.int32)
    )
    assert same(made, [fastpe.embed(one, table, Sinusoidal(), offset=offset) for one, offset in zip(ids, (3, 9), strict=True)])
    tables = numbers(2, 5, 8)
    made = jax.vmap(lambda ids, table: fastpe.embed(ids, table, Sinusoidal()))(ids, tables)
    assert same(made, [fastpe.embed(one, table, Sinusoidal()) for one, table in zip(ids, tables, strict=True)])
    scores = numbers(3, 2, 4, 5, 5)
    made = jax.vmap(lambda scores, offset: fastpe.add_bias(scores, ALiBi(4), q_offset=offset))(
        scores, np.array([3, 9, 0], np.int32)
    )
    assert same(made, [fastpe.add_bias(one.copy(), ALiBi(4), q_offset=q) for one, q in zip(scores, (3, 9, 0), strict=True)])
    k = numbers(3, 2, 4, 5, 8)
    made = jax.vmap(lambda k, delta: fastpe.rerotate(k, delta))(k, np.array([3, -9, 0], np.int32))
    assert same(made, [fastpe.rerotate(one.copy(), delta) for one, delta in zip(k, (3, -9, np.int32(0)), strict=True)])
    rules = {"source": Rotary(), "target": Rotary(base=5e5)}
    made = jax.vmap(lambda k, delta, offset: fastpe.rerotate(k, delta, offset=offset, **rules))(
        k, np.int32([3, -9, 0]), np.int32([7, 90, 1])
    )
    given = zip(k, (3, -9, np.int32(0)), (7, 90, 1), strict=True)
    assert same(made, [fastpe.rerotate(one.copy(), delta, offset=offset, **rules) for one, delta, offset in given])
    made = jax.vmap(lambda positions: fastpe.encode(positions, 8))(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert same(made, fastpe.encode(np.arange(6).reshape(2, 3), 8))
    made = jax.vmap(lambda one, offset: fastpe.embed(one, jnp.asarray(table), Sinusoidal(), offset=offset))(
        ids[0], np.arange(3)
    )
    assert same(made, [fastpe.embed(one, table, Sinusoidal(), offset=offset) for offset, one in enumerate(ids[0])])
    loss = jax.vmap(jax.grad(lambda k, offset: (fastpe.apply_rotary(k, offset=offset) ** 2).sum()))
    np.testing.assert_allclose(loss(k[:, 0], np.arange(3)), 2 * k[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 8), (5, 3, 4, 8), (12, 8), (5, 12, 8)], ids=str)
def test_vmap_of_pictures_is_one_call(shape):
    """Each picture has the grid's own rows, or the same positions."""
    x, grid, mask = (
        numbers(2, *shape),
        Grid((3, 4), extent=2.0),
        np.arange(12).reshape(shape[-3:-1] if 4 in shape[:-1] else 12) % 3 > 0,
    )
    positions = np.random.default_rng(1).standard_normal((2, 12)).astype(np.float32)
    for options in ({}, {"mask": mask}, {"positions": positions}):
        function = jax.vmap(lambda x, options=options: fastpe.add_encoding(x, grid, **options))
        assert same(function(x), np.stack([fastpe.add_encoding(one.copy(), grid, **options) for one in x]))
        assert "scan" not in str(jax.make_jaxpr(function)(x))


def test_vmap_of_grid_positions_of_sequences_beside_a_mask_of_rows():
    grid, x = fastpe.Grid(None, axes=(0, 1)), np.zeros((3, 4, 6, 8), np.float32)
    given = {"positions": np.random.default_rng(0).integers(0, 50, (2, 4, 6)), "mask": np.arange(6) < 1}
    got = jax.vmap(lambda one: fastpe.jax.add_encoding(one, grid, **given))(x)
    assert np.array_equal(got, np.stack([fastpe.add_encoding(one.copy(), grid, **given) for one in x]))


def test_an_axis_may_be_an_integer_of_numpy():
    x = np.zeros((2, 6, 8), np.float32)
    assert np.array_equal(fastpe.jax.add_encoding(jnp.asarray(x), seq_axis=np.int64(1)), fastpe.add_encoding(x, seq_axis=1))
