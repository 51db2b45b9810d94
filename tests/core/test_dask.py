"""Verbs on Dask arrays: lazy, with the bits of NumPy whatever the chunks, and never written."""

from __future__ import annotations

import os
import pickle
from typing import Any

import cases
import numpy as np
import pytest
from library_rows import ROWS
from verb_cases import CASES

import fastpe
from fastpe import ALiBi, Grid, Rotary, Sinusoidal
from fastpe.scaling import DynamicNTK

da = pytest.importorskip("dask.array")


def zeros(chunks: Any = (1, 5, 8)) -> Any:
    return da.zeros((2, 12, 8), chunks=chunks, dtype=np.float32)


def test_graphs_are_small_pickle_and_have_the_same_name_each_time():
    table, ids = np.zeros((4096, 64), np.float32), da.zeros((64, 64), chunks=(1, 64), dtype=np.int64)
    first, second = (fastpe.embed(ids, table, "sinusoidal") for _ in range(2))
    assert first.name == second.name
    assert len(pickle.dumps(dict(first.dask))) < 2 * table.nbytes  # one table, not one a chunk
    assert fastpe.add_encoding(zeros(), offset=1).name != fastpe.add_encoding(zeros(), offset=2).name


def test_arguments_of_calls_on_numpy_may_not_be_lazy():
    x = np.zeros((2, 12, 8), np.float32)
    for call in (
        lambda: fastpe.add_encoding(x, positions=da.arange(12)),
        lambda: fastpe.add_encoding(x, offset=da.arange(2)),
        lambda: fastpe.add_encoding(x, mask=da.ones(12, dtype=bool)),
        lambda: fastpe.add_encoding(x, out=zeros()),
    ):
        with pytest.raises(TypeError, match=r"got dask.array.core.Array. To read it, pass \w+.compute\(\)"):
            call()
    assert not x.any()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fastpe.add_encoding(zeros((1, 5, 4))), r"x must not be chunked along its channels, got chunks \(4, 4\) along axis -1. "
         r"Pass x.rechunk\(\{-1: -1\}\)"),
        (lambda: fastpe.apply_rotary(None, zeros((1, 5, 4))), r"k must not be chunked .* Pass k.rechunk"),
        (lambda: fastpe.add_bias(zeros((1, 12, 8)), ALiBi(2)), r"scores must not be chunked along its heads, .*rechunk\(\{-3: -1\}\)"),
        (lambda: fastpe.add_encoding(zeros()[da.arange(2, chunks=1) > 0]), r"known chunk sizes.* Call x.compute_chunk_sizes\(\) first"),
        (lambda: fastpe.add_encoding(zeros(), out=np.zeros((2, 12, 8), np.float32)), "out must be None .* dask.array.store"),
        (lambda: fastpe.add_encoding(zeros(), offset=da.arange(2)), r"offset must lie in memory, got a Dask array. Pass offset.compute"),
        (lambda: fastpe.add_encoding(zeros(), mask=da.ones(12, dtype=bool), cu_seqlens=[0, 12]), "mask must lie in memory"),
        (lambda: fastpe.add_encoding(zeros(), positions=np.arange(5)), r"positions must have shape \(12,\) or \(2, 12\)"),
        (lambda: fastpe.add_encoding(zeros(), positions=da.arange(5)), r"positions must have shape \(12,\) or \(2, 12\)"),
        (lambda: fastpe.add_encoding(zeros(), mask=da.arange(12)), "mask must be booleans"),
        (lambda: fastpe.add_encoding(zeros().astype(int)), "floating-point"),
        (lambda: fastpe.add_encoding(zeros(), Sinusoidal(scaling=DynamicNTK(4.0, 6)), positions=da.arange(12)), "seq_len must be given"),
        (lambda: fastpe.apply_rotary(zeros(), np.zeros((2, 12, 8), np.float32)), r"all in memory, got q of dask.array.core and k of numpy"),
        (lambda: fastpe.apply_rotary(zeros(), zeros()[:, :4], Rotary()), "same number of rows"),
        (lambda: fastpe.resample(zeros()[0], 24), r"table must lie in memory, got a Dask array. Pass table.compute\(\)"),
        (lambda: fastpe.encode(zeros()[0, 0], 8, out=np.zeros((8, 8))), "out must be None"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_computed(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_the_rechunk_of_the_message_helps():
    x = zeros((1, 5, 4)).rechunk({-1: -1})
    assert np.array_equal(fastpe.add_encoding(x).compute(), fastpe.add_encoding(np.zeros(x.shape, x.dtype)))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_chunks_of_pictures_have_their_rows_of_the_grid(is_lazy):
    x, mask = np.random.default_rng(5).standard_normal((4, 3, 4, 8)).astype(np.float32), np.arange(48).reshape(4, 12) % 5 > 0
    positions = np.random.default_rng(1).standard_normal((2, 4, 12))
    given = da.from_array(x.copy(), chunks=(3, 2, 3, 8))
    where: list[dict[str, Any]] = [
        {},
        {"mask": mask},
        {"positions": positions},
        {"positions": positions[:, 0], "mask": mask[0]},
    ]
    for options in where:
        lazy = {name: da.from_array(value, chunks=5) if is_lazy else value for name, value in options.items()}
        for grid in (Grid((3, 4)), Grid((3, 4), extent=2.0)):
            made = fastpe.add_encoding(given, grid, **lazy).compute(scheduler="sync")
            cases.assert_same_bits(made, fastpe.add_encoding(x.copy(), grid, **options))


def test_results_are_stored_where_they_came_from(tmp_path):
    """A source on disk, chunk by chunk."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (40, 16))
    expected = fastpe.add_encoding(np.array(x), offset=3)
    lazy = da.from_array(x, chunks=(7, 16), name="x")
    da.store(fastpe.add_encoding(lazy, offset=3), x, lock=False)
    assert np.array_equal(x, expected)


ON_CLUSTERS = (
    "add_encoding/bfloat16/offsets",
    "add_encoding/float32/mask",
    "add_encoding/learned_positions",
    "apply_rotary/float32/boundaries",
    "apply_rotary/by_length",
    "embed/padding",
    "encode/fourier",
    "add_bias/positions",
    "rerotate/by_row",
)


def threads_of_fastpe() -> tuple[int, int]:
    return os.getpid(), fastpe.get_num_threads()


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("workers", [2, 4])
def test_processes_of_a_cluster(workers, monkeypatch):
    """A real scheduler; each worker process runs fastpe with one thread, as ``LocalCluster`` asks all libraries to."""
    distributed = pytest.importorskip("distributed")
    for name in ("OMP_NUM_THREADS", "FASTPE_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    row = ROWS["dask, small chunks"]
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        for case in map(CASES.__getitem__, ON_CLUSTERS):
            made = case.call([row.given(axes, value) for axes, value in case.arrays])
            for one, expected in zip(made, case.expected(), strict=True):
                cases.assert_same_bits(one.compute(), expected)
        found = client.run(threads_of_fastpe)
    assert len({pid for pid, _ in found.values()} - {os.getpid()}) == workers
    assert {count for _, count in found.values()} == {1}


def test_grid_positions_of_sequences_beside_a_mask_of_rows():
    """As many sequences as rows: the mask was cut along the sequences."""
    grid, x = fastpe.Grid(None, axes=(0, 1)), np.zeros((4, 4, 8), np.float32)
    given = {"positions": np.random.default_rng(0).integers(0, 50, (2, 4, 4)), "mask": np.arange(4) < 1}
    got = fastpe.add_encoding(da.from_array(x, chunks=(2, 2, 8)), grid, **given)
    assert np.array_equal(got.compute(), fastpe.add_encoding(x.copy(), grid, **given))
