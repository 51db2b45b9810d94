"""All sections of the digest, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from . import adding, biases, embedding, encoding, errors, large, positions, rotating
from .inputs import torch
from .recording import Recorder

SECTIONS: list[Callable[[Recorder], None]] = [
    adding.add_encoding,
    encoding.encode,
    rotating.apply_rotary,
    rotating.rerotate,
    embedding.embed,
    embedding.resample,
    biases.add_bias,
    positions.recipes,
    positions.positions,
    errors.errors,
    large.large,
]
if torch is not None:
    from . import compiler, errors_of_tensors, gradients, modules, transforms

    SECTIONS += [
        errors_of_tensors.errors_of_tensors,
        gradients.gradients,
        transforms.transforms,
        modules.modules,
        compiler.compiler,
    ]
