"""Gradients of gradients, and transforms of ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastpe import ALiBi
from fastpe.torch import functional as F

from .inputs import Inputs
from .recording import TORCH, Recorder
from .rotating import ROTARIES

LINEAR: dict[str, Callable[[Any], Any]] = {
    "add": lambda x: F.add_encoding(x, offset=3, input_scale=2.0),
    "rotary": lambda x: F.apply_rotary(x, None, ROTARIES["scaling_yarn"], offset=4),
    "rotary_positions": lambda x: F.apply_rotary(x, None, positions=torch.arange(6) * 7),
    "rerotate": lambda x: F.rerotate(x, -3),
    "bias": lambda x: F.add_bias(x, ALiBi(3), causal=False, input_scale=0.5),
    "qkv": lambda x: F.apply_rotary_qkv(x, 1, seq_axis=-2),
}


def transforms(record: Recorder) -> None:
    """Second gradients, ``vmap``, ``jvp`` and per-sample gradients of linear verbs; ``vmap`` of ``embed``."""

    def twice(r: Inputs, form: Callable[[Any], Any]) -> Any:
        x, w, v = r(2, 3, 6, 24, grad=True), r(2, 3, 6, 24), r(2, 3, 6, 24)
        (first,) = torch.autograd.grad((form(x) * form(x) * w).sum(), x, create_graph=True)
        return first, torch.autograd.grad((first * v).sum(), x)

    for name, form in LINEAR.items():
        record.case(f"transform/twice/{name}", lambda r: twice(r, form), TORCH)
        for axis in (0, 1, -1):
            run = lambda r: torch.func.vmap(form, in_dims=axis)(r(5, 2, 3, 6, 24).movedim(0, axis))
            record.case(f"transform/vmap_{axis}/{name}", run, TORCH)
        record.case(
            f"transform/vmap_twice/{name}", lambda r: torch.func.vmap(torch.func.vmap(form))(r(2, 5, 2, 3, 6, 24)), TORCH
        )
        record.case(f"transform/jvp/{name}", lambda r: torch.func.jvp(form, (r(2, 3, 6, 24),), (r(2, 3, 6, 24),)), TORCH)
        each = torch.func.vmap(torch.func.grad(lambda one: (form(one) * one).sum()))
        record.case(f"transform/vmap_grad/{name}", lambda r: each(r(5, 2, 3, 6, 24)), TORCH)
    ids = torch.func.vmap(lambda one, table: F.embed(one, table, "sinusoidal"), in_dims=(0, None))
    record.case("transform/vmap/embed", lambda r: ids(r.ints(0, 11, 4, 2, 6), r(11, 24)), TORCH)
