"""Run cases, and hash what they return and what becomes of their inputs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .inputs import DTYPES, TENSOR_VIEWS, Inputs, torch

Run = Callable[[Inputs], Any]
NUMPY, TORCH, BOTH = ("numpy",), ("torch",), ("numpy", "torch")


def libraries(view: str) -> tuple[str, ...]:
    """The libraries that have this memory layout."""
    return BOTH if view in TENSOR_VIEWS else NUMPY


def parts(result: Any) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of everything in a result."""
    if isinstance(result, (tuple, list)):
        for one in result:
            yield from parts(one)
    elif torch is not None and isinstance(result, torch.Tensor):
        one = result.detach()
        if one.is_sparse:
            yield from parts([one.coalesce().indices(), one.coalesce().values()])
        elif one.dtype == torch.bfloat16:
            yield from parts(one.contiguous().view(torch.int16).numpy().view(DTYPES["bfloat16"]))
        else:
            yield from parts(one.numpy())
    elif isinstance(result, (np.ndarray, np.generic)):
        yield str(result.dtype), result.shape, np.ascontiguousarray(result).tobytes()
    else:
        yield type(result).__name__, (), repr(result).encode()


def sha256(result: Any) -> str:
    """The hash of everything in a result."""
    found = hashlib.sha256()
    for dtype, shape, content in parts(result):
        found.update(f"{dtype}{shape}".encode() + content)
    return found.hexdigest()


def flat(result: Any) -> list[Any]:
    """Everything in a result, as one list."""
    return [part for one in result for part in flat(one)] if isinstance(result, (tuple, list)) else [result]


def form(result: Any, inputs: Inputs) -> str:
    """A short hash of what bits do not tell: strides, which results are inputs, how often tensors were written."""
    found: list[Any] = []
    for one in flat(result):
        given = [i for i, other in enumerate(inputs.passed) if other is one]
        strides: Any = None
        if isinstance(one, np.ndarray):
            strides = [step // one.itemsize for step, size in zip(one.strides, one.shape, strict=True) if size > 1 and one.size]
        elif torch is not None and isinstance(one, torch.Tensor) and not one.is_sparse:
            strides = [step for step, size in zip(one.stride(), one.shape, strict=True) if size > 1 and one.numel()]
        found.append((given, strides))
    found.append([one._version for one in inputs.passed if inputs.tensors])
    return sha256(repr(found))[:8]


class Recorder:
    """Runs cases whose names contain a text, and keeps their hashes and error messages."""

    def __init__(self, only: str = "") -> None:
        self.only = only
        self.hashes: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def wants(self, full: str, library: str) -> bool:
        """Whether to run the case of this full name, which needs this library."""
        return self.only in full and (library == "numpy" or torch is not None)

    def case(self, name: str, run: Run, libraries: tuple[str, ...] = BOTH, libm: bool = False) -> None:
        """Run a case twice with each library."""
        for library in libraries:
            full = f"{'libm/' if libm else ''}{library}/{name}"
            if not self.wants(full, library):
                continue
            for repeat in ("", "#2"):
                inputs = Inputs(name, library == "torch")
                try:
                    result = run(inputs)
                    found = f"{sha256([result, inputs.buffers])} {form(result, inputs)}"
                except Exception as error:  # so that one does not hide the others
                    found = f"{type(error).__name__}: {error}"
                    print(f"{full}{repeat}: {found[:300]}", file=sys.stderr)
                self.hashes[full + repeat] = found
            if self.hashes[full] != self.hashes[full + "#2"]:
                print(f"{full}: the second call gave something else", file=sys.stderr)

    def error(self, name: str, run: Run, libraries: tuple[str, ...] = BOTH) -> None:
        """Record the error of a bad call, and that it wrote nothing."""
        for library in libraries:
            full = f"error/{library}/{name}"
            if not self.wants(full, library):
                continue
            inputs = Inputs(name, library == "torch")
            try:
                run(inputs)
                text = "nothing was raised"
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            self.errors[full] = text
            self.hashes[full] = sha256([text, inputs.buffers])
