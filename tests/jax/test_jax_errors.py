"""What is refused of JAX's arrays, with the way round, before anything is computed; and programs of another process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Fourier, Learned, Rotary, Sandwich, Sinusoidal, scaling  # noqa: E402
from fastpe.encodings.protocol import Additive  # noqa: E402

X = np.ones((2, 6, 8), np.float32)


@dataclass(frozen=True, eq=False)
class Of(Additive):
    """An encoding of something that is no array."""

    something: object
    arrays: ClassVar = {}

    def plan(self, dim, seq_len=None):
        return Sinusoidal().plan(dim)


def stretched(x, **places):
    return fastpe.apply_rotary(x, encoding=Rotary(scaling=scaling.DynamicNTK(2.0, 4)), **places)


def scores():
    return jnp.zeros((1, 2, 3, 3))


REFUSED = {
    "an array of JAX as out": (
        lambda x: fastpe.add_encoding(X.copy(), out=x),
        TypeError,
        "out must be an array of numpy on the host, .*JAX cannot be written",
    ),
    "out": (lambda x: fastpe.add_encoding(x, out=x), TypeError, "out must be None.*donated"),
    "out of encode": (lambda x: fastpe.encode([1, 2], 8, out=x), TypeError, "out must be None"),
    "validate": (lambda x: fastpe.add_encoding(x, validate=True), ValueError, "validate must be False"),
    "integers": (lambda x: fastpe.add_encoding(x.astype(jnp.int32)), TypeError, "floating-point array.*got int32"),
    "an axis": (lambda x: fastpe.add_encoding(x, seq_axis=2), ValueError, "seq_axis must be an axis"),
    "a shape of positions": (
        lambda x: fastpe.add_encoding(x, positions=jnp.arange(5)),
        ValueError,
        r"positions must have shape \(6,\)",
    ),
    "positions of bool": (
        lambda x: fastpe.add_encoding(x, positions=jnp.ones(6, bool)),
        TypeError,
        "positions must be integers",
    ),
    "a far offset": (lambda x: fastpe.add_encoding(x, offset=2**31), ValueError, "every position must lie"),
    "float64": (lambda x: fastpe.encode(jnp.arange(3), 8, dtype="float64"), TypeError, "jax_enable_x64"),
    "a length": (lambda x: stretched(x, offset=jnp.int32(3)), ValueError, "seq_len must be given"),
    "an array of another library": (
        lambda x: fastpe.add_encoding(x, Of(object())),
        TypeError,
        "encodings and biases must consist of numbers, and of arrays of JAX or NumPy",
    ),
    "a table of rows that are too few": (
        lambda x: fastpe.add_encoding(x, Learned(jnp.ones((5, 8)))),
        IndexError,
        r"positions must lie in the table's \[0, 5\), got 5 at row 5",
    ),
    "a table of another width": (
        lambda x: fastpe.add_encoding(x, Learned(jnp.ones((9, 4)))),
        ValueError,
        "must have the width",
    ),
    "Fourier": (lambda x: fastpe.encode(x[:1, 0], 4, Fourier(1, (1.0, 2.0))), TypeError, "fastpe.encode"),
    "NumPy beside": (lambda x: fastpe.apply_rotary(x, X), TypeError, "k must be an array of JAX.*jax.numpy.asarray"),
    "JAX beside NumPy": (
        lambda x: fastpe.add_encoding(X.copy(), positions=jnp.arange(6)),
        TypeError,
        "positions must be a numpy array",
    ),
    "resample": (lambda x: fastpe.resample(x[0], 9), TypeError, "numpy.asarray"),
    "no width": (lambda x: fastpe.apply_rotary(x[..., :7]), ValueError, "must be even"),
    "an offset of a table": (
        lambda x: fastpe.add_bias(scores(), Sandwich(2), q_offset=jnp.int32(1)),
        TypeError,
        "q_offset",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    function, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        function(jnp.asarray(X))


@pytest.mark.parametrize("name", ["input_scale", "seq_axis", "seq_len"])
def test_a_traced_number_is_refused_by_name(name):
    function = jax.jit(lambda x, value: fastpe.add_encoding(x, **{name: value}))
    with pytest.raises(TypeError, match=f"^add_encoding: {name} must be a Python number.*static_argnames"):
        function(X, 1)


def test_rows_at_no_position_are_nan():
    x = jnp.asarray(X)
    made = np.asarray(fastpe.add_encoding(x, positions=jnp.array([0.0, np.nan, 1.0, np.inf, 3e9, -3e9], jnp.float32)))
    assert np.isnan(made).all(-1).tolist() == [[False, True, False, True, True, True]] * 2
    made = np.asarray(fastpe.add_encoding(x, positions=jnp.array([0, 2**31 - 1, 2**31, 1, 2**32 - 1, 2], jnp.uint32)))
    assert np.isnan(made).all(-1).tolist() == [[False, False, True, False, True, False]] * 2
    made = np.asarray(jax.jit(lambda offset: fastpe.add_encoding(x, offset=offset))(jnp.array([2**31 - 3, 0], jnp.int32)))
    assert np.isnan(made).all(-1).tolist() == [[False] * 3 + [True] * 3, [False] * 6]
    made = np.asarray(jax.jit(lambda ids: fastpe.embed(ids, jnp.ones((3, 8)), Sinusoidal()))(jnp.array([0, 3, -1, 2])))
    assert np.isnan(made).all(-1).tolist() == [False, True, True, False]


def test_a_program_runs_in_another_process(tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export

    x = np.random.default_rng(2).standard_normal((2, 4, 9, 16)).astype(np.float32)
    function = jax.jit(lambda q, k, offset: fastpe.apply_rotary(q, k, Rotary(interleaved=True), offset=offset))
    check = export.DisabledSafetyCheck.custom_call("fastpe_cpu")
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32)] * 2 + [jax.ShapeDtypeStruct((), jnp.int32)]
    program = export.export(function, disabled_checks=[check])(*shapes).serialize()
    (tmp_path / "program").write_bytes(program)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, fastpe.jax; from jax import export; from pathlib import Path; here = Path(sys.argv[1])\n"
        "x = np.load(here / 'x.npy'); program = export.deserialize(bytearray((here / 'program').read_bytes()))\n"
        "np.save(here / 'made.npy', np.stack(program.call(x, x + 1, np.int32(77))))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    expected = fastpe.apply_rotary(x, x + 1, Rotary(interleaved=True), offset=77)
    assert np.load(tmp_path / "made.npy").tobytes() == np.stack(expected).tobytes()


def test_a_call_of_another_version_is_refused():
    call = jax.ffi.ffi_call("fastpe_cpu", jax.ShapeDtypeStruct((2, 3), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="exported by another version of fastpe"):
        jax.block_until_ready(jax.jit(lambda x: call(x, call="{}"))(jnp.ones((2, 3))))


def test_calls_from_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    function = jax.jit(lambda x, offset: fastpe.add_encoding(x, offset=offset))
    x = np.random.default_rng(2).standard_normal((4, 300, 512)).astype(np.float32)  # 2.4 MB: XLA's threads help
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda offset: np.asarray(function(x, offset)), range(40)))
    for offset, one in enumerate(made):
        assert (one == fastpe.add_encoding(x.copy(), offset=offset)).all()
