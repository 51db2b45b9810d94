"""What fastpe claims of the CPU, each as a ratio inside one run: ``python -m bench.claims [--only NAME] [--quick] [--json FILE]``.

Rounds of all contenders interleave, and their medians are compared. Without ``--only`` all of it takes about twelve minutes and 13 GB of
memory. A line that misses its target says so; ``docs/performance.md`` explains the figures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from . import adding, biases, calls, dask_arrays, embedding, jax_programs, keras_layers, rotating, scheduling, tensors
from .table import Claim, Measuring

__all__ = ["SECTIONS", "Claim", "Measuring"]

SECTIONS: dict[str, Callable[[Measuring], Iterator[Claim]]] = {
    "row": adding.row,
    "profile": calls.profile,
    "start": calls.start,
    "cached": adding.cached,
    "threads": adding.threads,
    "cores": scheduling.cores,
    "positions": adding.positions,
    "out": adding.out,
    "rotary": rotating.rotary,
    "embed": embedding.embed,
    "tensors": tensors.tensors,
    "bias": biases.bias,
    "grids": adding.grids,
    "large": adding.large,
    "size": adding.size,
}
if importlib.util.find_spec("jax"):
    SECTIONS["jax"] = jax_programs.jax
if importlib.util.find_spec("dask"):
    SECTIONS["dask"] = dask_arrays.dask
if importlib.util.find_spec("keras") and importlib.util.find_spec("keras_hub"):
    SECTIONS["keras"] = keras_layers.keras
