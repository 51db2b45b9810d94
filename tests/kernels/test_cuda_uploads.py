"""What calls copy to a GPU: once while the values are the same, anew when they change, within a bound, until it is cleared."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe

LAYERS = [np.random.default_rng(8).standard_normal(shape).astype(np.float32) for shape in ((8, 1), 8, (3, 8), 3)]
TABLE = cases.random((32, 3), "float32", 7)
SCORES = cases.random((2, 3, 9, 16), "float32")
WORDS = np.random.default_rng(9).integers(-128, 128, (6, 8), np.int8)
IDS = np.array([[0, 5, 2], [1, 1, 4]])
BIASES = {
    "t5": (lambda put: fastpe.T5Bias(put(TABLE)), "table"),
    "relative": (lambda put: fastpe.RelativeTable(put(TABLE[:31])), "table"),
    "fire": (lambda put: fastpe.FIRE(*map(put, LAYERS), length=512), "b1"),
    "fire_beyond_its_length": (lambda put: fastpe.FIRE(*map(put, LAYERS), length=8), "b1"),
}


@pytest.fixture
def copies(device, monkeypatch):
    """The shapes of what was copied from the host."""
    import cupy

    found, asarray = [], cupy.asarray

    def counted(a):
        if isinstance(a, np.ndarray):
            found.append(a.shape)
        return asarray(a)

    monkeypatch.setattr(cupy, "asarray", counted)
    return found


@pytest.mark.parametrize("name", BIASES)
def test_a_learned_bias_is_copied_once_and_its_new_values_are_seen(device, copies, name):
    make, learned = BIASES[name]
    here, there = make(np.array), make(device.array)

    def added():
        scores = device.array(SCORES)
        copies.clear()
        fastpe.add_bias(scores, there, q_offset=5, validate=True)
        cases.assert_same_bits(device.host(scores), fastpe.add_bias(SCORES.copy(), here, q_offset=5))
        return list(copies)

    assert added()
    assert added() == []
    getattr(here, learned)[...] *= 0.5
    getattr(there, learned)._host[...] *= 0.5
    added()
    assert added() == []
    fastpe.clear_caches()
    assert added()


def test_a_list_of_scales_is_copied_once(device, copies):
    words, ids = device.array(WORDS), device.array(IDS)
    scales = [0.5, 1.0, 0.25, 2.0, 3.0, 0.125]
    for number, expected in ((0, 1), (1, 0), (2, 1), (3, 0)):
        scales[1] = 1.0 + number // 2
        copies.clear()
        found = fastpe.embed(ids, words, "sinusoidal", row_scale=scales)
        assert len([shape for shape in copies if shape == (6,)]) == expected
        cases.assert_same_bits(device.host(found), fastpe.embed(IDS, WORDS, "sinusoidal", row_scale=scales))


def test_what_is_copied_is_bounded_and_can_be_cleared(device, monkeypatch):
    import simulated_cupy

    from fastpe._backends.cuda import tables

    monkeypatch.setattr(tables, "MOST_PASSING", 10)
    monkeypatch.setattr(tables, "MOST_BYTES", 1000)
    live = len(simulated_cupy.memory.buffers)
    for number in range(30):
        values = np.full(30, float(number))
        assert (tables.uploaded(values, 0)._host == values).all()
        assert len(tables._passing) == min(number + 1, 4)
    for number in range(30):
        tables.uploaded(np.array([number]), 0)
    assert len(tables._passing) == 10
    large = tables.uploaded(np.zeros(200), 0)  # is not kept
    assert large.shape == (200,)
    assert len(tables._passing) == 10
    tables.uploaded(np.zeros((0, 3)), 0)
    del large
    fastpe.clear_caches()
    assert not tables._passing
    assert len(simulated_cupy.memory.buffers) == live
