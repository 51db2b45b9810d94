"""Generators of what verbs take as ``positions``.

Sequences: ``from_mask``, ``packed``, ``fairseq``, ``abacus``, ``contextual``, ``mrope``. Grids: ``grid``, ``resized``, ``centred``,
``pixels``, ``detr``, ``log_spaced``, ``qwen2_vl``, ``llama4``, ``window``. Training for longer contexts: ``randomized``, ``shifted``,
``skipped``, ``random_float``. Distances that occurred in training: ``rerope``, ``leaky_rerope``, ``self_extend``, ``dual_chunk``,
``string``. Ranks that share a sequence: ``context_parallel``.

A function that is given an array returns an array of the same library, on the same device. One that is given numbers returns a NumPy
array, or one like ``like``.
"""

from __future__ import annotations

from .patches import centred, detr, grid, llama4, log_spaced, pixels, qwen2_vl, resized, window
from .ranks import context_parallel
from .remaps import Remap, dual_chunk, leaky_rerope, rerope, self_extend, string
from .sampling import random_float, randomized, shifted, skipped
from .sequences import abacus, contextual, fairseq, from_mask, mrope, packed

__all__ = [
    "Remap",
    "abacus",
    "centred",
    "context_parallel",
    "contextual",
    "detr",
    "dual_chunk",
    "fairseq",
    "from_mask",
    "grid",
    "leaky_rerope",
    "llama4",
    "log_spaced",
    "mrope",
    "packed",
    "pixels",
    "qwen2_vl",
    "random_float",
    "randomized",
    "rerope",
    "resized",
    "self_extend",
    "shifted",
    "skipped",
    "string",
    "window",
]
