"""Modules of ``fastpe.torch``, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastpe import torch as nn

from .gradients import backward, nonleaf
from .inputs import Inputs
from .recording import TORCH, Recorder
from .rotating import ROTARIES


def with_weights(r: Inputs, module: Any) -> Any:
    """A module whose weights are random inputs."""
    for weight in module.parameters():
        with torch.no_grad():
            weight.copy_(r(*weight.shape))
        r.leaves.append(weight)
    return module


def modules(record: Recorder) -> None:
    """Modules called with random weights, and the weights that they draw themselves."""
    calls: dict[str, tuple[Callable[[], Any], Callable[[Inputs, Any], Any]]] = {
        "sinusoidal": (lambda: nn.SinusoidalEncoding(input_scale=8.0), lambda r, m: m(r(2, 6, 24, grad=True), offset=3)),
        "sinusoidal_in_place": (lambda: nn.SinusoidalEncoding(inplace=True), lambda r, m: m(nonleaf(r(2, 6, 24, grad=True)))),
        "rotary": (
            lambda: nn.RotaryEmbedding(ROTARIES["half"]),
            lambda r, m: m(r(2, 4, 6, 24, grad=True), r(2, 2, 6, 24, grad=True)),
        ),
        "rotary_in_place": (
            lambda: nn.RotaryEmbedding(seq_axis=-3, inplace=True),
            lambda r, m: m(nonleaf(r(2, 6, 4, 24, grad=True)), offset=9),
        ),
        "learned": (lambda: nn.LearnedEncoding(40, 24, input_scale=2.0), lambda r, m: m(r(2, 6, 24, grad=True), offset=4)),
        "learned_clip": (
            lambda: nn.LearnedEncoding(5, 24, out_of_range="clip", inplace=True),
            lambda r, m: m(nonleaf(r(2, 6, 24, grad=True))),
        ),
        "tokens": (lambda: nn.TokenEmbedding(11, 24, "sinusoidal", scale=4.0), lambda r, m: m(r.ints(0, 11, 2, 6), offset=2)),
        "tokens_padding": (lambda: nn.TokenEmbedding(11, 24, padding_idx=1), lambda r, m: m(r.ints(0, 3, 2, 6))),
        "tokens_skipping": (
            lambda: nn.TokenEmbedding(11, 24, "sinusoidal", padding_idx=1, skip_padding=True),
            lambda r, m: m(r.ints(0, 3, 2, 6)),
        ),
        "tokens_sparse": (lambda: nn.TokenEmbedding(11, 24, sparse=True), lambda r, m: m(r.ints(0, 3, 2, 6))),
        "tokens_everything": (
            lambda: nn.TokenEmbedding(11, 24, nn.LearnedEncoding(40, 24), num_token_types=2, scale=0.5),
            lambda r, m: m(r.ints(0, 3, 2, 6), token_types=r.ints(0, 2, 2, 6), positions=r.ints(0, 40, 2, 6)),
        ),
    }
    for name, (make, run) in calls.items():

        def call(r: Inputs) -> Any:
            module = with_weights(r, make())
            return backward(r, run(r, module)), repr(module), sorted(module.state_dict())

        record.case(f"module/{name}", call, TORCH)
    drawn = lambda r: (
        torch.manual_seed(5),
        list(nn.TokenEmbedding(11, 24, nn.LearnedEncoding(9, 24), padding_idx=2).parameters()),
    )[1]
    record.case("module/drawn", drawn, TORCH)
