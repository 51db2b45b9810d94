"""Every verb on arrays of JAX, at once, under ``jit``, and with traced places: the bits of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from library_cases import Case, cases

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Grid  # noqa: E402

NAMES = [case.name for case in cases("float32")]


def case_of(name: str, dtype: str) -> Case:
    return next(case for case in cases(dtype) if case.name == name)


def moved(value: Any) -> Any:
    """NumPy's arrays as JAX's, at any depth."""
    return jax.tree.map(lambda one: jnp.asarray(one) if isinstance(one, np.ndarray) else one, value)


def check(results: Any, case: Case) -> None:
    for result, expected in zip(results, case.expected(), strict=True):
        assert isinstance(result, jax.Array)
        got = np.asarray(result)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


def example(case: Case) -> dict[str, Any]:
    """An array of JAX where a verb would otherwise make one of NumPy."""
    return {"like": jnp.zeros(1)} if case.verb == "encode" else {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_jax_get_the_bits_of_numpy(name, dtype):
    if name.startswith("encode") and dtype != "float32":
        return
    case = case_of(name, dtype)
    arrays, keywords = moved(case.arrays), moved(case.keywords)
    before = [np.array(array) for array in arrays]
    check(case._replace(keywords={**keywords, **example(case)}).call(arrays, case.places), case)
    for array, was in zip(arrays, before, strict=True):
        assert np.asarray(array).tobytes() == was.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_traced_arrays_and_places_get_the_bits_of_numpy(name):
    case = case_of(name, "float32")
    static = (
        {name: value for name, value in case.places.items() if name == "delta" and type(value) is int} if "base" in name else {}
    )
    places = moved({name: jnp.asarray(value) for name, value in case.places.items() if name not in static})
    keywords = {**moved(case.keywords), **example(case)}

    def function(arrays, places):
        return case._replace(keywords=keywords).call(arrays, {**places, **static})

    with jax.check_tracer_leaks():
        results = jax.jit(function)(moved(case.arrays), places)
    check(results, case)


def test_float64_has_the_bits_of_numpy():
    with jax.enable_x64(True):
        for case in cases("float64"):
            if case.verb != "encode":
                results = case._replace(keywords=moved(case.keywords)).call(moved(case.arrays), case.places)
                check(results, case)


def test_donated_buffers_are_written_in_place():
    x = np.random.default_rng(0).standard_normal((4, 300, 512)).astype(np.float32)
    given = jnp.asarray(x.copy())
    place = given.unsafe_buffer_pointer()
    made = jax.jit(lambda x, offset: fastpe.add_encoding(x, offset=offset), donate_argnums=0)(given, 9)
    assert made.unsafe_buffer_pointer() == place
    assert (np.asarray(made) == fastpe.add_encoding(x, offset=9)).all()


@pytest.mark.parametrize("options", [{}, {"extent": (6, 8)}, {"column_major": True}], ids=str)
def test_arrays_with_the_axes_of_a_grid(options):
    grid = Grid((3, 4), **options)
    x = np.random.default_rng(1).standard_normal((5, 2, 3, 4, 24)).astype(np.float32)
    expected = np.stack([fastpe.add_encoding(one.copy(), grid) for one in x])
    function = jax.jit(lambda x: fastpe.add_encoding(x, grid))
    assert (np.stack([function(one) for one in x]) == expected).all()
    assert (jax.vmap(function)(x) == expected).all()
    flat = x.reshape(5, 2, 12, 24)
    assert (jax.vmap(function, 1, 1)(flat).reshape(x.shape) == expected).all()
    assert (jax.grad(lambda x: function(x).sum())(x[0]) == 1).all()
