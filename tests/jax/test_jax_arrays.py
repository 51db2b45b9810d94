"""Encodings and biases that hold arrays: tables, slopes and layers as arrays of JAX, with gradients; NumPy's arrays say what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import assert_close

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

import fastpe  # noqa: E402
from fastpe import FIRE, ALiBi, Kerple, Learned, Rotary, T5Bias  # noqa: E402

MASK = np.array([[1, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1, 1]], bool)
PLACES: dict[str, dict[str, Any]] = {
    "default": {},
    "offset": {"offset": 3},
    "offsets": {"offset": np.array([5, 2], np.int32)},
    "positions": {"positions": np.array([6, 5, 0, 9, 1, 1, 3], np.int32)},
    "by_sequence": {"positions": np.arange(14, dtype=np.int32).reshape(2, 7) % 5},
    "mask": {"mask": MASK},
    "cu_seqlens": {"cu_seqlens": np.array([0, 3, 3, 7], np.int32)},
}


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(made: Any, expected: np.ndarray) -> None:
    assert isinstance(made, jax.Array)
    assert_close(made, expected.astype(np.float64), str(expected.dtype))


@pytest.mark.parametrize("place", PLACES)
def test_learned_tables(place):
    places, traced = PLACES[place], {name: jnp.asarray(value) for name, value in PLACES[place].items()}
    x, table, ids, words = (
        numbers(2, 7, 8),
        numbers(12, 8, seed=2),
        np.arange(14, dtype=np.int32).reshape(2, 7) % 6,
        numbers(6, 8),
    )

    @jax.jit
    def added(x, table, places):
        return fastpe.add_encoding(x, Learned(table), input_scale=2.0, **places)

    expected = fastpe.add_encoding(x.copy(), Learned(table), input_scale=2.0, **places)
    same(added(x, table, traced), expected)
    same(fastpe.add_encoding(jnp.asarray(x), Learned(table), input_scale=2.0, **places), expected)  # a table of NumPy's
    made = jax.jit(lambda table, places: fastpe.embed(ids, jnp.asarray(words), Learned(table), **places))(table, traced)
    same(made, fastpe.embed(ids, words, Learned(table), **places))
    weights = numbers(2, 7, 8, seed=3)
    gradient = jax.grad(lambda table: (added(x, table, traced) * weights).sum())(jnp.asarray(table))
    steps = [np.eye(12, dtype=np.float32)[:, [row]] * np.ones(8, np.float32) for row in range(12)]
    moved = [fastpe.add_encoding(x.copy(), Learned(table + step), input_scale=2.0, **places) - expected for step in steps]
    np.testing.assert_allclose(gradient.sum(-1), [(one * weights).sum() for one in moved], atol=1e-4)


def test_positions_outside_of_a_table():
    table, x = jnp.ones((4, 8)), jnp.zeros((6, 8))
    positions = jnp.array([0, 3, 4, -1, 2, 9], jnp.int32)
    made = np.asarray(fastpe.add_encoding(x, Learned(table), positions=positions))
    assert np.isnan(made).all(-1).tolist() == [False, False, True, True, False, True]
    clipped = Learned(jnp.arange(4.0)[:, None] * jnp.ones(8), out_of_range="clip")
    assert fastpe.add_encoding(x, clipped, positions=positions)[:, 0].tolist() == [0, 3, 3, 0, 2, 3]


@pytest.mark.parametrize("options", [{}, {"interleaved": True, "rotary_offset": 2}], ids=str)
def test_tables_of_cosines_and_sines(options):
    q, angles = numbers(2, 3, 7, 16), numbers(20, 6)
    positions = np.array([[6, 5, 0, 9, 1, 1, 19], [0, 1, 2, 3, 4, 5, 6]], np.int32)

    @jax.jit
    def rotated(q, angles, positions):
        encoding = Rotary.tabulated(jnp.cos(angles), jnp.sin(angles), **options)
        return fastpe.apply_rotary(q, None, encoding, positions=positions)

    table = Rotary.tabulated(np.cos(angles), np.sin(angles), **options)
    same(rotated(q, angles, positions), fastpe.apply_rotary(q.copy(), None, table, positions=positions))
    tangent = numbers(20, 6, seed=4)
    weights = numbers(2, 3, 7, 16, seed=5)
    gradient = jax.grad(lambda angles: (rotated(q, angles, positions) * weights).sum())(angles)
    near = [rotated(q, angles + step * tangent, positions) for step in (1e-2, -1e-2)]
    np.testing.assert_allclose((gradient * tangent).sum(), ((near[0] - near[1]) * weights).sum() / 2e-2, rtol=1e-3)


LAYERS = {
    "w1": numbers(8, 1),
    "b1": numbers(8),
    "w2": numbers(4, 8),
    "b2": numbers(4),
    "c": np.float32([0.3]),
    "length": np.float32([6]),
}
BIASES: dict[str, tuple[Any, dict[str, np.ndarray]]] = {
    "slopes": (lambda slopes: ALiBi(4, slopes=slopes), {"slopes": np.float32([0.5, 0.25, 1.0, 0.1])}),
    "kerple": (Kerple, {"p": np.float32([1.0, 0.5, 0.3, 2.0]), "a": np.float32([0.5, 0.1, 1.0, 0.2])}),
    "t5": (T5Bias, {"table": numbers(32, 4)}),
    "fire": (lambda **layers: FIRE(**layers), LAYERS),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_learned_biases_and_their_gradients(name, causal):
    torch = pytest.importorskip("torch")
    make, parameters = BIASES[name]
    scores, weights = numbers(2, 4, 5, 9), numbers(2, 4, 5, 9, seed=2)
    options = {"causal": causal, "q_offset": 4, "input_scale": 0.5}

    @jax.jit
    def biased(scores, parameters):
        return fastpe.add_bias(scores, make(**parameters), **options)

    made, expected = biased(scores, parameters), fastpe.add_bias(scores.copy(), make(**parameters), **options)
    assert (np.isneginf(made) == np.isneginf(expected)).all()
    np.testing.assert_allclose(made, expected, rtol=2e-6, atol=2e-6)

    def loss(scores, parameters):
        made = biased(scores, parameters)
        return jnp.where(jnp.isfinite(made), made * weights, 0).sum()

    at_scores, gradients = jax.grad(loss, (0, 1))(
        jnp.asarray(scores), {key: jnp.asarray(one) for key, one in parameters.items()}
    )
    tensors = {key: torch.tensor(one, requires_grad=True) for key, one in parameters.items()}
    given = torch.tensor(scores, requires_grad=True)
    from fastpe.torch import functional

    result = functional.add_bias(given, make(**tensors), **options)
    torch.where(result.isfinite(), result * torch.tensor(weights), 0.0).sum().backward()
    np.testing.assert_allclose(at_scores, given.grad, rtol=1e-6)
    for key, tensor in tensors.items():
        np.testing.assert_allclose(gradients[key], tensor.grad, rtol=2e-4, atol=2e-5, err_msg=key)


def test_learned_slopes_at_positions():
    scores, slopes = numbers(2, 4, 5, 9), np.float32([0.5, 0.25, 1.0, 0.1])
    places = {"q_positions": np.array([[3, 9, 1, 0, 77], [0, 1, 2, 3, 4]], np.int32)}
    made = jax.jit(lambda slopes, places: fastpe.add_bias(jnp.asarray(scores), ALiBi(4, slopes=slopes), **places))(
        slopes, places
    )
    same(made, fastpe.add_bias(scores.copy(), ALiBi(4, slopes=slopes), **places))


def test_vmap_over_tables():
    x, tables = numbers(3, 7, 8), numbers(3, 9, 8)
    made = jax.vmap(lambda x, table: fastpe.add_encoding(x, Learned(table)))(x, tables)
    for one, given, table in zip(made, x, tables, strict=True):
        same(one, fastpe.add_encoding(given.copy(), Learned(table)))
