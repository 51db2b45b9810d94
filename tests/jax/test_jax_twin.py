"""Programs for TPUs and GPUs, in plain operations: run here on the CPU, they compute what the kernels do, up to rounding."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cases import assert_close
from library_cases import Case, cases

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import fastpe  # noqa: E402
import fastpe.jax  # noqa: E402
from fastpe import ALiBi, Grid, Rotary, Sinusoidal  # noqa: E402
from fastpe.jax import _partition  # noqa: E402

NAMES = [case.name for case in cases("float32")]


@pytest.fixture(autouse=True)
def plain_operations(monkeypatch):
    """Programs for the CPU are those for a TPU; and none has the kernels' call."""
    monkeypatch.setattr(_partition, "IN_PLAIN_OPERATIONS", True)
    jax.clear_caches()
    assert "custom_call" not in jax.jit(fastpe.add_encoding).lower(numbers(3, 8)).as_text()
    yield
    jax.clear_caches()


def numbers(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(5).standard_normal(shape).astype(np.float32))


def moved(value: Any) -> Any:
    return jax.tree.map(lambda one: jnp.asarray(one) if isinstance(one, np.ndarray) else one, value)


def check(results: Any, case: Case) -> None:
    for result, expected in zip(results, case.expected(), strict=True):
        got, wide = np.array(result), expected.astype(np.float64)
        hidden = np.isneginf(wide)
        assert (np.isneginf(got.astype(np.float64)) == hidden).all()
        got[hidden], wide[hidden] = 0, 0
        assert_close(got, wide, str(expected.dtype), position_error=2e-7 * np.nanmax(np.abs(wide), initial=1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_verb_in_plain_operations(name, dtype):
    if name.startswith("encode") and dtype != "float32":
        return
    case = next(case for case in cases(dtype) if case.name == name)
    static = (
        {name: value for name, value in case.places.items() if name == "delta" and type(value) is int} if "base" in name else {}
    )
    places = moved({name: jnp.asarray(value) for name, value in case.places.items() if name not in static})
    keywords = {**moved(case.keywords), **({"like": jnp.zeros(1)} if case.verb == "encode" else {})}

    def function(arrays, places):
        return case._replace(keywords=keywords).call(arrays, {**places, **static})

    with jax.check_tracer_leaks():
        results = jax.jit(function)(moved(case.arrays), places)
    check(results, case)


def test_float64_in_plain_operations():
    with jax.enable_x64(True):
        for case in cases("float64"):
            if case.verb != "encode":
                results = case._replace(keywords=moved(case.keywords)).call(moved(case.arrays), case.places)
                for result, expected in zip(results, case.expected(), strict=True):
                    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-13)


def test_far_positions_are_exact():
    positions = np.array([2**31 - 1, -(2**31), 2_000_000_011, 0], np.int32)
    made = fastpe.encode(jnp.asarray(positions), 128, Sinusoidal())
    assert np.abs(made - fastpe.encode(positions, 128, dtype="float64")).max() < 2e-7


def test_grids_and_rows_at_no_position():
    grid, x = Grid((3, 4)), numbers(2, 12, 24)
    assert_close(fastpe.add_encoding(x, grid), fastpe.add_encoding(np.array(x), grid).astype(np.float64), "float32")
    positions = np.random.default_rng(1).integers(0, 9, (2, 2, 12))
    made = fastpe.add_encoding(x, grid, positions=jnp.asarray(positions, jnp.int32))
    assert_close(made, fastpe.add_encoding(np.array(x), grid, positions=positions).astype(np.float64), "float32")
    picture, stretched = x.reshape(2, 3, 4, 24), Grid((3, 4), extent=(6, 8))
    expected = fastpe.add_encoding(np.array(picture), stretched)
    assert_close(fastpe.add_encoding(picture, stretched), expected.astype(np.float64), "float32")
    made = fastpe.encode(None, 24, grid, like=x)
    assert_close(made, fastpe.encode(None, 24, grid).astype(np.float64), "float32")
    made = fastpe.add_encoding(x[0, :4], positions=jnp.array([0.0, np.nan, 1.0, 3e9], jnp.float32))
    assert np.isnan(made).all(-1).tolist() == [False, True, False, True]
    made = fastpe.embed(jnp.array([0, 3, -1, 2]), jnp.ones((3, 8)), Sinusoidal())
    assert np.isnan(made).all(-1).tolist() == [False, True, True, False]


def test_transforms():
    q, offsets = numbers(3, 2, 5, 8), jnp.array([1, 50, -3], jnp.int32)

    def rotated(q, offset):
        return fastpe.apply_rotary(q, None, Rotary(interleaved=True), offset=offset)

    made = jax.jit(jax.vmap(rotated))(q, offsets)
    for one, x, offset in zip(made, q, offsets, strict=True):
        expected = fastpe.apply_rotary(np.array(x), None, Rotary(interleaved=True), offset=int(offset))
        assert_close(one, expected.astype(np.float64), "float32")
    gradient = jax.jit(jax.grad(lambda q: (rotated(q, 7) ** 2).sum()))(q)
    np.testing.assert_allclose(gradient, 2 * q, rtol=1e-5, atol=1e-6)
    scanned = jax.lax.scan(lambda carried, offset: (rotated(carried, offset), None), q[0], offsets)[0]
    expected = fastpe.apply_rotary(np.array(q[0]), None, Rotary(interleaved=True), positions=48 + 3 * np.arange(5))
    np.testing.assert_allclose(scanned, expected, atol=2e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("dp", None, "sp"), P(None, None, ("dp", "sp")), P("dp", "sp")], ids=str)
def test_divided_arrays(kind, spec):
    mesh = jax.make_mesh((2, 2), ("dp", "sp"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        x, positions = numbers(4, 2, 32, 16), np.random.default_rng(1).permutation(128).astype(np.int32).reshape(4, 32)
        given = jax.device_put(x, NamedSharding(mesh, spec))
        for place in ({"offset": np.int32(1000)}, {"positions": positions}):
            program = jax.jit(lambda x, place=place: fastpe.apply_rotary(x, **place)).lower(given).compile()
            assert "all-gather" not in program.as_text()
            made = program(given)
            assert made.sharding.is_equivalent_to(given.sharding, 4)
            assert_close(made, fastpe.apply_rotary(np.array(x), **place).astype(np.float64), "float32")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_program_for_a_device_needs_no_kernel_and_no_64_bit_types(platform):
    pytest.importorskip("flatbuffers")
    from jax import export

    def function(q, ids, table, offset):
        q = fastpe.add_bias(fastpe.apply_rotary(q, None, Rotary(xpos_scale_base=512.0), offset=offset), ALiBi(4))
        return q, fastpe.embed(ids, table, Sinusoidal(), offset=offset)

    shapes = [((2, 4, 16, 64), jnp.bfloat16), ((2, 16), jnp.int32), ((100, 64), jnp.float32), ((), jnp.int32)]
    given = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    program = export.export(jax.jit(function), platforms=[platform])(*given).mlir_module()
    assert "custom_call" not in program
    types = set(re.findall(r"tensor<(?:\d+x)*([a-z]+\d+)>", program))
    assert types == {"bf16", "f32", "i32", "ui32", "i1"}
