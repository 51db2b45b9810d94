"""A bias by distance added to attention scores: every check of its arguments. ``_core/bias_tables.py`` makes the values."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..._arrays import Memory, dispatch
from ..._arrays import numpy as numpy_arrays
from ..._backends import backend_of
from ..._backends.calls import QueryKeyRows
from .. import checks
from ..arguments import check_apart, either, host_numbers, output, overlap
from ..bias_tables import FUNCTION, Work, is_value, own_memory, parameter_memory, takes_any_position
from ..checks import POSITION_LIMIT, describe, message
from ..parts import Block
from ..text import says_all
from ..where import first_bad, is_array
from .base import Job, Operation

if TYPE_CHECKING:
    from typing import TypedDict

    class BetweenArguments(TypedDict, total=False):
        """The fields of ``Between`` as arguments by name."""

        q_offset: Any
        q_positions: Any
        k_positions: Any


class Between(NamedTuple):
    """Where queries and keys stand, as the arguments of a call say: see ``fastpe.add_bias``."""

    q_offset: Any = None
    q_positions: Any = None
    k_positions: Any = None


class _AddBias(NamedTuple):
    bias: Any
    causal: bool = False
    input_scale: float = 1.0


class AddBias(_AddBias, Operation):
    """``scores[h, i, j] = scores[h, i, j] * input_scale + bias_h(query i - key j)``, and -inf where ``causal`` hides the key."""

    __slots__ = ()
    function: ClassVar[str] = FUNCTION
    where_type: ClassVar[Any] = Between
    names: ClassVar[tuple[str, ...]] = ("scores",)

    def check(self, arrays: tuple[Any, ...], where: Between, out: Any, validate: bool) -> Job:
        (scores,) = arrays
        work = self.work(scores, where, out, validate)
        source, target = work.source, work.target
        in_place = out is None or out is scores
        dense = target.strides[-1] == source.strides[-1] == target.array.dtype.itemsize and 0 not in target.shape
        repeats = work if dense and is_value(work.bias) and says_all(work.bias) and in_place == (source is target) else None
        return Job(scores if out is None else out, target.device, work.calls(), repeats)

    def work(self, scores: Any, where: Between, out: Any, validate: bool) -> Work:
        """Everything checked, before it is decided how the values are made."""
        check_bias(self.bias)
        library, source = dispatch.memory(FUNCTION, "scores", scores)
        checks.floating(FUNCTION, "scores", source.dtype, scores)
        if len(source.shape) < 3:
            raise ValueError(message(FUNCTION, "scores must have at least 3 axes, (..., H, Tq, Tk)", f"shape {source.shape}"))
        if source.shape[-3] != self.bias.heads:
            rule = f"scores must have the bias's {self.bias.heads} heads in their third axis from the end, (..., H, Tq, Tk)"
            raise ValueError(message(FUNCTION, rule, f"shape {source.shape}"))
        checks.boolean(FUNCTION, "causal", self.causal)
        checks.boolean(FUNCTION, "validate", validate)
        scale = checks.number(FUNCTION, "input_scale", self.input_scale)
        checks.fits(FUNCTION, "input_scale", scale, source.dtype)
        target = source if out is None or out is scores else _output(out, library, source)
        checks.writable(FUNCTION, "scores" if target is source else "out", target)
        places = resolve(library, source, where, validate, takes_any_position(self.bias))
        work = Work(library, source, target, places, self.bias, self.causal, scale, validate)
        for name, value in self.bias.parameters.items():
            if not isinstance(value, (tuple, float, int)):
                check_apart(FUNCTION, target, {f"the bias's {name}": parameter_memory(work, name, value)})
        return work

    def part(self, where: Between, shape: tuple[int, ...], block: Block) -> tuple[AddBias, Between]:
        """Of scores of this shape. A block of some heads has their part of the bias."""
        (q_offset, queries, keys), (heads, rows, columns) = where, block[-3:]
        if any(type(value) is not int and is_array(value) and not dispatch.is_tensor(value) for value in where):
            outline = Memory(None, 0, shape, (0,) * len(shape), "float32", None, True)
            resolve(numpy_arrays, outline, where, False)
        operation = self
        if tuple(heads) != (0, shape[-3]):
            if not hasattr(self.bias, "of_heads"):
                raise TypeError(
                    message(FUNCTION, "a bias must derive from fastpe's Bias to be split by heads", describe(self.bias))
                )
            operation = self._replace(bias=self.bias.of_heads(*heads))
        if keys is None and tuple(columns) != (0, shape[-1]):
            keys = np.arange(shape[-1])
        if q_offset is None and queries is None:
            if keys is None:
                q_offset = shape[-1] - shape[-2]
            else:
                queries = host_numbers(FUNCTION, "k_positions", keys)[..., shape[-1] - shape[-2] :]
        sequences = slice(*block[0]) if len(shape) > 3 else slice(None)
        if q_offset is not None:
            if type(q_offset) is not int and is_array(q_offset):
                q_offset = host_numbers(FUNCTION, "q_offset", q_offset)[sequences]
            q_offset = q_offset + rows[0]
        parts = []
        for name, value, ends in (("q_positions", queries, rows), ("k_positions", keys, columns)):
            table = None if value is None else host_numbers(FUNCTION, name, value)
            if table is not None:
                table = (table[sequences] if table.ndim == 2 else table)[..., slice(*ends)]
            parts.append(table)
        return operation, Between(q_offset, *parts)

    def key(self, arrays: tuple[Any, ...], where: Between, out: Any) -> Any:
        (scores,), target = arrays, None
        if type(scores) is not np.ndarray or not self.repeatable(where):
            return None
        if out is not None and out is not scores:
            if type(out) is not np.ndarray or out.shape != scores.shape:
                return None
            target = out.dtype, None if out.flags.c_contiguous else out.strides
        steps = None if scores.flags.c_contiguous else scores.strides
        # A text does not tell arrays of the caller's apart, but calls with such are not kept.
        return AddBias, self.bias.text, self.causal, self.input_scale, scores.dtype, scores.shape[:-1], steps, target

    def repeatable(self, where: Between) -> bool:
        bias, causal, scale = self
        offset, q_positions, k_positions = where
        return (
            q_positions is k_positions is None
            and type(causal) is bool
            and type(scale) is float
            and (offset is None or type(offset) is int)
            and hasattr(bias, "text")
        )


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def check_bias(bias: Any) -> None:
    """Refuse what is no bias."""
    if not hasattr(bias, "heads") or not callable(getattr(bias, "evaluate", None)):
        raise TypeError(message(FUNCTION, "bias must be a bias such as fastpe.ALiBi(heads)", describe(bias)))


def _output(out: Any, library: ModuleType, source: Memory) -> Memory:
    target = output(FUNCTION, out, library, source.device, source.shape, source.dtype)
    if target.same_elements(source):
        return source
    if overlap(source, target):
        remedy = "Pass the scores themselves, or an array that shares no memory with them."
        raise ValueError(message(FUNCTION, "out must not partly overlap the scores", "overlapping views", remedy))
    return target


def resolve(library: ModuleType, scores: Memory, where: Between, validate: bool, direct: bool = False) -> QueryKeyRows:
    """Where queries and keys stand, as kernels know it. ``direct``: whether kernels may read positions on a GPU where they are."""
    q_offset, q_positions, k_positions = where
    queries_count, keys_count = scores.shape[-2:]
    if max(queries_count, keys_count) > POSITION_LIMIT:
        rule = "Tq and Tk must be at most 2^31, as every position lies in [-2^31, 2^31)"
        raise ValueError(message(FUNCTION, rule, f"shape {scores.shape}"))

    def placed(name: str, value: Any, count: int) -> tuple[Memory, int]:
        return _position_table(library, scores, name, value, count, validate, direct)

    keys, kind = (None, 0) if k_positions is None else placed("k_positions", k_positions, keys_count)
    if q_positions is not None:
        if q_offset is not None:
            remedy = "Give one of them."
            raise ValueError(message(FUNCTION, "q_offset and q_positions contradict each other", "both", remedy))
        queries, own = placed("q_positions", q_positions, queries_count)
        return QueryKeyRows(0, queries, keys, (own, kind))
    if q_offset is None:
        if keys is None:
            return QueryKeyRows(keys_count - queries_count, None, None)
        if queries_count > keys_count:
            rule = "q_positions or q_offset must be given where there are more queries than k_positions"
            raise ValueError(message(FUNCTION, rule, f"{queries_count} queries, {keys_count} keys"))
        first = keys_count - queries_count
        shape, address = (*keys.shape[:-1], queries_count), keys.address + first * keys.strides[-1]
        return QueryKeyRows(0, keys._replace(array=keys.array[..., first:], address=address, shape=shape), keys, (kind, kind))
    if is_array(q_offset):
        queries, own = placed("q_offset", q_offset, queries_count)
        return QueryKeyRows(0, queries, keys, (own, kind))
    start = checks.integer(FUNCTION, "q_offset", q_offset, "One offset a sequence is an array of shape (B,).")
    checks.positions(FUNCTION, start, queries_count, f"q_offset {start} with {queries_count} queries")
    return QueryKeyRows(start, None, keys, (0, kind))


def _position_table(
    library: ModuleType, scores: Memory, name: str, value: Any, count: int, validate: bool, direct: bool
) -> tuple[Memory, int]:
    """Positions of queries or keys, given or counting from one ``q_offset`` a sequence: a table and 0, or themselves and their kind."""
    batch = scores.shape[:1] if len(scores.shape) > 3 else ()
    counts = name == "q_offset"
    if counts and not batch:
        remedy = "Scores of shape (H, Tq, Tk) have no batch axis; give an int."
        raise ValueError(message(FUNCTION, "q_offset must be an integer", describe(value), remedy))
    if scores.device is None:
        value = host_numbers(FUNCTION, name, value)
    given = own_memory(library, scores, name, value)
    if given.array.dtype.kind not in "iu":
        remedy = "Round them first." if given.array.dtype.kind == "f" else ""
        raise TypeError(message(FUNCTION, f"{name} must be integers", describe(value), remedy))
    accepted = [batch] if counts else [(count,), (*batch, count)]
    if given.shape not in accepted:
        raise ValueError(message(FUNCTION, f"{name} must have shape {either(accepted)}", f"shape {given.shape}"))
    backend = backend_of(scores)
    kind = backend.kind_of_positions(given, counts) if direct and not validate else 0
    if kind:
        return (given._replace(shape=(*batch, count), strides=(given.strides[0], 0)) if counts else given), kind
    table: Memory = (
        backend.locate_rows_counted(library, count, None, given, None) if counts else backend.locate_rows_given(library, given)
    )
    bad = first_bad(library, table, validate)
    if bad is not None:
        index = bad[: len(given.shape)]
        found = np.asarray(library.as_host(given.array))[index]
        raise ValueError(message(FUNCTION, f"{name} must lie in [-2^31, 2^31)", f"{found} at index {index}"))
    return table, 0
