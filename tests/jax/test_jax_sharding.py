"""Arrays that are divided among four devices: the bits of whole ones, and nothing is gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax_versions  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import fastpe  # noqa: E402
from fastpe import ALiBi, Grid, Rotary, Sandwich, Sinusoidal, scaling  # noqa: E402

MOVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
SPECS = [P("dp", None, "sp"), P(None, None, ("dp", "sp")), P("dp", "sp"), P(None, None, "sp")]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


@pytest.fixture(params=jax_versions.KINDS)
def mesh(request):
    with jax_versions.mesh_of(request.param) as made:
        yield made


def run(function: Any, *arrays: Any) -> Any:
    """The result, and the program, in which nothing moves between devices."""
    program = jax.jit(function).lower(*arrays).compile()
    text = program.as_text()
    assert "fastpe_cpu" in text
    assert not [move for move in MOVES if f"{move}(" in text or f"{move}-start(" in text]
    return program(*arrays)


PLACES = {
    "offset": {"offset": np.int32(1000)},
    "offsets": {"offset": np.array([1, 70, -3, 9], np.int32)},
    "positions": {"positions": np.random.default_rng(1).permutation(32).astype(np.int32)},
    "positions by sequence": {"positions": np.random.default_rng(1).permutation(128).astype(np.int32).reshape(4, 32)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("verb", ["add_encoding", "apply_rotary"])
def test_divided_arrays_have_the_bits_of_whole_ones(mesh, verb, spec, place):
    x = numbers(4, 2, 32, 16)
    given = jax.device_put(x, NamedSharding(mesh, spec))
    made = run(lambda x: getattr(fastpe, verb)(x, **PLACES[place]), given)
    assert same(made, getattr(fastpe, verb)(x.copy(), **PLACES[place]))
    assert made.sharding.is_equivalent_to(given.sharding, 4)


def test_queries_and_keys_with_rules_that_depend_on_the_length(mesh):
    q, k = numbers(4, 4, 32, 16), numbers(4, 2, 32, 16)
    rotary = Rotary(scaling=scaling.DynamicNTK(2.0, 16))
    given = [jax.device_put(one, NamedSharding(mesh, P("dp", None, "sp"))) for one in (q, k)]
    made = run(lambda q, k: fastpe.apply_rotary(q, k, rotary, offset=3), *given)
    assert all(map(same, made, fastpe.apply_rotary(q, k, rotary, offset=3)))


@pytest.mark.parametrize("spec", [P("dp", None, "sp"), P(None, None, ("dp", "sp")), P("dp")], ids=str)
@pytest.mark.parametrize("shape", [(3, 32), (3, 4, 32)])
def test_positions_of_several_axes(mesh, shape, spec):
    q, positions = numbers(4, 3, 32, 16), np.random.default_rng(1).integers(0, 99, shape, np.int32)
    given, rotary = jax.device_put(q, NamedSharding(mesh, spec)), Rotary(sections=(4, 2, 2))
    made = run(lambda q: fastpe.apply_rotary(q, None, rotary, positions=positions), given)
    assert same(made, fastpe.apply_rotary(q, None, rotary, positions=positions))


def test_heads_in_one_axis(mesh):
    q, k = numbers(4, 32, 64), numbers(4, 32, 32)
    given = [jax.device_put(one, NamedSharding(mesh, P("dp", "sp"))) for one in (q, k)]
    made = run(lambda q, k: fastpe.apply_rotary(q, k, head_dim=16, offset=3), *given)
    assert all(map(same, made, fastpe.apply_rotary(q, k, head_dim=16, offset=3)))


def test_moves_of_rows_in_front_of_sequences(mesh):
    k, delta = numbers(32, 4, 16), np.random.default_rng(1).integers(-9, 9, (4, 32), np.int32)
    given = jax.device_put(k, NamedSharding(mesh, P("sp", "dp")))
    made = run(lambda k: fastpe.rerotate(k, delta, seq_axis=0), given)
    assert same(made, fastpe.rerotate(k, delta, seq_axis=0))


def test_gradients_of_divided_arrays(mesh):
    x = numbers(4, 2, 32, 16)
    given = jax.device_put(x, NamedSharding(mesh, P("dp", None, "sp")))
    gradient = jax.jit(jax.grad(lambda x: (fastpe.apply_rotary(x, offset=1000) ** 2).sum()))
    assert "all-gather" not in gradient.lower(given).compile().as_text()
    expected = fastpe.apply_rotary(2 * fastpe.apply_rotary(x, offset=1000), offset=1000, inverse=True)
    assert same(gradient(given), expected)


def test_donated_shards_are_written_in_place(mesh):
    x = numbers(4, 2, 32, 16)
    given = jax.device_put(x, NamedSharding(mesh, P("dp", None, "sp")))
    places = [shard.data.unsafe_buffer_pointer() for shard in given.addressable_shards]
    made = jax.jit(lambda x: fastpe.apply_rotary(x, offset=7), donate_argnums=0)(given)
    assert [shard.data.unsafe_buffer_pointer() for shard in made.addressable_shards] == places
    assert same(made, fastpe.apply_rotary(x, offset=7))


def test_zigzag_positions(mesh):
    x = numbers(4, 2, 32, 16)
    parts = np.arange(32, dtype=np.int32).reshape(4, 8)
    order = np.concatenate([parts[0], parts[3], parts[1], parts[2]])  # of two ranks
    given = jax.device_put(x[:, :, order], NamedSharding(mesh, P(None, None, "sp")))
    positions = jax.device_put(order, NamedSharding(mesh, P("sp")))
    made = run(lambda x, positions: fastpe.apply_rotary(x, positions=positions), given, positions)
    assert same(made, fastpe.apply_rotary(x)[:, :, order])


@pytest.mark.parametrize("mesh", ["Auto"], indirect=True)
def test_other_verbs(mesh):
    ids, table = np.arange(128, dtype=np.int32).reshape(4, 32) % 11, numbers(11, 16)
    given = jax.device_put(ids, NamedSharding(mesh, P("dp", "sp")))
    made = run(lambda ids, table: fastpe.embed(ids, table, Sinusoidal(), offset=5), given, jnp.asarray(table))
    assert same(made, fastpe.embed(ids, table, Sinusoidal(), offset=5))
    k, delta = numbers(4, 2, 32, 16), np.array([3, -9, 0, 1], np.int32)
    given = jax.device_put(k, NamedSharding(mesh, P("dp", None, "sp")))
    assert same(run(lambda k: fastpe.rerotate(k, delta), given), fastpe.rerotate(k.copy(), delta))


@pytest.mark.parametrize(
    "spec", [P(("dp", "sp")), P("dp", "sp"), P(None, ("dp", "sp")), P(None, "dp", "sp"), P("dp", None, "sp")], ids=str
)
@pytest.mark.parametrize("bias", [ALiBi(4), Sandwich(4)], ids=["alibi", "sandwich"])
def test_scores_divided_by_sequences_heads_and_queries(mesh, bias, spec):
    scores = numbers(4, 4, 8, 12)
    given = jax.device_put(scores, NamedSharding(mesh, spec))
    for options in ({}, {"q_offset": 100}):
        made = run(lambda scores: fastpe.add_bias(scores, bias, causal=True, **options), given)  # noqa: B023
        assert same(made, fastpe.add_bias(scores.copy(), bias, causal=True, **options))
        assert made.sharding.is_equivalent_to(given.sharding, 4)
    if bias.slopes_of is not None:
        positions = np.random.default_rng(1).permutation(32).astype(np.int32).reshape(4, 8)
        made = run(lambda scores: fastpe.add_bias(scores, bias, q_positions=positions), given)
        assert same(made, fastpe.add_bias(scores.copy(), bias, q_positions=positions))
    gradient = jax.jit(jax.grad(lambda scores: (3 * fastpe.add_bias(scores, bias, input_scale=2.0)).sum()))
    assert (np.asarray(gradient(given)) == 6).all()


@pytest.mark.parametrize("mesh", ["Auto"], indirect=True)
@pytest.mark.parametrize("checks", [True, False])
def test_shard_map_with_the_offset_of_a_rank(mesh, checks):
    x, spec = numbers(4, 2, 32, 16), P("dp", None, "sp")

    def local(x):
        return fastpe.apply_rotary(x, offset=1000 + jax.lax.axis_index("sp") * 16)

    function = jax_versions.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=checks)
    assert same(jax.jit(function)(x), fastpe.apply_rotary(x.copy(), offset=1000))
    gradient = jax.jit(jax.grad(lambda x: (function(x) ** 2).sum()))(x)
    assert same(gradient, fastpe.apply_rotary(2 * fastpe.apply_rotary(x, offset=1000), offset=1000, inverse=True))


@pytest.mark.parametrize("mesh", ["Auto"], indirect=True)
def test_pictures_divided_by_the_batch(mesh):
    x, grid = numbers(8, 3, 4, 24), Grid((3, 4), extent=(6, 8))
    given = jax.device_put(x, NamedSharding(mesh, P(("dp", "sp"))))
    assert same(run(lambda x: fastpe.add_encoding(x, grid), given), fastpe.add_encoding(x.copy(), grid))


@pytest.mark.parametrize("spec", [P("dp", "sp"), P(None, "dp", "sp"), P("dp", None, "sp"), P(("dp", "sp"))], ids=str)
@pytest.mark.parametrize("grid", [Grid((4, 8), extent=3.0), Grid(None, axes=(0, 1))], ids=["own", "given"])
def test_pictures_divided_along_the_batch_and_their_axes(mesh, grid, spec):
    picture = numbers(4, 4, 8, 24)
    for x in (picture, picture.reshape(4, 32, 24)):
        if x.ndim <= max((axis for axis, along in enumerate(spec) if along), default=0) + 1:
            continue
        given = jax.device_put(x, NamedSharding(mesh, spec))
        random = np.random.default_rng(1)
        shapes = [None] if grid.shape else [(2, 4, 8), (2, 4, 4, 8), (2, 32), (2, 4, 32)]
        for positions in [None if shape is None else random.standard_normal(shape).astype(np.float32) for shape in shapes]:
            if positions is None:
                made = run(lambda x: fastpe.add_encoding(x, grid), given)
            else:
                made = run(lambda x, at: fastpe.add_encoding(x, grid, positions=at), given, jnp.asarray(positions))
            assert same(made, fastpe.add_encoding(x.copy(), grid, positions=positions))
            assert made.sharding.is_equivalent_to(given.sharding, x.ndim)
