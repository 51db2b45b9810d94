"""Programs for TPUs and GPUs, in plain operations: run here on the CPU, they compute what the kernels do, up to rounding."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cases import assert_close
from library_rows import ROWS, Row
from verb_cases import CASES

jax = pytest.importorskip("jax")

import jax_versions  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import fastpe  # noqa: E402
import fastpe.jax  # noqa: E402
from fastpe import ALiBi, Grid, Rotary, Sinusoidal  # noqa: E402
from fastpe.jax import _partition  # noqa: E402


class Rounded(Row):
    """Equal to NumPy's up to rounding, not to the bit; what is hidden (-inf) is hidden in both."""

    def check_bits(self, one, expected):
        if (got := self.numpy(one)).dtype.kind in "iub":  # a place, which was given
            assert (got == expected).all()
            return
        got, wide = np.array(got), expected.astype(np.float64)
        hidden = np.isneginf(wide)
        assert (np.isneginf(got.astype(np.float64)) == hidden).all()
        got[hidden], wide[hidden] = 0, 0
        error = 2e-7 if got.dtype.itemsize < 8 else 1e-13
        assert_close(got, wide, str(expected.dtype), position_error=error * np.nanmax(np.abs(wide), initial=1))


PLAIN = Rounded(**vars(ROWS["jax, traced"]))


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


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if PLAIN.error(case) is None])
def test_every_verb_in_plain_operations(name):
    PLAIN.check(CASES[name])


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


@pytest.mark.parametrize("kind", jax_versions.KINDS)
@pytest.mark.parametrize("spec", [P("dp", None, "sp"), P(None, None, ("dp", "sp")), P("dp", "sp")], ids=str)
def test_divided_arrays(kind, spec):
    with jax_versions.mesh_of(kind) as mesh:
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
