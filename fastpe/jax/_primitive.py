"""One primitive for all operations: ``fastpe``, whose only parameter is a call's text."""

from __future__ import annotations

import hashlib
import inspect
import json
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
primitive.def_impl(jax.jit(primitive.bind, static_argnames="text"))


def bind(call: Call, operands: Sequence[Any]) -> list[Any]:
    """The results of a call: in a program they take the places of operands, which XLA copies where they are needed later."""
    return list(primitive.bind(*operands, text=call.text))


@primitive.def_abstract_eval  # type: ignore[untyped-decorator]
def _abstract(*operands: Any, text: str) -> list[Any]:
    call = read(text)
    if call.operation.in_place:
        return [operands[index] for index in call.replaced]
    return [jax.core.ShapedArray(one.shape, one.dtype) for one in results(call, operands)]


def results(call: Call, operands: Sequence[Any]) -> list[Any]:
    """The shapes and types of what a call makes."""
    specs = call.results([one.shape for one in operands])
    return [jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype)) for spec in specs]


def on_cpu(*operands: Any, text: str) -> list[Any]:
    """The call of the handler, which knows it by a number."""
    call = read(text)
    whole = f"{text}\n{json.dumps([one.shape for one in operands])}"
    number = np.frombuffer(hashlib.sha256(whole.encode()).digest(), np.int64)[0]
    run = jax.ffi.ffi_call(TARGET, results(call, operands), input_output_aliases=call.aliases)
    made: list[Any] = run(*operands, call=whole, number=number)
    return made


# ---- programs ----------------------------------------------------------------------------------------------------------------

# A lowering that JAX keeps for other calls like it does not know whether its operands are donated.
_own = {"cacheable": False} if "cacheable" in inspect.signature(mlir.register_lowering).parameters else {}


def register(rule: Any, platform: str | None = None) -> None:
    """Let programs for a platform hold what ``rule(context)`` chooses, a function of operands and of a call's text."""

    def lower(context: Any, *operands: Any, text: str) -> Any:
        call = read(text)
        text = call._replace(apart=tuple(index for index in call.replaced if _is_read_only(operands[index]))).text
        return mlir.lower_fun(rule(context), multiple_results=True)(context, *operands, text=text)

    mlir.register_lowering(primitive, lower, platform=platform, **_own)


def _is_read_only(operand: Any) -> bool:
    """Whether this is an argument of the whole program that is not donated: XLA would copy it, to write to the copy."""
    attributes = getattr(getattr(operand.owner, "owner", None), "attributes", {})
    if "sym_name" not in attributes or str(attributes["sym_name"]) != '"main"':
        return False
    given = attributes["arg_attrs"][operand.arg_number]
    return not ("tf.aliasing_output" in given or "jax.buffer_donor" in given)


register(lambda context: in_plain_operations)  # the CPU and CUDA have their own, in `_partition.py`
