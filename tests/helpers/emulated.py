"""Calls of kernels, recorded on this machine and repeated by the machine code of another processor in an emulator."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cross_compile
import kept
import numpy as np
from fastpe.kernels import abi

import fastpe
from fastpe._backends.host import compile, launch
from fastpe._core import call_cache

TRIPLE = "aarch64-unknown-linux-gnu"
EMULATOR, COMPILER = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
FLUSHES = 1 << 24  # the float mode (FPCR) in which subnormal numbers become 0
PAGE, AROUND = 1 << 12, 1 << 16  # bytes on each side of an address that are recorded: more than any array here has
BASE = 1 << 36  # where an image lies in the emulated process
HEADER = struct.Struct("<32s6q")
HELPERS = Path(__file__).parent
LAYOUTS = {
    "add_sinusoidal": abi.ADD_SINUSOIDAL,
    "rotate": abi.ROTATE,
    "add_toeplitz": abi.ADD_TOEPLITZ,
    "embed": abi.GATHER_SUM,
}
LABELS = {variant: label for label, variant in cross_compile.KERNELS.items()}
ctl = abi.CONTROL.index


class Image:
    """Pieces of memory, copied one behind the other; addresses that point from one into another are those of the copy."""

    def __init__(self, addresses: set[int]) -> None:
        self.pieces: list[tuple[int, int]] = []  # first address and end
        for start, end in regions():
            for address in sorted(addresses):
                if start <= address < end:
                    first, last = max(start, address - AROUND) // PAGE * PAGE, min(end, -(-(address + AROUND) // PAGE) * PAGE)
                    if self.pieces and first <= self.pieces[-1][1]:
                        first = self.pieces.pop()[0]
                    self.pieces.append((first, last))
        self.content = self.now()

    def now(self) -> Any:
        """What these pieces hold at present."""
        whole = bytearray().join(ctypes.string_at(start, end - start) for start, end in self.pieces)
        return np.frombuffer(whole, np.uint8)

    def place(self, address: int) -> int | None:
        """Where an address lies in the copy."""
        behind = 0
        for start, end in self.pieces:
            if start <= address < end:
                return behind + address - start
            behind += end - start
        return None

    def point_to_copy(self, block: int, layout: abi.Layout) -> None:
        words = self.words(block, layout)
        for index, word in enumerate(words.tolist()):
            place = self.place(word)
            if place is not None:
                words[index] = BASE + place

    def words(self, block: int, layout: abi.Layout) -> Any:
        place = self.place(block)
        return self.content[place : place + layout.nbytes].view(np.int64)


class Call(NamedTuple):
    """A kernel's call: the memory around its blocks and around whatever they point to, before it ran and afterwards."""

    label: str
    call: int
    control: int
    before: Image
    after: Any


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Every call that verbs make of the kernels of ``cross_compile.KERNELS``, on one thread."""
    calls: list[Call] = []

    def kernel(name: str, *variant: Any) -> Any:
        compiled, label, layout = compile.kernel(name, *variant), LABELS[(name, *variant)], LAYOUTS[name]

        def run(call: int, control: int, thread: int) -> None:
            assert thread == abi.ALONE
            words = np.frombuffer(ctypes.string_at(control, abi.CONTROL.nbytes), np.int64).copy()
            words[ctl.yield_function] = 0
            inside = ctypes.string_at(call, layout.nbytes)
            before = Image({call, control, *words.tolist(), *np.frombuffer(inside, np.int64).tolist()})
            before.words(control, abi.CONTROL)[ctl.yield_function] = 0
            before.point_to_copy(control, abi.CONTROL)
            before.point_to_copy(call, layout)
            compiled(call, control, thread)
            calls.append(Call(label, call, control, before, before.now()))

        return run

    threads, known = fastpe.get_num_threads(), launch.kernel
    fastpe.set_num_threads(1)
    call_cache.clear()
    launch.kernel = kernel  # type: ignore[assignment]
    try:
        yield calls
    finally:
        launch.kernel = known
        call_cache.clear()
        fastpe.set_num_threads(threads)


def regions() -> list[tuple[int, int]]:
    """Where memory is mapped that can be read and written, from low addresses to high ones; neighbours are one."""
    found: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
        if match:
            start, end = (int(number, 16) for number in match.groups())
            start = found.pop()[0] if found and found[-1][1] == start else start
            found.append((start, end))
    return found


def program(cpu: str) -> Path:
    """The kernels for a processor and ``replay.c``, compiled and linked, and kept."""
    sources = [(HELPERS / name).read_text() for name in ("cross_compile.py", "replay.c")]
    facts = (cpu, sources, [compile._key(name, tuple(variant)) for name, *variant in cross_compile.KERNELS.values()])
    folder = kept.folder(f"aarch64-{cpu}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may want it, too
        if not (folder / "replay").exists():
            build(cpu, folder)
    return folder / "replay"


def build(cpu: str, folder: Path) -> None:
    assert COMPILER is not None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(kept.ROOT), os.environ.get("PYTHONPATH", "")])}
    script = [sys.executable, str(HELPERS / "cross_compile.py"), str(folder), TRIPLE, cpu]
    subprocess.run(script, check=True, env=environment, timeout=280)
    (folder / "kernels.h").write_text("\n".join(f"KERNEL({label})" for label in cross_compile.KERNELS))
    objects = [str(folder / f"{label}.o") for label in cross_compile.KERNELS]
    options = ["-O1", "-static", "-no-pie", "-pthread", f"-I{folder}", str(HELPERS / "replay.c"), *objects]
    subprocess.run([COMPILER, *options, "-o", str(folder / "new")], check=True)
    os.replace(folder / "new", folder / "replay")


def replayed(program: Path, calls: Sequence[Call], folder: Path, *, threads: int = 1, float_mode: int = 0) -> list[Any]:
    """The memory of each call after it was repeated in the emulator."""
    assert EMULATOR is not None
    with (folder / "calls").open("wb") as file:
        for call in calls:
            blocks = (BASE + (call.before.place(block) or 0) for block in (call.call, call.control))
            content = call.before.content
            file.write(HEADER.pack(call.label.encode(), *blocks, BASE, content.size, threads, float_mode))
            file.write(content)
    subprocess.run([EMULATOR, str(program), str(folder / "calls"), str(folder / "results")], check=True, timeout=250)
    results = np.fromfile(folder / "results", np.uint8)
    return np.split(results, np.cumsum([call.before.content.size for call in calls])[:-1])
