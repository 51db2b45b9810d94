"""Errors of tensors: those that a verb refuses, those mixed with arrays, and what gradients forbid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fastpe
import fastpe.torch
from fastpe import ALiBi, Learned, Rotary, Sinusoidal, T5Bias
from fastpe.torch import functional as F

from .errors import VERBS
from .errors_of_verbs import X
from .inputs import Given
from .recording import TORCH, Recorder

WATCHED = ("leaf", "view_of_leaf", "one_of_several_views")  # autograd lets nobody write these in place; new results are allowed


def errors_of_tensors(record: Recorder) -> None:
    """Tensors that are refused, arguments of another library or device, and forbidden gradients."""
    tensors: dict[str, Callable[[], Any]] = {
        "sparse": lambda: torch.zeros(X).to_sparse(),
        "meta": lambda: torch.zeros(X, device="meta"),
        "negated": lambda: torch.zeros(X, dtype=torch.complex64).conj().imag,
        "zero": lambda: torch._efficientzerotensor(X),
        "float8": lambda: torch.zeros(X).to(torch.float8_e4m3fn),
        "expanded": lambda: torch.zeros(1, 3, 8).expand(X),
        "overlapping": lambda: torch.zeros(32).as_strided(X, (8, 4, 1)),
        "leaf": lambda: torch.zeros(X, requires_grad=True),
        "view_of_leaf": lambda: torch.zeros(X, requires_grad=True)[:1],
        "one_of_several_views": lambda: (torch.zeros(4, 3, 8, requires_grad=True) * 1).split(2)[0],
    }
    functions = {
        "add": F.add_encoding,
        "rotary": F.apply_rotary,
        "rerotate": F.rerotate,
        "qkv": lambda x: F.apply_rotary_qkv(x, 1),
    }
    forms = VERBS | {f"functional_{name}": function for name, function in functions.items()}
    forms |= {"functional_bias": lambda x: F.add_bias(x, ALiBi(2)), "functional_embed": lambda x: F.embed([0], x)}
    for verb, call in forms.items():
        for name, make in tensors.items():
            if name not in WATCHED or not ("functional" in verb or verb in ("embed", "convert_layout")):
                record.error(f"array/{verb}/{name}", lambda r: call(make()), TORCH)
        if "functional" in verb:
            record.error(f"array/{verb}/numpy", lambda r: call(np.zeros(X, np.float32)), TORCH)
    arrays: Given = {
        "positions": np.arange(3),
        "cu_seqlens": np.array([0, 3]),
        "mask": np.ones(3, bool),
        "offset": np.array([1, 2]),
        "out": np.zeros(X, "f4"),
    }
    for name, value in arrays.items():
        for verb in ("add", "rotary"):
            function = {"add": fastpe.add_encoding, "rotary": fastpe.apply_rotary}[verb]
            record.error(f"mixed/{verb}/{name}_array_beside_tensor", lambda r: function(torch.zeros(X), **{name: value}), TORCH)
            record.error(
                f"mixed/{verb}/{name}_tensor_beside_array",
                lambda r: function(np.zeros(X, "f4"), **{name: torch.from_numpy(value)}),
                TORCH,
            )
            record.error(
                f"mixed/{verb}/{name}_on_meta",
                lambda r: function(torch.zeros(X), **{name: torch.from_numpy(value).to("meta")}),
                TORCH,
            )
    x, grad = (lambda: torch.zeros(X)), (lambda *shape: torch.zeros(*shape, requires_grad=True))
    others: dict[str, Callable[[], Any]] = {
        "k_array": lambda: fastpe.apply_rotary(x(), np.zeros(X, "f4")),
        "k_meta": lambda: fastpe.apply_rotary(x(), x().to("meta")),
        "delta_array": lambda: fastpe.rerotate(x(), np.array([1, 2])),
        "table_array": lambda: fastpe.embed(torch.tensor([1]), np.ones((5, 8), "f4")),
        "learned_array": lambda: fastpe.add_encoding(x(), Learned(np.ones((5, 8), "f4"))),
        "t5_array": lambda: fastpe.add_bias(x(), T5Bias(np.ones((32, 2), "f4"))),
        "positions_require_gradient": lambda: F.add_encoding(x(), positions=grad(3)),
        "table_requires_gradient": lambda: F.apply_rotary(x(), None, Rotary.tabulated(grad(9, 4), torch.zeros(9, 4))),
        "delta_requires_gradient": lambda: F.rerotate(x(), grad(2)),
        "row_scale_requires_gradient": lambda: F.embed([0], torch.zeros(5, 8, dtype=torch.int8), row_scale=grad(5)),
        "out_and_gradient": lambda: fastpe.add_encoding(grad(*X) * 1, out=x()),
        "out_and_gradient_rotary": lambda: fastpe.apply_rotary(grad(*X) * 1, out=x()),
        "out_and_gradient_bias": lambda: fastpe.add_bias(grad(*X) * 1, ALiBi(2), out=x()),
        "out_and_gradient_embed": lambda: fastpe.embed([0], grad(5, 8), out=torch.zeros(1, 8)),
        "qkv_axes": lambda: F.apply_rotary_qkv(torch.zeros(3, 8), 1),
        "qkv_heads": lambda: F.apply_rotary_qkv(torch.zeros(2, 3, 4, 8), 3),
        "qkv_in_place_leaf": lambda: F.apply_rotary_qkv(grad(2, 3, 4, 8), 1, inplace=True),
        "vmap_in_place": lambda: torch.func.vmap(fastpe.add_encoding)(torch.zeros(2, *X)),
        "vmap_positions": lambda: torch.func.vmap(lambda p: F.add_encoding(x(), positions=p))(torch.zeros(5, 3)),
        "vmap_table": lambda: torch.func.vmap(lambda t: F.embed([0], t))(torch.zeros(5, 6, 4)),
        "jvp_table": lambda: torch.func.jvp(lambda t: F.embed([0], t), (torch.zeros(6, 4),), (torch.zeros(6, 4),)),
        "module_encoding": lambda: fastpe.torch.RotaryEmbedding(Sinusoidal()),
        "module_learned_width": lambda: fastpe.torch.TokenEmbedding(9, 8, fastpe.torch.LearnedEncoding(9, 7)),
        "module_types": lambda: fastpe.torch.TokenEmbedding(9, 8)(torch.tensor([1]), token_types=torch.tensor([0])),
        "module_rows": lambda: fastpe.torch.LearnedEncoding(0, 8),
        "patch": lambda: fastpe.torch.patch_transformers(torch.nn.Linear(2, 2)),
    }
    for name, call in others.items():
        record.error(f"other/{name}", lambda r: call(), TORCH)
