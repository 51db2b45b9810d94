"""The values that a bias adds, as kernels take them: a table by distance, or rows with values of their own, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._arrays import Memory, dispatch
from .._arrays import numpy as numpy_arrays
from .._arrays.locks import unforkable
from .._backends import backend_of
from .._backends.calls import AddToeplitz, QueryKeyRows
from .arguments import device_name
from .checks import POSITION_LIMIT, message

FUNCTION = "add_bias"
LARGEST_SPAN = 1 << 20  # distances in a table of values, where positions are given
ROW_VALUES = 1 << 13  # values of each head made at a time where each row has its own
KEPT_BYTES = 1 << 25  # of the tables of values that are kept, all together
LARGEST_UPLOAD = 1 << 22  # bytes of the largest table that is kept on a GPU


class Work(NamedTuple):
    """A call, checked; it becomes one operation, or several where rows have values of their own."""

    library: ModuleType
    source: Memory
    target: Memory
    places: QueryKeyRows
    bias: Any
    causal: bool
    scale: float
    validate: bool

    def with_table(self, values: Memory, low: int, high: int) -> Iterator[AddToeplitz]:
        """What is to be done with a table of values of the caller's."""
        if 0 not in self.target.shape:
            yield self._operation(values=values, low=low, high=high)

    def table_span(self) -> tuple[int, int] | None:
        """The distances, key minus query, of a table of values that serves for every row; None where there is none."""
        if 0 in self.target.shape:
            return 0, 0
        first, last = self._ends(self.places.queries, self.places.start, self.target.shape[-2])
        if self.bias.normalises and last > _length(self):
            return None
        least, most = self._ends(self.places.keys, 0, self.target.shape[-1])
        low, high = least - last, most - first
        if self.causal:
            low, high = min(low, 0), min(high, 0)
        wide_low, wide_high = -_power(max(0, -low)), _power(max(0, high))  # so that it serves again
        if wide_high - wide_low <= 4 * (high - low) + 4096:
            low, high = wide_low, wide_high
        near, far = self.bias.reach  # of query minus key
        if far is not None:
            low, high = max(low, -far), max(high, -far)
        if near is not None:
            low, high = min(low, -near), min(high, -near)
        given = self.places.queries is not None or self.places.keys is not None
        return None if given and high - low >= LARGEST_SPAN else (low, high)

    def calls(self) -> Iterator[AddToeplitz]:
        """What is to be done: one call of the kernel, or several where rows have values of their own."""
        bias, places = self.bias, self.places
        if 0 in self.target.shape:
            return
        if bias.slopes_of is not None and (places.queries is not None or places.keys is not None):
            key = (bias, "slopes") if isinstance(bias.slopes_of, tuple) else None
            slopes = _host(self, "slopes", bias.slopes_of)
            yield self._operation(slopes=slopes, symmetric=bool(getattr(bias, "symmetric", 0)), key=key)
            return
        span = self.table_span()
        if span is not None:
            values, key = table_of(self, *span)
            yield self._operation(values=values, low=span[0], high=span[1], key=key)
            return
        count, shared = self.target.shape[-2], 0
        if bias.normalises and places.queries is None and places.keys is None:  # queries up to its length share a table
            shared = min(count, max(0, int(_length(self)) - places.start + 1))
        if shared:
            yield from self._part(slice(0, shared)).calls()
        yield from self._by_column(shared, count)

    def _operation(self, **of_bias: Any) -> AddToeplitz:
        fields = {"values": None, "low": 0, "high": 0, "slopes": None, "symmetric": False, "by_column": False, **of_bias}
        return AddToeplitz(self.source, self.target, self.places, causal=self.causal, input_scale=self.scale, **fields)

    def _ends(self, table: Memory | None, start: int, count: int) -> tuple[int, int]:
        """The smallest and the largest position of queries or keys; any if they are not known and not needed."""
        if table is None:
            return start, start + count - 1
        if table.device is not None and not self.validate:
            if None not in self.bias.reach and not self.bias.normalises:
                return -POSITION_LIMIT, POSITION_LIMIT
            name = type(self.bias).__name__
            rule = f"validate must be True where positions lie on a GPU and the bias is {name}, whose values have no end"
            raise ValueError(message(FUNCTION, rule, "False"))
        values = positions_of(self.library, table, start, count)
        return int(values.min()), int(values.max())

    def _by_column(self, first: int, last: int) -> Iterator[AddToeplitz]:
        """Rows with values of their own, a few at a time."""
        columns = self.target.shape[-1]
        step = max(1, ROW_VALUES // columns)
        varies = any(table is not None and len(table.shape) == 2 for table in (self.places.queries, self.places.keys))
        for b in range(self.target.shape[0] if varies else 1):
            for row in range(first, last, step):
                part = self._part(slice(row, min(last, row + step)), b if varies else None)
                queries = positions_of(self.library, part.places.queries, part.places.start, part.target.shape[-2])
                keys = positions_of(self.library, part.places.keys, 0, columns)
                distances, at = queries[:, None] - keys, queries[:, None] if self.bias.normalises else None
                made = _evaluate(part, distances, at)
                values = part.library.memory(backend_of(part.target).uploaded(made, part.target.device))
                yield part._operation(values=values, by_column=True)

    def _part(self, rows: slice, b: int | None = None) -> Work:
        """The same of some rows, of one sequence."""
        index: tuple[Any, ...] = (..., rows, slice(None))
        if b is not None:
            index = (slice(b, b + 1), *index)
        source = self.library.memory(self.source.array[index])
        target = source if self.target is self.source else self.library.memory(self.target.array[index])
        queries, keys = (
            table if table is None or b is None or len(table.shape) == 1 else self.library.memory(table.array[b])
            for table in (self.places.queries, self.places.keys)
        )
        if queries is not None:
            queries = self.library.memory(queries.array[..., rows])
        places = QueryKeyRows(self.places.start + (rows.start if queries is None else 0), queries, keys, self.places.kinds)
        return self._replace(source=source, target=target, places=places)


def positions_of(library: ModuleType, table: Memory | None, start: int, count: int) -> npt.NDArray[np.int64]:
    """The positions of queries or keys as numbers on the host."""
    if table is None:
        return np.arange(start, start + count, dtype=np.int64)
    return np.asarray(library.as_host(table.array)) >> 32


def is_value(bias: Any) -> bool:
    """Whether a bias consists of plain numbers and depends on the distance alone, so that its tables always serve."""
    return not bias.normalises and all(isinstance(value, tuple) for value in bias.parameters.values())


def takes_any_position(bias: Any) -> bool:
    """Whether one call of the kernel adds a bias between positions that only the GPU knows."""
    if bias.slopes_of is not None:
        return True
    near, far = bias.reach
    return not bias.normalises and (None in (near, far) or far - near < LARGEST_SPAN)


def _power(value: int) -> int:
    """The smallest power of two that is no smaller, at least 128; 0 for 0."""
    return 0 if value == 0 else max(128, 1 << (value - 1).bit_length())


def _host(work: Work, name: str, value: Any) -> npt.NDArray[np.float64]:
    """A parameter as float64 on the host; arrays must be where the scores are."""
    if isinstance(value, (tuple, float, int)):
        return np.array(value, np.float64)
    return np.asarray(work.library.as_host(parameter_memory(work, name, value).array)).astype(np.float64)


def own_memory(library: ModuleType, scores: Memory, name: str, value: Any, tensors: bool = False) -> Memory:
    """The memory of an array, which must be of the scores' library and on their device."""
    own_library, found = dispatch.memory(FUNCTION, name, value, tensors)
    if own_library is not library or found.device != scores.device:
        rule = f"{name} must be of the scores' library and on their device"
        got = f"{own_library.NAME} on {device_name(found.device)}"
        raise TypeError(message(FUNCTION, rule, got, "Nothing is copied between devices silently."))
    return found


def parameter_memory(work: Work, name: str, value: Any) -> Memory:
    return own_memory(work.library, work.source, f"the bias's {name}", value, tensors=True)


def _length(work: Work) -> float:
    return float(abs(_host(work, "length", work.bias.parameters["length"])).item())


def _evaluate(work: Work, distances: Any, queries: Any = None) -> npt.NDArray[Any]:
    """Values at distances, query minus key, on the host, rounded once."""
    given = {name: _host(work, name, value) for name, value in work.bias.parameters.items()}
    made = work.bias.evaluate(np, distances, queries, **given) + 0.0  # no -0
    return np.ascontiguousarray(made, np.float64 if work.source.dtype == "float64" else np.float32)


def table_of(work: Work, low: int, high: int) -> tuple[Memory, Any]:
    """The values of the distances low ... high, key minus query, and a name for them if they are always the same."""
    real = "float64" if work.source.dtype == "float64" else "float32"
    parameters, device = work.bias.parameters, work.source.device
    if is_value(work.bias):
        values, is_kept = _kept(work.bias, low, high, real)
        too_large = device is not None and values.nbytes > LARGEST_UPLOAD
        return numpy_arrays.memory(values), (work.bias, low, high, real) if is_kept and not too_large else None
    distances = -np.arange(low, high + 1)
    table = parameters.get("table")
    if table is not None and device is not None:
        rows = backend_of(work.source).uploaded(work.bias.rows(distances), device)
        found = work.library.contiguous(parameter_memory(work, "table", table).array.T[:, rows], real)
        return work.library.memory(found), None
    return work.library.memory(backend_of(work.source).uploaded(_evaluate(work, distances), device)), None


# ---- tables that are kept ----------------------------------------------------------------------------------------------------

_tables: dict[tuple[Any, int, int, str], npt.NDArray[Any]] = {}  # the oldest first


def _kept(bias: Any, low: int, high: int, real: str) -> tuple[npt.NDArray[Any], bool]:
    """The values of a bias that is fixed, and whether they are kept. The oldest ones are given up when others need the memory."""
    key = bias, low, high, real
    found = _tables.get(key)
    if found is None:
        found = np.ascontiguousarray(bias.values(-np.arange(low, high + 1)) + 0.0, real)  # no -0
        if found.nbytes > KEPT_BYTES:
            return found, False
        with unforkable:
            found = _tables.setdefault(key, found)
            while sum(table.nbytes for table in _tables.values()) > KEPT_BYTES:
                del _tables[next(iter(_tables))]
    return found, True


def clear() -> None:
    """Forget every table."""
    with unforkable:
        _tables.clear()
