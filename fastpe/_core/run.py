"""The one way in: a verb's operation, its arrays and where their rows stand, to the library or the backend that runs it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import dispatch
from .._arrays.exported import PLAIN, plain
from .._backends import backend_on
from . import call_cache, device_calls
from .operations.base import Job


def run(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any = None, validate: bool = False) -> Any:
    """Run an operation; returns what the verb returns. Libraries with a world of their own (autograd, tracing) have a runner."""
    lead, key = arrays[0], None
    has_key = type(lead) is np.ndarray
    if not has_key:
        runner = dispatch.runner(arrays, out)
        if runner is not None:
            return runner.run(operation, arrays, where, out, validate)
        kind = type(arrays[1] if lead is None and len(arrays) > 1 else lead)
        on_device = dispatch.is_on_device(kind)
        if on_device and validate is False:
            key = device_calls.key_of(operation, arrays, where, out, kind)
            result = call_cache.MISS if key is None else device_calls.repeat(key, operation, arrays, where, out)
            if result is not call_cache.MISS:
                return result
        has_key = lead is None and not on_device  # k alone
    if has_key and validate is False:
        key = operation.key(arrays, where, out)
    if key is None and has_key and not operation.in_place and len(arrays) > 1 and dispatch.library_of(arrays[1]) is None:
        runner = dispatch.runner(arrays[1:], out)  # ids may be lazy where the table is not
        if runner is not None:
            return runner.run(operation, arrays, where, out, validate)
    if has_key and key is not None:
        try:
            entry = call_cache.entries.get(key)
        except TypeError:  # something in it is no value
            key = entry = None
        if entry is not None:
            result = entry.run_host(arrays, where[0] if where[1] is None else where[1], out)
            if result is not call_cache.MISS:
                return result
    where = plain_where(operation, where)
    job = operation.check(arrays, where, out, validate)
    finish(operation, job, key, arrays, where)
    return job.result


def as_where(operation: Any, where: Any) -> Any:
    """Where rows stand as the value that checks take. Verbs give a plain tuple, which saves them 0.25 us."""
    return None if where is None else operation.where_type(*where)


def plain_where(operation: Any, where: Any) -> Any:
    """The same, with arrays in place of objects that export their memory."""
    if where is not None and not PLAIN.issuperset(map(type, where)):
        where = [plain(operation.function, *given) for given in zip(operation.where_type._fields, where, strict=True)]
    return as_where(operation, where)


def finish(operation: Any, job: Job, key: Any, arrays: tuple[Any, ...], where: Any) -> None:
    """Run what is left of a checked call, and keep it under a key, so that the next one like it need not be checked."""
    backend = backend_on(job.device)
    calls: Any = job.calls
    if key is not None and job.arrays is not None:
        calls = list(calls)
        prepared = backend.prepare(calls[0]) if len(calls) == 1 else None
        if prepared is not None:
            prepared.again()
            call_cache.keep(key, operation, calls[0], prepared, job, where)
            return
    for call in calls:
        backend.run(call)
