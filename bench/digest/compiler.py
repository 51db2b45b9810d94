"""Graphs of ``torch.compile``, which serve several lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastpe
from fastpe import ALiBi, Learned, T5Bias
from fastpe.torch import functional as F

from .adding import ENCODINGS
from .gradients import backward
from .inputs import Inputs
from .recording import TORCH, Recorder
from .rotating import ROTARIES

COMPILED: dict[str, tuple[Callable[..., Any], Callable[[Inputs, int], tuple[Any, ...]]]] = {
    "add_in_place": (lambda x: fastpe.add_encoding(x, offset=3, input_scale=2.0), lambda r, T: (r(2, T, 24),)),
    "add_in_place_watched": (lambda x: fastpe.add_encoding(x * 2, offset=3), lambda r, T: (r(2, T, 24, grad=True),)),
    "add_and_rotary": (
        lambda x, k: F.apply_rotary(
            F.add_encoding(x, ENCODINGS["concatenated"], input_scale=1.5), k, ROTARIES["scaling_yarn"], offset=5
        ),
        lambda r, T: (r(2, T, 24, grad=True), r(2, T, 24, grad=True)),
    ),
    "rotary_in_place": (
        lambda q, k: fastpe.apply_rotary(q * 2, k * 3),
        lambda r, T: (r(2, 4, T, 24, grad=True), r(2, 2, T, 24, grad=True)),
    ),
    "rotary_dynamic": (
        lambda q: F.apply_rotary(q, None, ROTARIES["scaling_dynamic"]),
        lambda r, T: (r(2, 4, T, 24, grad=True),),
    ),
    "qkv": (lambda qkv: F.apply_rotary_qkv(qkv * 2, (4, 2), inplace=True), lambda r, T: (r(2, T, 8, 24, grad=True),)),
    "rerotate": (lambda k: F.rerotate(k, 5), lambda r, T: (r(2, T, 24, grad=True),)),
    "embed": (
        lambda ids, table: F.embed(ids, table, "sinusoidal", scale=2.0),
        lambda r, T: (r.ints(0, 11, 2, T), r(11, 24, grad=True)),
    ),
    "embed_everything": (
        lambda ids, table, types, learned: F.embed(
            ids, table, Learned(learned), token_types=(ids % 2, types), padding_idx=3, frozen_idx=1
        ),
        lambda r, T: (r.ints(0, 11, 2, T), r(11, 24, grad=True), r(2, 24, grad=True), r(40, 24, grad=True)),
    ),
    "bias_alibi": (lambda s: F.add_bias(s, ALiBi(4), causal=True, input_scale=0.25), lambda r, T: (r(2, 4, T, T, grad=True),)),
    "bias_t5": (lambda s, table: F.add_bias(s, T5Bias(table)), lambda r, T: (r(2, 4, T, T, grad=True), r(32, 4, grad=True))),
    "encode": (lambda x: x + fastpe.encode(torch.arange(x.shape[1]), 24, like=x), lambda r, T: (r(2, T, 24),)),
}


def compiler(record: Recorder) -> None:
    """Compile each function once and call it with three lengths."""
    for name, (function, make) in COMPILED.items():
        if not record.wants(f"torch/compiled/{name}", "torch"):
            continue
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")

        def run(r: Inputs) -> Any:
            found = []
            for length in (5, 9, 17):
                r.leaves.clear()
                result = compiled(*make(r, length))
                found.append(backward(r, result) if r.leaves else result)
            return found

        record.case(f"compiled/{name}", run, TORCH)
        torch._dynamo.reset()
