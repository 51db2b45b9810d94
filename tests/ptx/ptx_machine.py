"""The machine that runs decoded PTX: a register file of one lane per thread, and the order of the lanes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ptx_memory import Agents, Memory, PTXError, every, some

PLAIN, BRANCH, EXIT, BARRIER = "plain", "branch", "exit", "barrier"

# Registers that every kernel has, at the head of the register file. Those with @ are the machine's own: who
# the thread is to the memory, its block, and where its shared and local memory begin.
SPECIALS = {"@agent": np.dtype(np.int64), "@block": np.dtype(np.int64)}
SPECIALS |= {name: np.dtype(np.uint64) for name in ("@shared", "@local")}
SPECIALS |= {"%cc": np.dtype(bool), "%laneid": np.dtype(np.uint32)}
SPECIALS |= {f"%{name}.{axis}": np.dtype(np.uint32) for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
_PLACES = {name: place for place, name in enumerate(SPECIALS)}
AGENT, BLOCK = _PLACES["@agent"], _PLACES["@block"]


@dataclass
class Register:
    name: str
    dtype: np.dtype
    constant: int | None = None  # the value at launch: the offset of a shared or local variable


@dataclass
class Instruction:
    text: str
    mnemonic: str
    kind: str
    guard: Callable | None = None  # which active lanes execute it
    run: Callable | None = None  # what they do, if it is PLAIN, or once all are at a BARRIER
    label: str = ""
    target: int = -1
    leader: bool = False  # lanes may wait here


class Machine:
    """One launch: its registers, its lanes and the program counters they wait at.

    A register's value has one element for all lanes or one per live lane; threads that left have no lane.
    `lanes` are the places of the active lanes, None if all are active.
    """

    def __init__(
        self,
        memory: Memory,
        registers: list[Register],
        sizes: dict[str, int],
        grid: tuple[int, ...],
        block: tuple[int, ...],
    ) -> None:
        self.memory, self.registers = memory, registers
        blocks, per_block = int(np.prod(grid)), int(np.prod(block))
        self.agents = Agents.of_launch(blocks, per_block)
        self.live = self.count = self.agents.threads
        self.lanes: np.ndarray | None = None
        self.waiting: dict[int, np.ndarray] = {}
        self.values: list[np.ndarray | None] = [None] * len(registers)
        self.written: list[np.ndarray | bool] = [False] * len(registers)  # in all lanes, in none, or a mask
        self._mapped: list[tuple[int, np.ndarray]] = []
        thread = np.arange(self.agents.threads)
        self._start("@agent", thread)
        self._start("@block", thread // per_block)
        self._start("@shared", self._map("shared memory", blocks, sizes["shared"], thread // per_block))
        self._start("@local", self._map("local memory", self.agents.threads, sizes["local"], thread))
        self._start("%laneid", thread % per_block % 32)
        self._start_indices("tid", "ntid", thread % per_block, block)
        self._start_indices("ctaid", "nctaid", thread // per_block, grid)
        for place, register in enumerate(registers):
            if register.constant is not None:
                self._set(place, np.array([register.constant]))
        memory.begin(self.agents)

    def _set(self, place: int, value: np.ndarray) -> None:
        self.values[place] = value.astype(self.registers[place].dtype)
        self.written[place] = True

    def _start(self, name: str, value: np.ndarray) -> None:
        self._set(_PLACES[name], value)

    def _start_indices(self, index: str, extent: str, linear: np.ndarray, shape: tuple[int, ...]) -> None:
        for axis, size in zip("xyz", shape, strict=True):
            self._start(f"%{index}.{axis}", linear % size if size > 1 else np.zeros(1))
            self._start(f"%{extent}.{axis}", np.array([size]))
            linear = linear // size

    def _map(self, name: str, copies: int, size: int, owner: np.ndarray) -> np.ndarray:
        """Room for `copies` of `size` bytes each; the address of each lane's own."""
        if size == 0:
            return np.zeros(1)
        stride = -(-size // 16) * 16
        buffer = self._aligned(copies * stride)
        self._mapped.append((self.memory.add(buffer, name=name, initialised=False), buffer))
        return buffer.ctypes.data + owner * stride

    @staticmethod
    def _aligned(size: int) -> np.ndarray:
        buffer = np.zeros(size + 15, np.uint8)
        return buffer[-buffer.ctypes.data % 16 :][:size]

    def map_parameters(self, values: dict[str, bytes]) -> None:
        """Put each parameter into memory, read-only, and its address into the register of its name."""
        places = {register.name: place for place, register in enumerate(self.registers)}
        for name, value in values.items():
            buffer = self._aligned(len(value))
            buffer[:] = np.frombuffer(value, np.uint8)
            self._mapped.append((self.memory.add(buffer, name=f"parameter {name}", writable=False), buffer))
            self._set(places[name], np.array([buffer.ctypes.data]))

    def unmap(self) -> None:
        for address, _ in self._mapped:
            self.memory.remove(address)

    # ---- registers ----

    def fetch(self, place: int) -> np.ndarray:
        """A register in the active lanes: one element per lane, or one for all."""
        written = self.written[place]
        if written is not True and (written is False or not every(self._pick(written))):
            raise PTXError(f"read of register {self.registers[place].name}, which was never written,")
        return self._pick(self.values[place])

    def _pick(self, value: np.ndarray) -> np.ndarray:
        return value if self.lanes is None or value.size == 1 else value.take(self.lanes)

    def put(self, place: int, value: np.ndarray) -> None:
        """Write a register in the active lanes. Registers may share an array, so none is changed."""
        if self.lanes is None:
            self.values[place], self.written[place] = value, True
            return
        old = self.values[place]
        if old is None:
            old = np.zeros(self.live, self.registers[place].dtype)
        new = np.repeat(old, self.live) if old.size < self.live else old.copy()
        new[self.lanes] = value
        self.values[place] = new
        written = self.written[place]
        if written is not True:
            mask = np.zeros(self.live, bool) if written is False else written.copy()
            mask[self.lanes] = True
            self.written[place] = True if every(mask) else mask

    def per_lane(self, value: np.ndarray) -> np.ndarray:
        return value if value.size == self.count else np.repeat(value, self.count)

    # ---- lanes ----

    def run(self, code: list[Instruction], max_steps: int) -> Counter[str]:
        """Run until no lane is left, lowest program counter first; executions per mnemonic."""
        executed = [0] * len(code)
        steps, pc = 0, 0
        self.waiting = {0: np.arange(self.live)}
        while self.waiting:
            pc = min(self.waiting)
            self._activate(self.waiting.pop(pc))
            while pc is not None:
                instruction = code[pc]
                steps += 1
                if steps > max_steps:
                    raise PTXError(f"still running after {max_steps} steps, at: {instruction.text}")
                executed[pc] += self.count
                try:
                    if instruction.kind == PLAIN and instruction.guard is None:
                        instruction.run(self)
                        pc += 1
                    else:
                        pc = self._control(instruction, pc)
                except PTXError as error:
                    raise PTXError(f"{error} in: {instruction.text}") from None
                if self.waiting and pc is not None and code[pc].leader:
                    self._wait(pc, self._places())
                    pc = None
        total: Counter[str] = Counter()
        for instruction, count in zip(code, executed, strict=True):
            total[instruction.mnemonic] += count
        return +total

    def _activate(self, places: np.ndarray) -> None:
        self.count = places.size
        self.lanes = None if places.size == self.live else places

    def _places(self) -> np.ndarray:
        return np.arange(self.live) if self.lanes is None else self.lanes

    def _wait(self, pc: int, places: np.ndarray) -> None:
        if pc in self.waiting:
            places = np.sort(np.concatenate([self.waiting[pc], places]))
        self.waiting[pc] = places

    def _control(self, instruction: Instruction, pc: int) -> int | None:
        """Execute what has a guard or moves lanes; where to go on, or None to choose lanes afresh."""
        taken = np.ones(1, bool) if instruction.guard is None else instruction.guard(self)
        if not some(taken):
            return pc + 1
        everyone = every(taken)
        places = self._places()
        inside, outside = (places, places[:0]) if everyone else (places[taken], places[~taken])
        if instruction.kind == BRANCH:
            if everyone:
                return instruction.target
            self._wait(instruction.target, inside)
            self._wait(pc + 1, outside)
            return None
        if instruction.kind == EXIT:
            if outside.size:
                self._wait(pc + 1, outside)
            self._leave(inside)
            return None
        self._activate(inside)
        if instruction.kind == BARRIER:
            self._pass_barrier()
        if instruction.run is not None:
            instruction.run(self)
        self._activate(places)
        return pc + 1

    def _leave(self, places: np.ndarray) -> None:
        """End these lanes' threads and close the gaps in the register file."""
        stays = np.ones(self.live, bool)
        stays[places] = False
        renumbered = np.cumsum(stays) - 1
        self.waiting = {pc: renumbered[waiting] for pc, waiting in self.waiting.items()}
        for place, value in enumerate(self.values):
            if value is not None and value.size > 1:
                self.values[place] = value[stays]
            mask = self.written[place]
            if isinstance(mask, np.ndarray):
                mask = mask[stays]
                self.written[place] = True if every(mask) else mask if some(mask) else False
        self.live = int(stays.sum())

    def _pass_barrier(self) -> None:
        """The active lanes are at a barrier: so must be all others of their blocks."""
        blocks = len(self.agents.blocks)
        arrived = np.bincount(self.fetch(BLOCK), minlength=blocks)
        alive = np.bincount(self.values[BLOCK], minlength=blocks)
        missing = np.flatnonzero((arrived > 0) & (arrived < alive))
        if missing.size:
            k = missing[0]
            raise PTXError(f"barrier divergence: {arrived[k]} of {alive[k]} threads of block {k} are there")
        self.put(AGENT, self.fetch(AGENT) + blocks)
