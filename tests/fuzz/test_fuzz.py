"""The same random examples of every verb in each run (``make fuzz`` looks for others), and the tools that judge them."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import campaign
import cases
import guarded
import judging
import numpy as np
import pytest
import reference

import fastpe

# Together about half a minute on one core, once the kernels are compiled.
EXAMPLES = {
    "add_encoding": 700,
    "apply_rotary": 300,
    "rerotate": 300,
    "encode": 300,
    "embed": 350,
    "add_bias": 450,
    "resample": 200,
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", campaign.VERBS)
def test_random_examples(verb):
    before = judging.ELEMENTS[verb]
    campaign.search(verb, EXAMPLES[verb], seed=None)()
    assert judging.ELEMENTS[verb] > before + 10_000
    assert judging.REFUSALS[verb] > 0


def test_strides_beyond_4_gib():
    """Rows that lie 3 GiB apart, in memory of which only these rows are ever touched."""
    apart, (rows, width) = 3 << 30, (3, 65)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = np.frombuffer(mmap.mmap(-1, (rows - 1) * apart + mmap.PAGESIZE, flags=flags), np.uint8)
    for view in (
        np.ndarray((rows, width), "f4", memory, 0, (apart, 4)),
        np.ndarray((rows, width), "f4", memory, 2 * apart, (-apart, 4)),
    ):
        view[...] = 0
        fastpe.add_encoding(view, offset=5)
        cases.assert_same_bits(
            np.ascontiguousarray(view) + np.float32(0), fastpe.encode(np.arange(5, 8), width) + np.float32(0)
        )
        q = np.ndarray((rows, 64), "f4", memory, view.ctypes.data - memory.ctypes.data, view.strides)
        expected = fastpe.apply_rotary(np.ascontiguousarray(q), offset=9)
        cases.assert_same_bits(np.ascontiguousarray(fastpe.apply_rotary(q, offset=9)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["start", "end"])
def test_leaving_guarded_memory_ends_the_process(place):
    script = (
        "import ctypes, sys, guarded\n"
        "view = guarded.Arena().view((4096,), 'u1', place=sys.argv[1])\n"
        "near = {'start': -1, 'end': 4096}[sys.argv[1]]\n"
        "assert ctypes.c_ubyte.from_address(view.array.ctypes.data + near + (1 if near < 0 else -1)).value >= 0\n"
        "ctypes.c_ubyte.from_address(view.array.ctypes.data + near).value\n"
    )
    folder = str(guarded.__file__).rpartition("/")[0]
    ended = subprocess.run([sys.executable, "-c", script, place], cwd=folder, capture_output=True, text=True)
    assert ended.returncode < 0, ended.stderr


def test_writing_between_elements_is_found():
    view = guarded.Arena().view((3, 4), "f4", (40, 8))
    view.array[1, 2] = 5
    view.assert_only_elements_written()
    for near in (4, 16 + 12, 40 - 1):
        ctypes.c_ubyte.from_address(view.array.ctypes.data + near).value ^= 1
        with pytest.raises(AssertionError, match="1 bytes around the elements"):
            view.assert_only_elements_written()
        ctypes.c_ubyte.from_address(view.array.ctypes.data + near).value ^= 1
    with pytest.raises(AssertionError, match="bytes were written"):
        view.assert_unchanged()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_judge_finds_one_wrong_element(dtype):
    expected = np.array([1.0, -0.5, np.inf, np.nan, 3.0, 0.0])
    right = expected.astype(cases.DTYPES[dtype])
    judging.assert_within(right, expected, 0.0, dtype)
    for place, value in ((0, 1.02), (1, np.nan), (2, 1.0), (2, -np.inf), (3, 1.0), (4, np.inf), (5, 1e-3)):
        wrong = right.copy()
        wrong[place] = value
        with pytest.raises(AssertionError, match="1 of 6 elements are off"):
            judging.assert_within(wrong, expected, 1e-4, dtype)


def test_vectorised_angles_are_those_of_the_reference():
    frequencies = reference.angular_frequencies(16, 0.7, scale=1000.0) + reference.angular_frequencies(16, 1e30)
    positions = np.array([0, 1, -1, 2**31 - 1, -(2**31), 123_456, 0.5, -7.25, 1e5 + 2.0**-20])
    got = reference.many_angles(np.rint(positions * 2.0**32).astype(np.int64), reference.turns(frequencies))
    error = np.abs(np.exp(1j * got) - np.exp(1j * reference.angles(positions, frequencies)))
    assert error.max() < 2e-15
