"""A module as NVRTC emits it for several architectures: each launch runs all kernels that differ, and they must leave the same memory.

Most have the same text for compute capability 7.5 as for 9.0; it runs once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from ptx import Kernel, Memory, Module, PTXError
from ptx_memory import Buffer


class Content:
    """What a buffer holds at a time, and which bytes nobody has written."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer, self.raw, self.unit = buffer, buffer.raw.copy(), buffer.unit
        self.blank = None if buffer.blank is None else buffer.blank.copy()

    def put_back(self) -> None:
        self.buffer.raw[:] = self.raw
        self.buffer.unit, self.buffer.blank = self.unit, None if self.blank is None else self.blank.copy()
        self.buffer.forget()

    def equals(self, other: Content) -> bool:
        return np.array_equal(self.raw, other.raw) and np.array_equal(self._blank_bytes(), other._blank_bytes())

    def _blank_bytes(self) -> np.ndarray:
        skipped = self.buffer.start - self.buffer.origin
        return np.zeros(0, bool) if self.blank is None else np.repeat(self.blank, self.unit)[skipped : skipped + self.raw.size]


class VariedKernel:
    """One entry point: the kernels that differ, each under the targets that have it."""

    def __init__(self, name: str, kernels: dict[str, Kernel]) -> None:
        self.name, self.kernels = name, kernels

    def launch(self, memory: Memory, grid: Sequence[int], block: Sequence[int], arguments: Sequence[bytes]) -> Counter[str]:
        """Run each on the same memory; how often all executed each instruction.

        Raises
        ------
        PTXError
            At the first fault of any, and where one leaves other bytes than the first.
        """
        (first, kernel), *others = self.kernels.items()
        before = [Content(buffer) for buffer in memory.buffers if buffer.writable] if others else []
        executed = self._run(first, kernel, memory, grid, block, arguments)
        expected = [Content(one.buffer) for one in before]
        for targets, kernel in others:
            for one in before:
                one.put_back()
            executed += self._run(targets, kernel, memory, grid, block, arguments)
            for one in expected:
                if not one.equals(Content(one.buffer)):
                    raise PTXError(f"{self.name}: {targets} leaves other bytes in {one.buffer.name} than {first}")
        return executed

    def _run(self, targets: str, kernel: Kernel, *launched: object) -> Counter[str]:
        try:
            return kernel.launch(*launched)
        except PTXError as error:
            raise PTXError(f"{targets}: {error}") from None


def varied(texts: Sequence[str]) -> dict[str, VariedKernel]:
    """The entry points of a module, from its text for each target."""
    modules = {re.search(r"^\s*\.target\s+(\w+)", text, re.MULTILINE)[1]: Module(text).entries for text in texts}
    found = {}
    for name in next(iter(modules.values())):
        targets: dict[Kernel, list[str]] = {}
        for target, entries in modules.items():
            targets.setdefault(entries[name], []).append(target)  # an equal text is the same kernel
        found[name] = VariedKernel(name, {" and ".join(those): kernel for kernel, those in targets.items()})
    return found
