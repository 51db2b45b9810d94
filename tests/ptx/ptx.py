"""An interpreter for the PTX that NVRTC emits: CUDA kernels run, and are checked, on a machine without a GPU.

Every thread of a launch is one lane of NumPy arrays. Lanes that stand at the lowest program counter go first
and meet the others where those wait, so they reconverge as a GPU's do. What a GPU would punish, or leave
undefined, raises `PTXError`: see `Memory` for accesses; also a register that was never written, a barrier
that part of a block does not reach, a launch whose shape or arguments do not fit, and any instruction that is
not known here.

Not here: calls, atomics, warp shuffles and votes, 16-bit float arithmetic, approximate functions, textures,
module-level `.global` and `.const` variables. A thread that is elsewhere while others of its block stand at a
barrier counts as missing it, even if it could still come.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from ptx_machine import AGENT, BARRIER, BLOCK, BRANCH, EXIT, PLAIN, SPECIALS, Instruction, Machine, Register
from ptx_memory import Memory, PTXError, some
from ptx_operations import TYPES, operation
from ptx_text import ADDRESS, CACHING, ENTRY, INSTRUCTION, PARAMETER, TOKEN, VARIABLE, immediate, stored_as

__all__ = ["Kernel", "Memory", "Module", "PTXError"]

Read = Callable[[Machine], np.ndarray]
Write = Callable[[Machine, np.ndarray], None]
Run = Callable[[Machine], None]
_SPACES = ("global", "shared", "local", "param")
_WINDOWED = ("shared", "local")


class Parameter(NamedTuple):
    name: str
    size: int  # in bytes


class Module:
    """The entry points of one PTX text, parsed and decoded."""

    def __init__(self, ptx: str) -> None:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", ptx, flags=re.DOTALL)
        text = re.sub(r"^\s*\.(loc|file)\b[^\n]*", "", text, flags=re.MULTILINE)
        found, outside, position = [], "", 0
        while match := ENTRY.search(text, position):
            end = _closing_brace(text, match.end())
            found.append((*match.groups(), text[match.end() : end]))
            outside, position = outside + text[position : match.start()], end
        shared = tuple(re.findall(r"^\s*(?:\.visible\s+|\.weak\s+)?(\.shared[^;]*);", outside, flags=re.MULTILINE))
        self.entries = {
            name: _kernel(name, parameters, directives, shared, body) for name, parameters, directives, body in found
        }


class Kernel:
    """One entry point. `parameters` are its (name, size in bytes), in order."""

    def __init__(self, name: str, parameters: str, directives: str, shared: Sequence[str], body: str) -> None:
        self.name = name
        self.parameters = [_parse_parameter(text) for text in parameters.split(",") if text.strip()]
        decoder = _Decoder(self.parameters)
        for variable in shared:
            decoder.declare_variable(variable)
        try:
            decoder.decode(body)
        except PTXError as error:
            raise PTXError(f"{name}: {error}") from None
        self._code, self._registers, self._sizes = decoder.code, decoder.registers, decoder.sizes
        limits = re.findall(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", directives)
        self._block_limit = min([1024, *(math.prod(map(int, limit.split(","))) for limit in limits)])

    def launch(
        self,
        memory: Memory,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        *,
        max_steps: int = 1_000_000,
    ) -> Counter[str]:
        """Run every thread; how often a thread executed each instruction, by mnemonic.

        Parameters
        ----------
        memory : Memory
            All that the threads may touch; written in place.
        grid, block : 1 to 3 integers
            Blocks of the grid and threads of a block along x, y, z.
        arguments : bytes each
            The value of every parameter as it lies in memory; a struct passed by value is one of them.
        max_steps : int
            Instructions that may be issued, each for all lanes that stand there; more are an endless loop.

        Raises
        ------
        PTXError
            At the first fault, with the instruction. What was written before it stays written.
        """
        grid, block = self._check_shape(grid, block)
        if len(arguments) != len(self.parameters):
            raise PTXError(f"{self.name}: takes {len(self.parameters)} arguments, got {len(arguments)}")
        values = dict(zip((parameter.name for parameter in self.parameters), arguments, strict=True))
        for parameter, value in zip(self.parameters, arguments, strict=True):
            if len(value) != parameter.size:
                raise PTXError(f"{self.name}: {parameter.name} is {parameter.size} bytes, got {len(value)}")
        with np.errstate(all="ignore"):
            machine = Machine(memory, self._registers, self._sizes, grid, block)
            try:
                machine.map_parameters(values)
                return machine.run(self._code, max_steps)
            except PTXError as error:
                raise PTXError(f"{self.name}: {error}") from None
            finally:
                machine.unmap()

    def _check_shape(self, grid: Sequence[int], block: Sequence[int]) -> list[tuple[int, ...]]:
        grid, block = (tuple(shape) + (1,) * (3 - len(shape)) for shape in (grid, block))
        limits = {"grid": (grid, (2**31 - 1, 65535, 65535)), "block": (block, (1024, 1024, 64))}
        for what, (shape, limit) in limits.items():
            if len(shape) != 3 or not all(1 <= n <= most for n, most in zip(shape, limit, strict=True)):
                raise PTXError(f"{self.name}: {what} {shape} is not within 1 and {limit}")
        if math.prod(block) > self._block_limit:
            raise PTXError(f"{self.name}: block {block} has more than {self._block_limit} threads")
        return [grid, block]


_kernel = cache(Kernel)  # modules for several architectures have equal ones


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return start + match.start()
    raise PTXError("a brace is never closed")


def _parse_parameter(text: str) -> Parameter:
    match = PARAMETER.match(text.strip())
    if not match or match[2] not in TYPES:
        raise PTXError(f"cannot parse parameter: {text.strip()}")
    return Parameter(match[3], TYPES[match[2]].itemsize * int(match[4] or 1))


def _tokens(body: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of every brace, label and statement; a statement's own braces belong to it."""
    position = 0
    while match := TOKEN.match(body, position):
        yield match.lastgroup, match[match.lastgroup].strip()
        position = match.end()
    if body[position:].strip():
        raise PTXError(f"cannot parse: {body[position:].strip()[:80]}")


def _split_operands(text: str) -> list[list[str]]:
    """The operands, each a list: a vector's elements, or the operand alone."""
    operands = re.findall(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+)", text)
    return [[part.strip() for part in re.split(r"[,|]", operand.strip("{} \t\n"))] for operand in operands]


class _Decoder:
    """Turns the statements of a body into instructions whose operands are places in the register file.

    Parameters and variables are registers too: they hold their address, as in PTX itself.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self.registers: list[Register] = []
        self.code: list[Instruction] = []
        self.sizes = {"shared": 0, "local": 0}
        self.labels: dict[str, int] = {}
        self.names: ChainMap[str, int] = ChainMap()
        for name, dtype in SPECIALS.items():
            self._declare(name, dtype)
        self.parameters = {parameter.name: parameter for parameter in parameters}
        for name in self.parameters:
            self._declare(name, TYPES["u64"])

    def decode(self, body: str) -> None:
        for kind, text in _tokens(body):
            if text == "{":
                self.names = self.names.new_child()
            elif text == "}":
                self.names = self.names.parents
            elif kind == "label":
                if self.labels.setdefault(text, len(self.code)) != len(self.code):
                    raise PTXError(f"label {text} occurs twice")
            elif text.startswith("."):
                self._directive(text)
            elif text:
                self._add_instruction(" ".join(text.split()))
        self.code.append(Instruction("end of the kernel", "ret", EXIT))
        self._link()

    def _directive(self, text: str) -> None:
        if text.startswith((".shared", ".local")):
            self.declare_variable(text)
        elif text.startswith(".reg"):
            _, kind, names = text.split(None, 2)
            for name in names.split(","):
                prefix, _, count = name.strip().partition("<")
                for full in [prefix + str(k) for k in range(int(count[:-1]))] if count else [prefix]:
                    self._declare(full, stored_as(TYPES.get(kind[1:])))
        elif not text.startswith((".pragma", ".param")):  # .param: of a call, which is refused by itself
            raise PTXError(f"unsupported directive: {text}")

    def _declare(self, name: str, dtype: np.dtype) -> int:
        self.names[name] = len(self.registers)
        self.registers.append(Register(name, dtype))
        return self.names[name]

    def declare_variable(self, text: str) -> None:
        match = VARIABLE.match(text.strip())
        if not match or match[3] not in TYPES:
            raise PTXError(f"unsupported variable: {text}")
        space, itemsize = match[1], TYPES[match[3]].itemsize
        align = int(match[2] or itemsize)
        offset = -(-self.sizes[space] // align) * align
        self.sizes[space] = offset + itemsize * int(match[5] or 1)
        self.registers[self._declare(match[4], TYPES["u64"])].constant = offset

    def _add_instruction(self, text: str) -> None:
        match = INSTRUCTION.match(text)
        if not match:
            raise PTXError(f"cannot parse: {text}")
        guard, mnemonic, operands = match.groups()
        instruction = Instruction(text, mnemonic, PLAIN)
        try:
            if guard:
                instruction.guard = self._reader(guard, TYPES["pred"])
            self._bind(instruction, mnemonic.split("."), _split_operands(operands))
        except PTXError as error:
            raise PTXError(f"{error} in: {text}") from None
        self.code.append(instruction)

    def _bind(self, instruction: Instruction, parts: list[str], operands: list[list[str]]) -> None:
        opcode = parts[0]
        if opcode == "bra" and len(operands) == 1:
            instruction.kind, instruction.label = BRANCH, operands[0][0]
        elif opcode in ("ret", "exit") and not operands:
            instruction.kind = EXIT
        elif parts[:2] in (["bar", "sync"], ["barrier", "sync"]) and operands == [["0"]]:
            instruction.kind = BARRIER
        elif ".".join(parts) == "bar.red.popc.u32" and len(operands) == 3 and operands[1] == ["0"]:
            instruction.kind, instruction.run = BARRIER, self._count(operands[0][0], operands[2][0])
        elif opcode == "ld" and len(operands) == 2:
            instruction.run = self._load(parts, *operands)
        elif opcode == "st" and len(operands) == 2:
            instruction.run = self._store(parts, *operands)
        elif opcode == "cvta" and len(operands) == 2:
            instruction.run = self._change_space(parts, operands[0][0], operands[1][0])
        elif operands:
            sources = [name for operand in operands[1:] for name in operand]
            instruction.run = self._arithmetic(parts, operands[0], sources)
        else:
            raise PTXError("unsupported instruction")

    def _link(self) -> None:
        """Give branches their targets; one to a bare `ret` leaves at once."""
        for target in self.labels.values():
            self.code[target].leader = True
        for before, instruction in zip([None, *self.code[:-1]], self.code, strict=True):
            instruction.leader |= before is not None and before.kind != PLAIN
            if instruction.kind == BRANCH:
                if instruction.label not in self.labels:
                    raise PTXError(f"no label {instruction.label}")
                instruction.target = self.labels[instruction.label]
                target = self.code[instruction.target]
                if target.kind == EXIT and target.guard is None:
                    instruction.kind = EXIT

    # ---- operands ----

    def _reader(self, text: str, dtype: np.dtype) -> Read:
        """A function that gives an operand in the active lanes: one element per lane, or one for all."""
        if text.startswith("!"):
            plain = self._reader(text[1:], dtype)
            return lambda machine: ~plain(machine)
        if text not in self.names:
            constant = immediate(text, dtype)
            return lambda machine: constant
        place = self.names[text]
        storage = self.registers[place].dtype
        if storage == dtype:
            return lambda machine: machine.fetch(place)
        if "b" in (storage.kind, dtype.kind) or storage.itemsize < dtype.itemsize:
            raise PTXError(f"{text} holds {storage}, not {dtype},")
        if storage.itemsize == dtype.itemsize:
            return lambda machine: machine.fetch(place).view(dtype)
        narrow = stored_as(dtype)
        return lambda machine: machine.fetch(place).astype(narrow).view(dtype)

    def _writer(self, text: str, dtype: np.dtype) -> Write:
        """A function that puts values of `dtype` into a register, extending them where it is wider."""
        if text == "_":
            return lambda machine, value: None
        if text not in self.names:
            raise PTXError(f"unknown register {text}")
        place = self.names[text]
        storage = self.registers[place].dtype
        if storage == dtype:
            return lambda machine, value: machine.put(place, value)
        if "b" in (storage.kind, dtype.kind) or storage.itemsize < dtype.itemsize:
            raise PTXError(f"{text} holds {storage}, not {dtype},")
        if storage.itemsize == dtype.itemsize:
            return lambda machine, value: machine.put(place, value.view(storage))
        narrow = dtype if dtype.kind == "i" else stored_as(dtype)
        return lambda machine, value: machine.put(place, value.view(narrow).astype(storage))

    def _address(self, text: str, space: str, size: int) -> Read:
        """A function that gives the host address of `[base+offset]` in the active lanes."""
        match = ADDRESS.match(text)
        if not match or match[1] not in self.names:
            raise PTXError("unsupported address")
        width = self.registers[self.names[match[1]]].dtype
        if width.kind != "u" or width.itemsize < 4:
            raise PTXError("unsupported address")
        base = self._reader(match[1], width)
        offset = width.type(int(match[2] or "0", 0) % 2 ** (8 * width.itemsize))  # sums wrap at the base's width
        if space not in _WINDOWED:
            if not offset and width.itemsize == 8:
                return base
            return lambda machine: (base(machine) + offset).astype(np.uint64, copy=False)
        window, limit = self.names["@" + space], self.sizes[space] - size

        def address(machine: Machine) -> np.ndarray:
            inside = (base(machine) + offset).astype(np.uint64)
            beyond = inside > np.uint64(limit) if limit >= 0 else np.ones(1, bool)
            if some(beyond):
                raise PTXError(f"out of bounds: {size} bytes at {space} address {inside[beyond][0]}")
            return inside + machine.fetch(window)

        return address

    # ---- instructions ----

    def _arithmetic(self, parts: list[str], results: list[str], sources: list[str]) -> Run:
        if parts[0] in ("addc", "subc", "madc"):
            sources = [*sources, "%cc"]
        if "cc" in parts:
            results = [*results, "%cc"]
        found = operation(parts, len(results), len(sources))
        function = found.function
        readers = [self._reader(name, dtype) for name, dtype in zip(sources, found.sources, strict=True)]
        writers = [self._writer(name, dtype) for name, dtype in zip(results, found.results, strict=True)]
        if len(writers) == 1:
            (write,) = writers
            return lambda machine: write(machine, function(*[read(machine) for read in readers]))

        def run(machine: Machine) -> None:
            for write, value in zip(writers, function(*[read(machine) for read in readers]), strict=True):
                write(machine, value)

        return run

    def _count(self, result: str, predicate: str) -> Run:
        """In how many threads of the block a predicate is true."""
        write, read = self._writer(result, TYPES["u32"]), self._reader(predicate, TYPES["pred"])

        def run(machine: Machine) -> None:
            blocks = machine.per_lane(machine.fetch(BLOCK))
            true = np.bincount(blocks[machine.per_lane(read(machine))], minlength=len(machine.agents.blocks))
            write(machine, true[blocks].astype(np.uint32))

        return run

    def _access(self, parts: list[str], values: list[str], place: list[str]) -> tuple[str, np.dtype, Read]:
        """(space, type of an element, address in the active lanes) of a load or store."""
        dtype, modifiers = TYPES.get(parts[-1]), parts[1:-1]
        space = next((m for m in modifiers if m.split("::")[0] in _SPACES), "generic").split("::")[0]
        others = [m for m in modifiers if m.split("::")[0] not in _SPACES and m != f"v{len(values)}"]
        if dtype is None or dtype.kind == "b" or not all(CACHING.match(m) for m in others):
            raise PTXError("unsupported instruction")
        if len(values) > 1 and f"v{len(values)}" not in modifiers:
            raise PTXError(f"{len(values)} registers without .v{len(values)}")
        return space, dtype, self._address(place[0], space, dtype.itemsize * len(values))

    def _load(self, parts: list[str], results: list[str], place: list[str]) -> Run:
        space, dtype, address = self._access(parts, results, place)
        writers = [self._writer(name, dtype) for name in results]
        coherent = "nc" not in parts

        def run(machine: Machine) -> None:
            at = machine.per_lane(address(machine))
            loaded = machine.memory.load(at, dtype, len(writers), machine.fetch(AGENT), coherent=coherent)
            for write, value in zip(writers, loaded, strict=True):
                write(machine, value)

        def run_uniform(machine: Machine) -> None:
            at = address(machine)
            for write, value in zip(writers, machine.memory.load(at, dtype, len(writers), at[:0]), strict=True):
                write(machine, value)

        # a parameter by its name is the same for all lanes, and read-only, so it does not matter who reads
        return run_uniform if space == "param" and not place[0].startswith("[%") else run

    def _store(self, parts: list[str], place: list[str], values: list[str]) -> Run:
        space, dtype, address = self._access(parts, values, place)
        if space == "param":
            raise PTXError("unsupported instruction")
        readers = [self._reader(name, stored_as(dtype)) for name in values]

        def run(machine: Machine) -> None:
            at = machine.per_lane(address(machine))
            machine.memory.store(at, [read(machine) for read in readers], machine.fetch(AGENT))

        return run

    def _change_space(self, parts: list[str], result: str, source: str) -> Run:
        """cvta: global and parameter addresses are the host's, as generic ones; the others count from 0."""
        dtype, back = TYPES["u64"], parts[1] == "to"
        space = parts[-2].split("::")[0]
        if parts[-1] != "u64" or space not in _SPACES:
            raise PTXError("unsupported instruction")
        read, write = self._reader(source, dtype), self._writer(result, dtype)
        if space not in _WINDOWED:
            return lambda machine: write(machine, read(machine))
        window = self.names["@" + space]
        if back:
            return lambda machine: write(machine, read(machine) - machine.fetch(window))
        return lambda machine: write(machine, read(machine) + machine.fetch(window))
