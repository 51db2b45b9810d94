"""One primitive for all operations: ``fastpe``, whose only parameters are a call's text, and whether results lie apart from operands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from ._call import Call, read
from ._handler import TARGET
from ._twin import in_plain_operations

primitive = Primitive("fastpe")
primitive.multiple_results = True


def bind(call: Call, operands: list[Any]) -> list[Any]:
    """The results of a call. In a program they take the places of operands, which XLA copies where they are needed later."""
    if any(isinstance(one, jax.core.Tracer) for one in operands):
        return list(primitive.bind(*operands, text=call.text(), apart=False))
    return list(_now(*operands, text=call.text()))


@functools.partial(jax.jit, static_argnames=("text", "apart"))
def _now(*operands: Any, text: str, apart: bool = True) -> list[Any]:
    """At once: new arrays beside the operands, which are not donated."""
    found: list[Any] = primitive.bind(*operands, text=text, apart=True)
    return found


@primitive.def_abstract_eval  # type: ignore[untyped-decorator]
def _abstract(*operands: Any, text: str, apart: bool) -> list[Any]:
    call = read(text)
    if call.operation.in_place:
        return [operands[index] for index in call.replaced]
    specs = call.results([one.shape for one in operands])
    return [jax.core.ShapedArray(spec.shape, np.dtype(spec.dtype)) for spec in specs]


def results(call: Call, operands: Sequence[Any], apart: bool) -> tuple[list[Any], dict[int, int]]:
    """What a call makes, and which operand each result lies in the place of."""
    made = [jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype)) for spec in call.results([one.shape for one in operands])]
    return made, {} if apart else {index: place for place, index in enumerate(call.replaced)}


def on_cpu(*operands: Any, text: str, apart: bool) -> list[Any]:
    """The call of the handler."""
    made, aliases = results(read(text), operands, apart)
    found: list[Any] = jax.ffi.ffi_call(TARGET, made, input_output_aliases=aliases)(*operands, call=text)
    return found


primitive.def_impl(_now)
mlir.register_lowering(
    primitive, mlir.lower_fun(in_plain_operations, multiple_results=True)
)  # the CPU and CUDA have their own, in `_partition.py`
