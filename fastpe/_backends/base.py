"""What a backend must offer, and which backend serves a device."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from .._arrays.locks import unforkable

if TYPE_CHECKING:
    from .._arrays import Memory
    from .calls import Call


class Prepared(Protocol):
    """A call whose arguments are checked and packed: it runs again on other arrays of the same layout.

    ``rows`` is T. ``addresses`` are those of the arrays that it was made for, in the order in which ``run`` takes others:

    - ``AddSinusoidal`` and ``AddGrid``: source, target (equal in place)
    - ``GatherSum``: table (or x of add_table), ids (0 for add_table), target
    - ``Rotate``: q, k; out of place source and target of each; only those that were given
    - ``AddToeplitz``: source, target (equal in place)
    """

    rows: int
    positions: int  # how many of them ``run`` may be given
    addresses: tuple[int, ...]

    def run(self, addresses: Sequence[int], start: int, extra: Any = None, /) -> None:
        """Run on the arrays at these addresses.

        ``start`` is the position of the first row (of a bias the first query) in units of 2^-32. ``extra``: int64 positions instead of
        ``start``, as many as the table had with which the call was made; of a bias the array of values
        that it was made with, which is kept alive until the call returns.
        """

    def takes(self, where: Any, /) -> bool:
        """Whether ``run`` may be given this array of positions or offsets of sequences; on a device their address instead of ``start``."""

    def again(self) -> None:
        """Run on the arrays that it was made for."""


class Backend(Protocol):
    """A module that runs calls on one kind of memory.

    ``device`` is None for the host, else a CUDA device's number. ``library`` is the ``fastpe._arrays`` module of the caller's arrays.
    Tables of positions are int64 in units of 2^-32; what is no position in [-2^31, 2^31) is NOT_A_POSITION there, and its row NaN.
    """

    ID_TYPES: Sequence[str]  # of ids that kernels read; others are converted
    SCALE_TYPES: Sequence[str]  # of scales and zero points
    MOST_COUNTED_ROWS: int  # of a mask that kernels count themselves; more are counted into a table

    def run(self, call: Call, /) -> None:
        """Run a call, or launch it on the caller's current stream. Its arguments have been checked."""

    def prepare(self, call: Call, /) -> Prepared | None:
        """The call, prepared to be run again; None if the backend cannot, or if it takes more than one kernel call."""

    def warmup(self, dtype: str, device: Any, /) -> None:
        """Compile what the usual calls on an element type need."""

    def refuse_temporary(self, device: int | None, reason: str, /) -> None:
        """Raise RuntimeError where a kernel must not read what only this call keeps alive."""

    def uploaded(self, array: Any, device: int | None, /) -> Any:
        """Numbers of the host as an array on a device, which is kept for calls with the same ones."""

    def clear(self) -> None:
        """Forget what ``uploaded`` keeps."""

    def kind_of_positions(self, positions: Memory, counts: bool, /) -> int:
        """How kernels read positions (or with ``counts`` the offsets of sequences) where they are; 0 if they need a table."""

    def locate_rows_given(self, library: ModuleType, positions: Memory, /) -> Memory:
        """A table of positions of any shape from integers or reals."""

    def locate_rows_counted(
        self, library: ModuleType, rows: int, mask: Memory | None, offsets: Memory | int, boundaries: Memory | None, /
    ) -> Memory:
        """A table (1 or B, T) of positions that count the rows, or those kept by a mask, from the offsets, anew from each boundary."""


BACKENDS = {"host": "fastpe._backends.host.launch", "cuda": "fastpe._backends.cuda"}
_loaded: dict[str, Backend] = {}


def backend_on(device: int | None) -> Backend:
    """The backend of a CUDA device, or of the host."""
    name = "host" if device is None else "cuda"
    return _loaded.get(name) or _load(name)


def backend_of(memory: Memory) -> Backend:
    """The backend of the device on which an array lies."""
    return backend_on(memory.device)


def clear() -> None:
    """Have every backend that was used forget what it keeps of calls."""
    for backend in list(_loaded.values()):
        backend.clear()


def _load(name: str) -> Backend:
    with unforkable:
        backend = _loaded[name] = cast(Backend, importlib.import_module(BACKENDS[name]))
        return backend
