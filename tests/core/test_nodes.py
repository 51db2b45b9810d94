"""NUMA nodes: which cores they have, and that the helpers of a small call stay on its caller's."""

from __future__ import annotations

import os

import cases
import numpy as np
import pytest

import fastpe
from fastpe._backends.host import nodes, pool, tuning

HERE = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
needs_affinity = pytest.mark.skipif(not HERE, reason="the system does not say on which cores a thread may run")
ELSEWHERE = frozenset({max(HERE, default=0) + 1, max(HERE, default=0) + 2})
SMALL, LARGE = (
    (2, 1024, 1024),
    (1 + tuning.here().stream_above // (1 << 22), 1024, 1024),
)  # within the last-level cache, and above


@pytest.mark.parametrize(
    ("lists", "allowed", "expected"),
    [
        ({"node0": "0-3\n"}, range(4), ()),
        ({"node0": "0-3\n", "node1": "4-7\n"}, range(8), ({0, 1, 2, 3}, {4, 5, 6, 7})),
        ({"node0": "0-1,4-5\n", "node1": "2,3,6-7\n"}, (1, 2, 4, 7), ({1, 4}, {2, 7})),
        ({"node0": "0-3\n", "node1": "4-7\n"}, (5, 6), ()),  # only one that this process may use
        ({"node0": "0-3\n", "node1": "\n", "node2": "4-7\n"}, range(8), ({0, 1, 2, 3}, {4, 5, 6, 7})),  # one with memory alone
        ({"node0": "0-3\n", "node1": "?\n"}, range(8), ()),
        ({}, range(8), ()),
    ],
)
def test_reading_nodes(tmp_path, lists, allowed, expected):
    (tmp_path / "possible").write_text("0-1\n")
    for name, text in lists.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(text)
    assert nodes.read(str(tmp_path), frozenset(allowed)) == tuple(frozenset(cores) for cores in expected)


def test_no_folder_means_one_node(tmp_path):
    assert nodes.read(str(tmp_path / "nothing"), frozenset({0, 1})) == ()


@pytest.fixture
def two_nodes(monkeypatch):
    """The caller's cores are a node, and there is another one. Calls may take eight threads; none waits."""
    monkeypatch.setattr(nodes, "here", lambda: (ELSEWHERE, HERE))
    monkeypatch.setattr(pool, "_pools", {})
    monkeypatch.setattr(pool.SpinSlots, "waiting", lambda self: 0)
    asked, run = [], pool.run

    def record(kernel, addresses, helpers, keepalive, slots):
        asked.append((helpers, slots.cores))
        run(kernel, addresses, helpers, keepalive, slots)

    monkeypatch.setattr(pool, "run", record)
    fastpe.set_num_threads(len(HERE) + 6)
    yield asked
    fastpe.set_num_threads(None)


@needs_affinity
@pytest.mark.skipif(len(HERE) < 2, reason="a node of one core has no helper")
def test_small_calls_stay_on_the_node_of_the_caller(two_nodes):
    x = cases.random(SMALL, "float32")
    expected = x + fastpe.encode(range(SMALL[1]), SMALL[2])
    cases.assert_same_bits(fastpe.add_encoding(x), expected)
    ((helpers, cores),) = [one for one in two_nodes if one[1] is not None][-1:]
    assert cores == HERE
    assert 1 <= helpers <= len(HERE) - 1
    assert len(pool._pools[HERE]._threads) == helpers
    assert all(
        os.sched_getaffinity(thread.native_id) < HERE for thread in pool._pools[HERE]._threads
    )  # without the caller's core


@needs_affinity
def test_large_calls_take_all_cores(two_nodes):
    fastpe.add_encoding(np.zeros(LARGE, np.float32))
    assert two_nodes == [(len(HERE) + 5, None)]


@needs_affinity
def test_a_node_of_one_core_has_no_helper(two_nodes, monkeypatch):
    monkeypatch.setattr(pool, "_current_core", lambda: 3)
    monkeypatch.setattr(nodes, "here", lambda: (frozenset({3}), frozenset({4})))
    fastpe.add_encoding(np.zeros(SMALL, np.float32))
    assert two_nodes == []


@needs_affinity
def test_a_caller_on_no_known_node_takes_all_cores(two_nodes, monkeypatch):
    monkeypatch.setattr(pool, "_current_core", lambda: -1)
    fastpe.add_encoding(np.zeros(SMALL, np.float32))
    assert [cores for _, cores in two_nodes] == [None]


def test_where_there_is_one_node_nobody_asks_for_the_core(monkeypatch):
    monkeypatch.setattr(nodes, "here", lambda: ())
    monkeypatch.setattr(pool, "_current_core", lambda: pytest.fail("asked"))
    assert pool.node_of_caller(1) is None
