"""A stand-in for CuPy with one simulated GPU: arrays are host memory, kernels are the PTX that NVRTC emitted, interpreted.

Only what fastpe uses exists. Reading an array back implicitly (``bool``, ``int``, ``numpy.asarray``) is an error, so a test that
passes here proves that nothing synchronises.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import types
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cases
import kept
import numpy as np
import pytest
from ptx import Memory
from ptx_variants import VariedKernel, varied

MULTIPROCESSORS = 4
ALIGNMENT = 256

memory = Memory()
synchronised: list[str] = []  # every read-back or wait, in order
launched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
streams: list[int] = []  # the stream of each launch; 0 where none was chosen


class ndarray:
    """A view of simulated device memory."""

    def __init__(self, host: Any, owner: Any, memptr: Any = None, strides: Any = None) -> None:
        if memptr is not None:  # as CuPy's own: shape, dtype, memory, strides
            raw = (ctypes.c_ubyte * memptr.mem.size).from_address(memptr.mem.ptr)
            host, owner = np.ndarray(host, owner, raw, memptr.offset, strides), memptr.mem
        self._host, self._owner = host, owner

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data, device_id=0))
    device = property(lambda self: types.SimpleNamespace(id=0))
    T = property(lambda self: ndarray(self._host.T, self._owner))

    flags = property(lambda self: self._host.flags)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[index] = value._host if isinstance(value, ndarray) else value

    def transpose(self, *axes: int) -> ndarray:
        return ndarray(self._host.transpose(*axes), self._owner)

    def __mul__(self, other: float) -> ndarray:
        return asarray(self._host * other)

    def __getitem__(self, index: Any) -> ndarray:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, ndarray) for part in parts):  # a copy
            return asarray(self._host[tuple(part._host if isinstance(part, ndarray) else part for part in parts)])
        return ndarray(self._host[index], self._owner)

    def reshape(self, *shape: Any) -> ndarray:
        host = self._host.reshape(*shape)
        assert not host.size or np.may_share_memory(host, self._host), "fastpe reshapes only what needs no copy"
        return ndarray(host, self._owner)

    def astype(self, dtype: Any) -> ndarray:
        return asarray(self._host.astype(dtype))

    def __ne__(self, other: Any) -> ndarray:  # type: ignore[override]
        return asarray(self._host != (other._host if isinstance(other, ndarray) else other))

    def __and__(self, other: ndarray) -> ndarray:
        return asarray(self._host & other._host)

    def __add__(self, other: float) -> ndarray:
        return asarray(self._host + other)

    def get(self) -> np.ndarray:
        synchronised.append("get")
        return self._host.copy()

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("implicit read-back of a GPU array")

    __array__ = __bool__ = __int__ = __index__ = __float__ = __iter__ = _refuse


ndarray.__module__ = "cupy"


class _Owner:
    """One allocation, known to the interpreter while it lives."""


_allocators: list[Any] = [None]


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Whose memory new arrays have. All have simulated memory; that of an allocator which keeps it for graphs is never freed."""
    _allocators.append(allocator)
    try:
        yield
    finally:
        _allocators.pop()


def _allocate(shape: tuple[int, ...], dtype: Any, initialised: bool) -> ndarray:
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    whole = raw[start : start + size]
    owner = _Owner()
    if size:
        address = memory.add(whole, name=f"{dtype.name}{list(shape)}", initialised=initialised)
        if Stream.captured is None or not getattr(_allocators[-1], "keeps_for_graphs", False):
            weakref.finalize(owner, memory.remove, address)
    return ndarray(whole.view(dtype).reshape(shape), owner)


def asarray(a: Any) -> ndarray:
    if hasattr(a, "__cuda_array_interface__"):  # the same memory
        shown = np.asarray(types.SimpleNamespace(__array_interface__=a.__cuda_array_interface__))
        return ndarray(shown, a)
    array = _allocate(a.shape, a.dtype, True)
    array._host[...] = a
    return array


class _Capsule:
    """A capsule for NumPy, which reads it as memory of the host."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **asked: Any) -> Any:
        return self._capsule


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    assert array.__dlpack_device__() == (2, 0)
    try:
        capsule = array.__dlpack__(stream=1, max_version=(1, 0), copy=copy)
    except TypeError:
        capsule = array.__dlpack__(stream=1)
    return ndarray(np.from_dlpack(_Capsule(capsule)), array)  # the same memory; as CuPy's own, it does not say read-only


def view_on_device(view: np.ndarray) -> ndarray:
    """Copy the memory that a view spans to the device and make the same view of it there."""
    raw, offset = cases.memory_of(view)
    whole = asarray(raw)
    return ndarray(np.ndarray(view.shape, view.dtype, whole._host, offset, view.strides), whole._owner)


def asnumpy(a: ndarray) -> np.ndarray:
    return a.get()


def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
    return _allocate(shape, dtype, False)


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    if a._host.flags.c_contiguous and dtype in (None, a.dtype):
        return a
    return asarray(np.ascontiguousarray(a._host, dtype))


def take(a: ndarray, indices: ndarray, axis: int | None = None, out: ndarray | None = None) -> ndarray:
    taken = a._host.take(indices._host, axis)
    if out is None:
        return asarray(taken)
    out._host[...] = taken
    return out


class Stream:
    """A stream; as a context, the current one. While one is captured, launches are kept for ``Graph.launch`` and nothing runs."""

    ptr = 0
    captured: ClassVar[list[Any] | None] = None

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        if not hasattr(obj, "__cuda_stream__"):
            raise TypeError(f"Object of type {type(obj).__name__} does not implement the CUDA stream protocol")
        version, ptr = obj.__cuda_stream__()
        assert (type(version), version, type(ptr)) == (int, 0, int)
        stream = cls.__new__(cls)
        stream.ptr = ptr
        return stream

    def __enter__(self) -> Stream:
        _chosen.append(self)
        return self

    def __exit__(self, *args: Any) -> None:
        _chosen.pop()

    def synchronize(self) -> None:
        synchronised.append("synchronize")

    def is_capturing(self) -> bool:
        return Stream.captured is not None

    def begin_capture(self) -> None:
        assert Stream.captured is None
        Stream.captured = []

    def end_capture(self) -> Graph:
        assert Stream.captured is not None
        captured, Stream.captured = Stream.captured, None
        return Graph(captured)


class Graph:
    """Launches that were captured; as CuPy's, it keeps none of the memory that they read."""

    def __init__(self, launches: list[Any]) -> None:
        self._launches = launches

    def launch(self, stream: Any = None) -> None:
        for run in self._launches:
            run()


class LoadedModule:
    """Runs PTX of one or more architectures, where CuPy's ``Module`` has machine code."""

    _parsed: ClassVar[dict[bytes, dict[str, VariedKernel]]] = {}

    def load(self, cubin: bytes) -> None:
        if type(cubin) is not bytes:
            raise TypeError(f"expected bytes, {type(cubin).__name__} found")
        if cubin not in self._parsed:
            self._parsed[cubin] = varied(cubin.decode().split("\0"))
        self._entries = self._parsed[cubin]

    def get_function(self, name: str) -> Any:
        kernel = self._entries[name]

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], stream: Any = None) -> None:
            if type(grid) is not tuple or type(block) is not tuple:
                raise TypeError(f"expected tuples, {type(grid).__name__} and {type(block).__name__} found")
            launched.append((name, grid, block))
            streams.append((_chosen[-1] if stream is None else stream).ptr)
            blocks, captured = [argument.tobytes() for argument in args], Stream.captured
            if captured is not None:
                captured.append(lambda: kernel.launch(memory, grid, block, blocks))
            else:
                kernel.launch(memory, grid, block, blocks)

        launch.ptr = name  # type: ignore[attr-defined]
        return launch


loaded: list[str] = []  # functions that the driver was asked about, and so has loaded


class Device(contextlib.nullcontext):  # type: ignore[type-arg]
    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        super().__init__()
        assert device in (None, 0), f"there is no device {device}"
        self.id = 0
        self.attributes = {"MultiProcessorCount": MULTIPROCESSORS}


class UnownedMemory:
    """Memory of another library."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        assert type(ptr) is type(size) is type(device_id) is int
        assert (size == 0) == (0 in owner.shape)
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    """A place in it."""

    def __init__(self, mem: UnownedMemory, offset: int) -> None:
        self.mem, self.offset = mem, offset


class ExternalStream(Stream):
    """As CuPy had it before version 14."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        warnings.warn("ExternalStream is deprecated. Use Stream.from_external() instead", DeprecationWarning, stacklevel=2)
        self.ptr = ptr


_chosen: list[Stream] = []


def get_current_stream(device_id: int = -1) -> Stream:
    return _chosen[-1]


def module() -> types.ModuleType:
    """The stand-in as a module named ``cupy``."""
    import cupy as real
    from cupy.cuda import nvrtc

    nvrtc.getVersion()  # loads the library, for which it needs the real CuPy

    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    runtime = types.SimpleNamespace(
        is_hip=False,
        CUDARuntimeError=real.cuda.runtime.CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    cupy.cuda = types.ModuleType("cupy.cuda")
    for name, value in {
        "Device": Device,
        "Module": LoadedModule,
        "runtime": runtime,
        "driver": types.SimpleNamespace(CU_FUNC_ATTRIBUTE_NUM_REGS=4, funcGetAttribute=lambda _, entry: loaded.append(entry)),
        "nvrtc": nvrtc,
        "Stream": Stream,
        "ExternalStream": ExternalStream,
        "get_current_stream": get_current_stream,
        "using_allocator": using_allocator,
        "get_allocator": lambda: _allocators[-1],
        "UnownedMemory": UnownedMemory,
        "MemoryPointer": MemoryPointer,
    }.items():
        setattr(cupy.cuda, name, value)
    for value in (ndarray, asarray, asnumpy, empty, ascontiguousarray, from_dlpack, take):
        setattr(cupy, value.__name__, value)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(malloc=None)
    return cupy


@contextlib.contextmanager
def installed(folder: Path, architectures: Sequence[str] = ("90",)) -> Iterator[types.ModuleType]:
    """Put the stand-in where fastpe finds CuPy; PTX for each ``compute_XY`` is kept in ``folder``, and every launch runs all."""
    from fastpe._arrays import dispatch
    from fastpe._backends import cuda
    from fastpe._backends.cuda import available, compile, launch, tables
    from fastpe._core import call_cache

    def as_ptx(name: str, _: str, *options: str) -> bytes:
        return "\0".join(text(name, architecture, *options) for architecture in architectures).encode()

    def text(name: str, architecture: str, *options: str) -> str:
        from cupy.cuda import nvrtc

        defined = "".join(option.partition("=")[2] for option in options)
        facts = (cuda.source(name), compile.OPTIONS, options, nvrtc.getVersion())
        make = functools.partial(compiled, name, architecture, *options)
        return kept.text(folder, f"{name}-{defined}-{architecture}.ptx", facts, make).read_text()

    def compiled(name: str, architecture: str, *options: str) -> str:
        ptx, _ = cuda.compile_source(name, f"compute_{architecture}", *options)
        return ptx.decode() if isinstance(ptx, bytes) else ptx

    stand_in = module()
    _chosen[:] = [Stream()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in)
        patch.setitem(sys.modules, "cupy.cuda", stand_in.cuda)
        patch.delitem(sys.modules, "fastpe._arrays.cupy", raising=False)
        patch.setattr(compile, "_cubin", as_ptx)
        patch.setattr(compile, "_modules", {})
        patch.setattr(tables, "_uploaded", {})
        patch.setattr(tables, "_passing", {})
        patch.setattr(dispatch, "_libraries", {})
        patch.setattr(dispatch, "_modules", types.SimpleNamespace(**vars(dispatch._modules)))
        patch.setattr(dispatch, "_imported", {name for name in dispatch._imported if "cupy" not in name})
        available._problem.cache_clear()
        launch._multiprocessors.cache_clear()
        call_cache.clear()
        try:
            yield stand_in
        finally:
            call_cache.clear()
            available._problem.cache_clear()
            launch._multiprocessors.cache_clear()
