"""CUDA's way, run on the CPU: XLA calls back, and the simulated GPU's kernels write its buffers; they have the bits of NumPy's arrays."""

from __future__ import annotations

import ctypes
import types
from typing import Any, ClassVar

import numpy as np
import pytest
from library_rows import ROWS, Row, on_simulated_gpu
from verb_cases import CASES

jax = pytest.importorskip("jax")
for needed in ("cupy", "flatbuffers", "jax.experimental.buffer_callback"):
    pytest.importorskip(needed)

import simulated_cupy  # noqa: E402
from jax import export  # noqa: E402
from jax import numpy as jnp  # noqa: E402

import fastpe  # noqa: E402
import fastpe.jax  # noqa: E402
from fastpe import ALiBi, Grid, Rotary  # noqa: E402
from fastpe.jax import _cuda, _partition  # noqa: E402

STREAM = 77


class OfXla(simulated_cupy.UnownedMemory):
    """Memory of XLA's, which the simulated GPU knows during a call; a result may lie where an operand does."""

    known: ClassVar[set[int]] = set()

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        super().__init__(ptr, size, owner, device_id)
        if size and ptr not in self.known:
            self.known.add(ptr)
            simulated_cupy.memory.add(np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(ptr)), name=f"XLA's {size}")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Programs for the CPU are those for a GPU; their calls, each as a text."""
    ran, run = [], _cuda._run

    def on_simulated_stream(call: Any, context: Any, outs: Any, *buffers: Any) -> None:
        ran.append(call)
        launches = len(simulated_cupy.streams)
        try:
            run(call, types.SimpleNamespace(stream=STREAM), outs, *buffers)
        finally:
            for address in OfXla.known:
                simulated_cupy.memory.remove(address)
            OfXla.known.clear()
        assert set(simulated_cupy.streams[launches:]) <= {STREAM}

    with on_simulated_gpu(None) as cupy:
        monkeypatch.setattr(cupy.cuda, "UnownedMemory", OfXla)
        monkeypatch.setattr(_cuda, "_run", on_simulated_stream)
        monkeypatch.setattr(_partition, "on_cpu", _cuda.on_cuda)
        jax.clear_caches()
        yield ran
    jax.clear_caches()


def numbers(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(5).standard_normal(shape).astype(np.float32))


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


TRACED = Row(**vars(ROWS["jax, traced"]))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if TRACED.error(case) is None])
def test_every_verb_has_the_bits_of_kernels(name):
    TRACED.check(CASES[name])


def test_positions_of_a_program_are_those_of_kernels(calls):
    x = numbers(2, 6, 8)
    positions = np.float64([0.25, 2**31 - 1, -(2**31), 1.5e9 + 2**-20, -3.75, 7])
    with jax.enable_x64(True):
        made = fastpe.add_encoding(x, positions=jnp.asarray(positions))
    assert same(made, fastpe.add_encoding(np.array(x), positions=positions))
    made = np.asarray(fastpe.add_encoding(x, positions=jnp.array([0.0, np.nan, 1.0, np.inf, 3e9, -3e9], jnp.float32)))
    assert np.isnan(made).all(-1).tolist() == [[False, True, False, True, True, True]] * 2
    made = np.asarray(jax.jit(lambda x, offset: fastpe.add_encoding(x, offset=offset))(x, jnp.int32(2**31 - 3)))
    assert np.isnan(made).all(-1).tolist() == [[False] * 3 + [True] * 3] * 2
    made = np.asarray(fastpe.add_bias(numbers(4, 2, 2), ALiBi(4), q_positions=jnp.array([3, 2**31], jnp.uint32)))
    assert np.isnan(made).all(-1).tolist() == [[False, True]] * 4
    assert len(calls) == 4


def test_a_grid_without_positions():
    grid, x = Grid((3, 4)), numbers(2, 12, 24)
    assert same(fastpe.encode(None, 24, grid, like=x), fastpe.encode(None, 24, grid))
    assert same(fastpe.add_encoding(x, grid), fastpe.add_encoding(np.array(x), grid))


def test_transforms(calls):
    q, offsets = numbers(3, 2, 5, 8), jnp.array([1, 50, -3], jnp.int32)
    made = jax.jit(jax.vmap(lambda q, offset: fastpe.apply_rotary(q, offset=offset)))(q, offsets)
    expected = [fastpe.apply_rotary(np.array(one), offset=int(offset)) for one, offset in zip(q, offsets, strict=True)]
    assert same(made, expected)
    encoding = Rotary(interleaved=True)
    gradient = jax.jit(jax.grad(lambda q: (fastpe.apply_rotary(q, None, encoding, offset=5) ** 2).sum()))(q)
    there = fastpe.apply_rotary(np.array(q), None, encoding, offset=5)
    assert same(gradient, fastpe.apply_rotary(2 * there, None, encoding, offset=5, inverse=True))
    assert len(calls) == 3


def test_donated_buffers_are_written_in_place():
    given = numbers(4, 30, 64)
    place, expected = given.unsafe_buffer_pointer(), fastpe.add_encoding(np.array(given), offset=9)
    made = jax.jit(lambda x, offset: fastpe.add_encoding(x, offset=offset), donate_argnums=0)(given, 9)
    assert made.unsafe_buffer_pointer() == place
    assert same(made, expected)


def lowered(function: Any, *shapes: Any) -> str:
    """The program for one GPU, which this machine need not have."""
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def test_which_programs_for_cuda_call_back(monkeypatch):
    x, name = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32), "xla_buffer_python_gpu_callback"
    assert name in lowered(fastpe.add_encoding, x)
    mesh = jax.make_mesh((4,), ("sp",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("sp"))
    of_four = jax.ShapeDtypeStruct((4, 6, 8), jnp.float32, sharding=divided)
    assert name not in lowered(fastpe.add_encoding, of_four)  # several devices have the plain operations
    exported = export.export(jax.jit(fastpe.add_encoding), platforms=["cuda"])(x)
    assert "custom_call" not in exported.mlir_module()
    monkeypatch.setattr(_cuda.available, "problem", lambda: "CuPy is not installed")
    jax.clear_caches()
    assert "custom_call" not in lowered(fastpe.add_encoding, x)
