"""The CPU's kernels as machine code for aarch64, executed by an emulator: the bits are those of this machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cases
import cross_compile
import emulated
import numpy as np
import pytest
from fastpe.kernels import abi

import fastpe
from fastpe import ALiBi, Rotary, Sinusoidal

CPUS = ("neoverse-n1", "neoverse-v2", "apple-m1")

pytestmark = pytest.mark.skipif(
    None in (emulated.EMULATOR, emulated.COMPILER),
    reason="needs qemu-aarch64 and aarch64-linux-gnu-gcc, of Debian's qemu-user and gcc-aarch64-linux-gnu",
)


def add(dtype: str) -> list[Any]:
    """Both layouts, rows that sequences share and rows of their own, subnormal numbers, elements that lie apart."""
    x = cases.random((3, 11, 37), dtype)
    apart = cases.random((2, 9, 42), dtype)
    tiny = np.full((2, 9, 33), float(np.finfo(np.float32).tiny) / 4).astype(cases.DTYPES[dtype])
    fastpe.add_encoding(x, offset=100_003)
    fastpe.add_encoding(apart[:, :, ::2], Sinusoidal(layout="concatenated"), positions=np.arange(18).reshape(2, 9) * 1e3 - 0.25)
    fastpe.add_encoding(tiny, Sinusoidal(amplitude=1e-42), input_scale=0.5, mask=np.arange(9) % 4 != 1)
    return [x, apart, tiny]


def rotate(dtype: str) -> list[Any]:
    q, k, decoded = (cases.random(shape, dtype) for shape in ((2, 4, 9, 40), (2, 2, 9, 40), (3, 2, 1, 64)))
    fastpe.apply_rotary(q, k, Rotary(interleaved=True, rotary_dim=24), offset=99)
    fastpe.apply_rotary(decoded, None, Rotary(xpos_scale_base=64), positions=np.array([[5], [70_000], [2]]))
    return [q, k, decoded]


def bias(dtype: str) -> list[Any]:
    alibi, learned = cases.random((2, 3, 9, 37), dtype), cases.random((2, 3, 9, 37), dtype)
    fastpe.add_bias(alibi, ALiBi(3), causal=True)
    fastpe.add_bias(learned, fastpe.T5Bias(np.linspace(-1, 1, 96, dtype=np.float32).reshape(32, 3)), q_offset=7)
    return [alibi, learned]


def embed(dtype: str) -> list[Any]:
    ids, table = np.arange(18).reshape(2, 9) * 2, cases.random((50, 21), dtype, 7)
    return [fastpe.embed(ids, table, Sinusoidal(), scale=3.3, offset=12)]


def recorded(label: str) -> tuple[list[emulated.Call], list[Any]]:
    """The calls of a kernel, and the arrays that they write to."""
    verb, _, dtype = label.partition("_")
    with emulated.recorded() as calls:
        written = globals()[verb](dtype)
    assert {call.label for call in calls} == {label}
    return calls, written


@functools.lru_cache(maxsize=1)
def program(cpu: str) -> Path:
    return emulated.program(cpu)


@pytest.mark.parametrize("label", cross_compile.KERNELS)
@pytest.mark.parametrize("cpu", CPUS)
def test_a_kernel_for_aarch64_has_the_same_bits(cpu: str, label: str, tmp_path: Path) -> None:
    """Each byte that is written there is the byte that is written here, even if the program flushes subnormal numbers to zero."""
    calls, written = recorded(label)
    assert all(array.flags.c_contiguous for array in written)
    for float_mode in (0, emulated.FLUSHES):
        checked = set()
        for call, found in zip(calls, emulated.replayed(program(cpu), calls, tmp_path, float_mode=float_mode), strict=True):
            changed = found != call.before.content
            assert changed.any()
            assert (found == call.after)[changed].all()
            for number, array in enumerate(written):
                place = call.before.place(array.ctypes.data)
                where = slice(place, None if place is None else place + array.nbytes)
                if place is not None and (call.before.content[where] != call.after[where]).any():
                    assert (found[where] == call.after[where]).all()
                    checked.add(number)
        assert len(checked) == len(written)


def test_other_arguments_give_other_bytes(tmp_path: Path) -> None:
    """What is compared is what the emulated kernel computed: with another scale it differs."""
    calls, _ = recorded("add_float32")
    before = emulated.replayed(program(CPUS[0]), calls[-1:], tmp_path)[0]
    words = calls[-1].before.words(calls[-1].call, abi.ADD_SINUSOIDAL)
    words[abi.ADD_SINUSOIDAL.index.input_scale] = np.float64(2.0).view(np.int64)
    assert (emulated.replayed(program(CPUS[0]), calls[-1:], tmp_path)[0] != before).sum() > 300
