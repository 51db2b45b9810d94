"""What each arithmetic instruction of PTX computes: a mnemonic becomes a function on arrays.

A modifier that is not known here makes the instruction unsupported, so that none is ever ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import ptx_numbers as compute
from ptx_memory import PTXError
from ptx_numbers import F32, F64, PRED, U16, U32

_HALVES = {
    "f16": U16,
    "bf16": U16,
    "f16x2": U32,
    "bf16x2": U32,
}  # held as bits: only cvt gives them a meaning
TYPES = {f"{kind}{8 * size}": np.dtype(f"{code}{size}") for kind, code in ("uu", "si", "bu") for size in (1, 2, 4, 8)}
TYPES |= {"f32": F32, "f64": F64, "pred": PRED} | _HALVES


class Operation(NamedTuple):
    """A function of one array per source that returns one array, or a tuple of one per result."""

    function: Callable
    sources: tuple[np.dtype, ...]
    results: tuple[np.dtype, ...]


def operation(parts: Sequence[str], outputs: int, inputs: int) -> Operation:
    """The operation that a mnemonic, split at its dots, names. The carry flag counts as an operand."""
    found = _DECODERS[parts[0]](list(parts), outputs, inputs) if parts[0] in _DECODERS else None
    if found is None:
        raise PTXError("unsupported instruction")
    if (len(found.sources), len(found.results)) != (inputs, outputs):
        raise PTXError(f"{len(found.sources)} sources and {len(found.results)} results are needed")
    return found


# ---- floating point ------------------------------------------------------------------------------


_FLOAT_FUNCTIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "min": compute.smaller,
    "max": compute.larger,
    "neg": np.negative,
    "abs": np.absolute,
    "copysign": lambda a, b: np.copysign(b, a),
}


def _float_arithmetic(parts: list[str]) -> Operation | None:
    opcode, modifiers, dtype = parts[0], set(parts[1:-1]), TYPES[parts[-1]]
    fused = compute.fma_f32 if dtype == F32 else compute.fma_f64
    function = fused if opcode in ("fma", "mad") else _FLOAT_FUNCTIONS.get(opcode)
    allowed = {"rn", "ftz", "sat"} if dtype == F32 else {"rn"}
    needs_rounding = opcode in ("fma", "mad", "div", "sqrt", "rcp")
    if function is None or not modifiers <= allowed or (needs_rounding and "rn" not in modifiers):
        return None
    arity = 3 if opcode in ("fma", "mad") else 1 if opcode in ("neg", "abs", "sqrt", "rcp") else 2
    if dtype == F32:
        function = _single_precision(function, modifiers, one_nan=opcode not in ("neg", "abs", "copysign"))
    return Operation(function, (dtype,) * arity, (dtype,))


def _single_precision(function: Callable, modifiers: set[str], one_nan: bool) -> Callable:
    """Add what the modifiers ask of a float32 function."""
    if not one_nan and not modifiers:
        return function
    if one_nan and modifiers <= {"rn"}:
        return lambda *operands: compute.canonical(function(*operands))

    def run(*operands: np.ndarray) -> np.ndarray:
        if "ftz" in modifiers:
            operands = tuple(compute.flush(operand) for operand in operands)
        result = function(*operands)
        result = compute.canonical(result) if one_nan else result
        result = compute.flush(result) if "ftz" in modifiers else result
        return compute.clamp_to_one(result) if "sat" in modifiers else result

    return run


# ---- integers and bits ---------------------------------------------------------------------------


_INTEGER_FUNCTIONS = {  # opcode: (function, whether it reads its sources as signed)
    "add": (np.add, False),
    "sub": (np.subtract, False),
    "and": (np.bitwise_and, False),
    "or": (np.bitwise_or, False),
    "xor": (np.bitwise_xor, False),
    "not": (np.invert, False),
    "neg": (np.negative, False),
    "abs": (np.absolute, True),
    "min": (np.minimum, True),
    "max": (np.maximum, True),
    "div": (lambda a, b: compute.divide(a, b)[0], True),
    "rem": (lambda a, b: compute.divide(a, b)[1], True),
}


def _arithmetic(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    opcode, dtype = parts[0], TYPES.get(parts[-1])
    if dtype is None or parts[-1] in _HALVES:
        return None
    if dtype.kind == "f":
        return _float_arithmetic(parts)
    if "cc" in parts or opcode in ("addc", "subc", "madc"):
        return _carrying(parts, dtype)
    if opcode in ("mul", "mad"):
        return _multiplication(parts, dtype)
    if len(parts) != 2 or opcode not in _INTEGER_FUNCTIONS:
        return None
    if dtype == PRED and opcode not in ("and", "or", "xor", "not"):
        return None
    function, as_signed = _INTEGER_FUNCTIONS[opcode]
    dtype = dtype if as_signed else compute.unsigned(dtype)
    return Operation(function, (dtype,) * (1 if opcode in ("not", "neg", "abs") else 2), (dtype,))


def _multiplication(parts: list[str], dtype: np.dtype) -> Operation | None:
    half = parts[1] if len(parts) == 3 else None
    if half not in ("lo", "hi", "wide") or (half == "wide" and dtype.itemsize == 8):
        return None
    dtype = compute.unsigned(dtype) if half == "lo" else dtype
    result = compute.twice_as_wide(dtype) if half == "wide" else dtype
    product = {
        "lo": np.multiply,
        "hi": compute.multiply_high,
        "wide": lambda a, b: a.astype(result) * b.astype(result),
    }[half]
    if parts[0] == "mul":
        return Operation(product, (dtype, dtype), (result,))
    return Operation(lambda a, b, c: product(a, b) + c, (dtype, dtype, result), (result,))


def _carrying(parts: list[str], dtype: np.dtype) -> Operation | None:
    """add, sub and mad with the carry flag as last source (the `c` forms), last result (`.cc`) or both."""
    opcode, modifiers = parts[0], parts[1:-1]
    takes, gives = opcode in ("addc", "subc", "madc"), "cc" in modifiers
    base = opcode[:3]
    half = [m for m in modifiers if m != "cc"]
    if dtype.itemsize < 4 or half not in ([["lo"], ["hi"]] if base == "mad" else [[]]):
        return None
    unsigned = compute.unsigned(dtype)

    def run(*operands: np.ndarray) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        values, carry = (operands[:-1], operands[-1]) if takes else (operands, np.zeros(1, bool))
        if base == "mad":
            product = compute.multiply_high if half == ["hi"] else np.multiply
            values = (product(*values[:2]), values[2])
        a, b = (value.view(unsigned) for value in values)
        partial = a - b if base == "sub" else a + b
        total = partial - carry.astype(unsigned) if base == "sub" else partial + carry.astype(unsigned)
        over = (a < b) | (partial < total) if base == "sub" else (partial < a) | (total < partial)
        return (total, over) if gives else total

    count = 3 if base == "mad" else 2
    return Operation(run, (dtype,) * count + (PRED,) * takes, (unsigned,) + (PRED,) * gives)


def _bits(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    opcode, dtype = parts[0], TYPES.get(parts[-1])
    if dtype is None or dtype.kind not in "iu" or parts[-1] in _HALVES:
        return None
    unsigned = compute.unsigned(dtype)
    if opcode == "shf" and parts[1] in ("l", "r") and parts[2:] in (["wrap", "b32"], ["clamp", "b32"]):
        return Operation(compute.funnel_shift(parts[1], parts[2]), (U32, U32, U32), (U32,))
    if len(parts) != 2:
        return None
    return {
        "shl": Operation(compute.shift_left, (unsigned, U32), (unsigned,)),
        "shr": Operation(compute.shift_right, (dtype, U32), (dtype,)),
        "bfe": Operation(compute.extract_bits, (dtype, U32, U32), (dtype,)),
        "bfi": Operation(compute.insert_bits, (unsigned, unsigned, U32, U32), (unsigned,)),
        "prmt": Operation(compute.permute_bytes, (U32, U32, U32), (U32,)),
        "popc": Operation(lambda a: np.bitwise_count(a).astype(U32), (unsigned,), (U32,)),
        "clz": Operation(compute.count_leading_zeros, (unsigned,), (U32,)),
    }.get(opcode)


# ---- comparison, selection, moves ----------------------------------------------------------------

_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINATIONS = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def _comparison(name: str, dtype: np.dtype) -> Callable | None:
    """Ordered comparisons are false where an operand is NaN; those ending in u are true there."""
    if dtype.kind != "f":
        return _COMPARISONS.get(_UNSIGNED_NAMES.get(name, name))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name.endswith("u") and name[:-1] in _COMPARISONS:
        compare = _COMPARISONS[name[:-1]]
        return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
    return _COMPARISONS.get(name)


def _set_predicate(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    dtype, modifiers = TYPES.get(parts[-1]), parts[1:-1]
    if dtype is None or parts[-1] in _HALVES:
        return None
    flush = "ftz" in modifiers
    modifiers = [m for m in modifiers if m != "ftz"]
    if not modifiers or len(modifiers) != inputs - 1 or (flush and dtype != F32):
        return None
    compare = _comparison(modifiers[0], dtype)
    combine = _COMBINATIONS.get(modifiers[1]) if inputs == 3 else lambda result, _: result
    if compare is None or combine is None:
        return None

    def run(a: np.ndarray, b: np.ndarray, other: np.ndarray | None = None) -> np.ndarray | tuple:
        result = compare(compute.flush(a), compute.flush(b)) if flush else compare(a, b)
        return combine(result, other) if outputs == 1 else (combine(result, other), combine(~result, other))

    return Operation(run, (dtype, dtype) + (PRED,) * (inputs - 2), (PRED,) * outputs)


def _select(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    if len(parts) != 2 or parts[-1] not in TYPES:
        return None
    dtype = compute.unsigned(TYPES[parts[-1]])
    return Operation(lambda a, b, which: np.where(which, a, b), (dtype, dtype, PRED), (dtype,))


def _move(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    """mov, which also splits a register into smaller ones and puts them together; the first is the lowest."""
    if len(parts) != 2 or parts[-1] not in TYPES:
        return None
    whole = compute.unsigned(TYPES[parts[-1]])
    if (outputs, inputs) == (1, 1):
        return Operation(lambda a: a, (whole,), (whole,))
    count = max(outputs, inputs)
    if count not in (2, 4) or min(outputs, inputs) != 1 or whole.itemsize < count:
        return None
    part = np.dtype(f"u{whole.itemsize // count}")
    if outputs > 1:
        return Operation(lambda a: tuple(np.ascontiguousarray(a).view(part).reshape(-1, count).T), (whole,), (part,) * count)

    def join(*pieces: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(*pieces), axis=1).view(whole).reshape(-1)

    return Operation(join, (part,) * count, (whole,))


# ---- conversion ----------------------------------------------------------------------------------


_ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_HALF_FORMS = {  # (to, from): (function, sources, result); x2 puts its first operand into the upper half
    ("f16", "f32"): (compute.to_f16, (F32,), U16),
    ("f16", "f64"): (compute.to_f16, (F64,), U16),
    ("bf16", "f32"): (compute.to_bf16, (F32,), U16),
    ("f16x2", "f32"): (lambda a, b: _pair(compute.to_f16(a), compute.to_f16(b)), (F32, F32), U32),
    ("bf16x2", "f32"): (lambda a, b: _pair(compute.to_bf16(a), compute.to_bf16(b)), (F32, F32), U32),
    ("f32", "f16"): (lambda a: compute.from_f16(a, F32), (U16,), F32),
    ("f64", "f16"): (lambda a: compute.from_f16(a, F64), (U16,), F64),
    ("f32", "bf16"): (compute.from_bf16, (U16,), F32),
}


def _pair(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return upper.astype(U32) << np.uint32(16) | lower.astype(U32)


def _convert(parts: list[str], outputs: int, inputs: int) -> Operation | None:
    modifiers, names = parts[1:-2], tuple(parts[-2:])
    if names in _HALF_FORMS:
        function, sources, result = _HALF_FORMS[names]
        narrowing = result.itemsize < 4 or len(sources) == 2
        return Operation(function, sources, (result,)) if modifiers == ["rn"] * narrowing else None
    if any(name not in TYPES or name in _HALVES or name[0] not in "usf" for name in names):
        return None
    to, source = (TYPES[name] for name in names)
    flush, saturate = "ftz" in modifiers, "sat" in modifiers
    rounding = [m for m in modifiers if m not in ("ftz", "sat")]
    function = _conversion(to, source, rounding, saturate)
    if function is None or (flush and F32 not in (to, source)):
        return None
    return Operation(_flushing(function, to) if flush else function, (source,), (to,))


def _flushing(function: Callable, to: np.dtype) -> Callable:
    def run(x: np.ndarray) -> np.ndarray:
        result = function(compute.flush(x) if x.dtype == F32 else x)
        return compute.flush(result) if to == F32 else result

    return run


def _conversion(to: np.dtype, source: np.dtype, rounding: list[str], saturate: bool) -> Callable | None:
    """The function of a cvt between two of the types that NumPy has too."""
    if source.kind != "f" and to.kind != "f":
        return None if rounding else _between_integers(to, source, saturate)
    if source.kind == "f" and to.kind != "f":
        how = _ROUNDINGS.get(rounding[0]) if len(rounding) == 1 else None
        return None if how is None else lambda x: compute.to_integer(x, how, to)
    if to == source and len(rounding) == 1:
        change = _ROUNDINGS.get(rounding[0])
    else:
        narrowing = source.kind != "f" or to.itemsize < source.itemsize
        change = (lambda x: x.astype(to)) if rounding == ["rn"] * narrowing else None
    if change is None:
        return None
    finish = compute.canonical if to == F32 and source.kind == "f" else lambda x: x
    return lambda x: compute.clamp_to_one(change(x)) if saturate else finish(change(x))


def _between_integers(to: np.dtype, source: np.dtype, saturate: bool) -> Callable:
    if not saturate:
        return lambda x: x.astype(to)
    low = max(np.iinfo(to).min, np.iinfo(source).min)
    high = min(np.iinfo(to).max, np.iinfo(source).max)
    return lambda x: np.clip(x, source.type(low), source.type(high)).astype(to)


_DECODERS = dict.fromkeys((*_INTEGER_FUNCTIONS, *_FLOAT_FUNCTIONS, "fma", "mad", "mul", "addc", "subc", "madc"), _arithmetic)
_DECODERS |= dict.fromkeys(("shl", "shr", "shf", "bfe", "bfi", "prmt", "popc", "clz"), _bits)
_DECODERS |= {"setp": _set_predicate, "selp": _select, "mov": _move, "cvt": _convert}
