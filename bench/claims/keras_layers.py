"""Claims of the Keras layers on the CPU, against keras-hub's at the same arguments, on the backend that Keras runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .table import Call, Claim, Measuring, at_least, milliseconds


def keras(measuring: Measuring) -> Iterator[Claim]:
    """Layers without gradients, over keras-hub's: ``x + SinePositionEncoding()(x)``, ``RotaryEmbedding``, ``AlibiBias``."""
    import keras
    from keras_hub import layers

    import fastpe.keras as own

    rows = max(8, 1024 // measuring.shrink)
    sine, name = layers.SinePositionEncoding(), keras.backend.backend()
    pairs: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], Callable[[Any], Any]]] = {
        "sinusoids": ((8, rows, 512), own.SinusoidalEncoding(), lambda x: x + sine(x)),
        "rotary": ((8, rows, 8, 64), own.RotaryEmbedding(), layers.RotaryEmbedding()),
        "alibi": ((2, 8, rows, rows), own.ALiBi(), layers.AlibiBias()),
    }
    for what, (shape, ours, theirs) in pairs.items():
        x = keras.ops.convert_to_tensor(np.random.default_rng(0).standard_normal(shape, np.float32))
        calls = {"fastpe": _call(name, ours, x), "keras-hub": _call(name, theirs, x)}
        medians = measuring.medians(calls)
        ratio = medians["keras-hub"] / medians["fastpe"]
        target = None if name == "tensorflow" else 1.0  # where no kernel runs, XLA compiles both
        yield at_least(f"keras on {name} float32 {shape}: {what} over keras-hub", ratio, target, milliseconds(medians))


def _call(backend: str, layer: Callable[[Any], Any], x: Any) -> Call:
    """One call, compiled where the backend's programs are, and waited for."""
    if backend == "torch":
        import torch

        return torch.no_grad()(lambda: layer(x))
    if backend == "jax":
        import jax

        program = jax.jit(layer)
        return lambda: program(x).block_until_ready()
    import tensorflow

    traced = tensorflow.function(layer, jit_compile=True)
    return lambda: traced(x).numpy()
