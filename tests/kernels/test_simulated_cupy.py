"""The stand-in for CuPy takes no argument that CuPy itself would refuse, and warns of what CuPy warns of."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

real = pytest.importorskip("cupy", reason="CuPy's own signatures")
import simulated_cupy  # noqa: E402

FUNCTIONS = ("asarray", "asnumpy", "ascontiguousarray", "empty", "from_dlpack", "take")
METHODS = ("astype", "get", "reshape", "transpose")
PAIRS = {
    **{name: (getattr(simulated_cupy, name), getattr(real, name)) for name in FUNCTIONS},
    **{f"ndarray.{name}": (getattr(simulated_cupy.ndarray, name), getattr(real.ndarray, name)) for name in METHODS},
    "Device": (simulated_cupy.Device, real.cuda.Device),
    "ExternalStream": (simulated_cupy.ExternalStream, real.cuda.ExternalStream),
    "MemoryPointer": (simulated_cupy.MemoryPointer, real.cuda.MemoryPointer),
    "Module.get_function": (simulated_cupy.LoadedModule.get_function, real.cuda.Module.get_function),
    "Module.load": (simulated_cupy.LoadedModule.load, real.cuda.Module.load),
    "Stream.from_external": (simulated_cupy.Stream.from_external, real.cuda.Stream.from_external),
    "UnownedMemory": (simulated_cupy.UnownedMemory, real.cuda.UnownedMemory),
    "get_allocator": (simulated_cupy.module().cuda.get_allocator, real.cuda.get_allocator),
    "get_default_memory_pool": (simulated_cupy.module().get_default_memory_pool, real.get_default_memory_pool),
    "using_allocator": (simulated_cupy.using_allocator, real.cuda.using_allocator),
    "get_current_stream": (simulated_cupy.get_current_stream, real.cuda.get_current_stream),
}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What a function takes; of a compiled one, as the first line of its docstring says."""
    try:
        found = inspect.signature(function)
    except ValueError:
        (text,) = re.findall(r"^[\w.]+\((.*?)\)", function.__doc__ or "")
        arguments = [re.sub(r"^\w+ (?=\w)", "", argument) for argument in text.split(", ") if argument]
        namespace: dict[str, Any] = {}
        exec(f"def same({', '.join(arguments)}): ...", namespace)  # the types of C are gone
        found = inspect.signature(namespace["same"])
    given = [parameter for name, parameter in found.parameters.items() if name != "self"]
    return inspect.Signature(given)


def refusals(ours: inspect.Signature, theirs: inspect.Signature) -> list[str]:
    """Where a call that ours takes may be refused by theirs, or mean another argument there."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = []
    in_order = [(one.name, one.kind) for one in theirs.parameters.values()]
    for place, one in enumerate(ours.parameters.values()):
        if one.kind in positional and (place >= len(in_order) or in_order[place][0] != one.name):
            found.append(f"{one.name} is not argument {place}")
        elif one.name not in theirs.parameters:
            found.append(f"there is no {one.name}")
    needed = [one for one in theirs.parameters.values() if one.default is one.empty and one.kind in positional]
    found += [f"{one.name} is needed" for one in needed if one.name not in ours.parameters]
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_what_the_stand_in_takes_cupy_takes(name):
    ours, theirs = map(signature, PAIRS[name])
    assert refusals(ours, theirs) == [], f"{name}{theirs}"


def test_signatures_that_differ_are_noticed():
    def theirs(a, indices, axis=None, out=None): ...

    def same(a, indices): ...

    def more(a, indices, axis=None, out=None, mode=None): ...

    def other(a, axis=None): ...

    against = signature(theirs)
    assert refusals(signature(same), against) == []
    assert refusals(signature(more), against) == ["mode is not argument 4"]
    assert refusals(signature(other), against) == ["axis is not argument 1", "indices is needed"]


def test_every_function_of_the_stand_in_is_compared():
    given = {*vars(simulated_cupy.module()), *vars(simulated_cupy.module().cuda)}
    compared = {name.partition(".")[0] for name in PAIRS}
    assert {name for name in given if not name.startswith("__")} - compared == {"cuda", "driver", "nvrtc", "runtime"}


def test_a_deprecated_stream_warns_as_it_does_in_cupy():
    for one in (simulated_cupy.ExternalStream, real.cuda.ExternalStream):
        with pytest.warns(DeprecationWarning, match="ExternalStream is deprecated"):
            one(5, 0)


class Foreign:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 4096


def test_a_foreign_stream_is_taken_as_it_is_by_cupy():
    """Its handle is not destroyed with CuPy's object, which would be an error here, where there is no driver, and a fault elsewhere."""
    for one in (simulated_cupy.Stream, real.cuda.Stream):
        assert one.from_external(Foreign()).ptr == 4096
        with pytest.raises(TypeError, match="does not implement the CUDA stream protocol"):
            one.from_external(object())
    gc.collect()


def test_what_cupy_refuses_at_a_launch_is_refused():
    loaded = simulated_cupy.LoadedModule()
    with pytest.raises(TypeError, match="bytes"):
        loaded.load("text")
    with pytest.raises(TypeError, match="mode"):
        simulated_cupy.take(simulated_cupy.asarray(np.zeros(3)), simulated_cupy.asarray(np.arange(2)), mode="clip")
