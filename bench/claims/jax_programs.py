"""Claims of JAX on the CPU: programs with the verbs against programs that add a table, make one, or rotate by the usual expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastpe

from .table import Call, Claim, Measuring, at_least, milliseconds


def jax(measuring: Measuring) -> Iterator[Claim]:
    """Donated arrays: ``add_encoding`` over ``x + table`` and over a program that makes the table; ``apply_rotary`` over jnp."""
    import jax.numpy as jnp

    for shape in ((8, 1024, 512), (1, 65536, 1024)):
        batch, rows, width = shape[0], max(8, shape[1] // measuring.shrink), shape[2]
        x = np.random.default_rng(0).standard_normal((batch, rows, width), np.float32)
        table = jnp.asarray(fastpe.encode(range(rows), width))
        programs = {
            "fastpe": fastpe.add_encoding,
            "x + table": lambda x, table=table: x + table,
            "made": lambda x: x + _made(x.shape[1], x.shape[2]),
        }
        medians = _medians(measuring, programs, x)
        what, detail = f"jax float32 {x.shape}", milliseconds(medians)
        yield at_least(f"{what}: speed over x + table", medians["x + table"] / medians["fastpe"], 1.0, detail)
        yield at_least(f"{what}: speed over a table made", medians["made"] / medians["fastpe"], 5.0)
    q = np.random.default_rng(0).standard_normal((8, 8, max(8, 1024 // measuring.shrink), 64), np.float32)
    medians = _medians(measuring, {"fastpe": fastpe.apply_rotary, "jnp": _rotated}, q)
    yield at_least(f"jax float32 {q.shape}: rotary over jnp", medians["jnp"] / medians["fastpe"], 10.0, milliseconds(medians))


def _medians(measuring: Measuring, programs: dict[str, Callable[[Any], Any]], x: Any) -> dict[str, float]:
    """Of programs that are each given the array that the last run of it made; checked against each other first."""
    import jax

    compiled = {name: jax.jit(program, donate_argnums=0) for name, program in programs.items()}
    made = [np.asarray(program(jax.numpy.asarray(x))) for program in compiled.values()]
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=2e-2)  # angles in float32 are as wrong as that
    held = {name: jax.numpy.asarray(x) for name in compiled}

    def call(name: str) -> Call:
        def step() -> None:
            held[name] = compiled[name](held[name]).block_until_ready()

        return step

    return measuring.medians({name: call(name) for name in compiled})


def _made(rows: int, width: int) -> Any:
    import jax.numpy as jnp

    frequencies = jnp.exp(jnp.arange(0, width, 2) * (-np.log(10000.0) / width))
    angles = jnp.arange(rows, dtype=jnp.float32)[:, None] * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(rows, width)


def _rotated(q: Any) -> Any:
    import jax.numpy as jnp

    rows, width = q.shape[-2:]
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2) / width)
    angles = jnp.arange(rows, dtype=jnp.float32)[:, None] * frequencies
    cosines, sines = (jnp.concatenate([one, one], -1) for one in (jnp.cos(angles), jnp.sin(angles)))
    half = jnp.concatenate([-q[..., width // 2 :], q[..., : width // 2]], -1)
    return q * cosines + half * sines
