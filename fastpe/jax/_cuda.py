"""CUDA's way: XLA calls back into Python, and CuPy's kernels write the buffers that it gives, on its stream.

What says where rows stand becomes what verbs take on a GPU, positions as float64, in operations of XLA; kernels read them where they are.
"""

from __future__ import annotations

import ctypes
import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp

from .._arrays.exported import pointer_of
from .._backends.cuda import available
from .._core import portable
from .._core import run as core
from .._core.operations import AddBias, Embed, Encode
from ._call import WIDE, Call, read
from ._primitive import results
from ._twin import OPS

try:
    from jax import enable_x64
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # an older JAX
    buffer_callback = None

NOWHERE = 2.0**40  # no position


def is_usable() -> bool:
    """Whether programs may hold calls of CuPy's kernels here."""
    return buffer_callback is not None and available.problem() is None


def on_cuda(*operands: Any, text: str) -> list[Any]:
    """A call back, on what verbs take."""
    call = read(text)
    made = results(call, operands)
    with enable_x64(True):
        named = zip(call.names, call.dtypes, operands, strict=True)
        given = [
            _plain(call, name, one, made[0].shape) if dtype == WIDE or name == "start" else one for name, dtype, one in named
        ]
    call = call._replace(places=["positions" if name == "start" else name for name in call.places])
    found: list[Any] = buffer_callback(functools.partial(_run, call), made, input_output_aliases=call.aliases)(*given)
    return found


def _plain(call: Call, name: str, operand: Any, shape: tuple[int, ...]) -> Any:
    """Ids as int64, and places as positions, of a call whose first result has this shape."""
    if name == "start":
        rows = shape if len(shape) > 1 else (1, *shape)
        return operand.astype("float64") + jnp.arange(rows[call.fixed["seq_axis"]])
    if isinstance(call.operation, Embed) and name not in call.places:
        return jax.lax.bitcast_convert_type(operand, jnp.int64)
    at: Any = portable.of_words(OPS, operand[..., 0], operand[..., 1])
    positions = jnp.where(at.valid, at.whole + at.part * 2.0**-32, NOWHERE)
    return positions.astype("int64") if isinstance(call.operation, AddBias) else positions


def _run(call: Call, context: Any, outs: list[Any], *buffers: Any) -> None:
    """The call back: the operation on arrays of CuPy over the buffers."""
    import cupy

    device, stream = outs[0].__dlpack_device__()[1], context.stream
    protocol = types.SimpleNamespace(__cuda_stream__=lambda: (0, stream))
    with cupy.cuda.Device(device), cupy.cuda.Stream.from_external(protocol):
        made, given = ([_over(one, device) for one in some] for some in (outs, buffers))
        arrays, where = call.arguments(given)
        if isinstance(call.operation, Encode):
            arrays = (made[0], *arrays[1:])  # an example of the library, which a grid without positions needs
        core.run(call.operation, arrays, where, made[0] if len(made) == 1 else tuple(made))


def _over(buffer: Any, device: int) -> Any:
    """An array over a buffer."""
    import cupy

    shape, dtype, capsule = tuple(buffer.shape), buffer.dtype, buffer.__dlpack__()
    address = ctypes.c_size_t.from_address(pointer_of(capsule, b"dltensor")).value  # the first word of DLPack's struct
    memory = cupy.cuda.UnownedMemory(address, math.prod(shape) * dtype.itemsize, buffer, device)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))
