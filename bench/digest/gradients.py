"""``fastpe.torch.functional`` and verbs in place, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastpe
from fastpe import ALiBi, Kerple, Learned, LogBuckets, Rotary, T5Bias
from fastpe.torch import functional as F

from .adding import ENCODINGS, GRIDS
from .biases import BIASES, LIBM, STANDING, fire
from .inputs import Inputs
from .recording import TORCH, Recorder, Run, flat
from .rotating import ROTARIES


def backward(r: Inputs, result: Any) -> Any:
    """Results, and the gradients of the leaves after a backward pass with random weights."""
    found = [one for one in flat(result) if one.requires_grad]
    weights = [torch.from_numpy(r.rng.standard_normal(tuple(one.shape))).to(one.dtype) for one in found]
    torch.autograd.backward(found, weights)
    return result, [leaf.grad for leaf in r.leaves]


def forward_and_backward(r: Inputs, run: Run) -> Any:
    """Results of a call, and gradients if a leaf requires them."""
    result = run(r)
    return backward(r, result) if r.leaves else result


def nonleaf(x: Any) -> Any:
    """The result of an operation on a leaf: unlike the leaf, it may be written in place."""
    return x * 2


FUNCTIONS: dict[str, Run] = {
    "add": lambda r: F.add_encoding(r(2, 6, 24, grad=True), offset=3, input_scale=2.0),
    "add_mask": lambda r: F.add_encoding(r(2, 6, 24, grad=True), mask=torch.arange(6) % 3 != 1, input_scale=3.0),
    "add_BTHD": lambda r: F.add_encoding(r(2, 6, 3, 24, grad=True), ENCODINGS["concatenated"], seq_axis=1, input_scale=0.5),
    "add_grid": lambda r: F.add_encoding(r(2, 24, 48, grad=True), GRIDS["mae"], input_scale=0.5),
    "add_learned": lambda r: F.add_encoding(r(2, 6, 24, grad=True), Learned(r(40, 24, grad=True)), offset=4, input_scale=1.5),
    "add_learned_positions": lambda r: F.add_encoding(
        r(2, 6, 24, grad=True), Learned(r(9, 24, grad=True)), positions=r.ints(0, 9, 2, 6)
    ),
    "add_learned_mask": lambda r: F.add_encoding(r(2, 6, 24), Learned(r(40, 24, grad=True)), mask=torch.arange(6) % 3 != 1),
    "add_learned_clip": lambda r: F.add_encoding(r(2, 6, 24, grad=True), Learned(r(9, 24, grad=True), "clip"), offset=5),
    "add_learned_half": lambda r: F.add_encoding(
        r(2, 99, 24, dtype="bfloat16", grad=True), Learned(r(99, 24, dtype="bfloat16", grad=True))
    ),
    "rotary": lambda r: F.apply_rotary(r(2, 4, 6, 24, grad=True), r(2, 2, 6, 24, grad=True), offset=5),
    "rotary_bfloat16": lambda r: F.apply_rotary(
        r(2, 4, 6, 24, dtype="bfloat16", grad=True), r(2, 2, 6, 24, dtype="float16", grad=True)
    ),
    "rotary_xpos": lambda r: F.apply_rotary(r(2, 4, 6, 24, grad=True), r(2, 2, 6, 24, grad=True), ROTARIES["xpos"], offset=99),
    "rotary_factor": lambda r: F.apply_rotary(r(2, 4, 6, 24, grad=True), None, ROTARIES["scaling_yarn"], inverse=True),
    "rotary_k": lambda r: F.apply_rotary(
        None, r(2, 2, 6, 24, grad=True), ROTARIES["interleaved"], positions=r.ints(0, 99, 2, 6)
    ),
    "rotary_mask": lambda r: F.apply_rotary(r(2, 4, 6, 24, grad=True), r(2, 2, 6, 24), mask=torch.arange(6) % 3 != 1, offset=2),
    "rotary_sections": lambda r: F.apply_rotary(
        r(2, 4, 6, 24, grad=True), None, ROTARIES["sections"], positions=r.ints(0, 99, 3, 6)
    ),
    "rotary_table": lambda r: F.apply_rotary(r(2, 4, 6, 24, grad=True), None, Rotary.tabulated(r(50, 12), r(50, 12)), offset=9),
    "rotary_dynamic": lambda r: F.apply_rotary(
        r(2, 4, 6, 24, grad=True), r(2, 2, 6, 24, grad=True), ROTARIES["scaling_dynamic"], offset=30
    ),
    "rotary_BTHD": lambda r: F.apply_rotary(
        r(2, 6, 4, 24, grad=True), r(2, 6, 2, 24, grad=True), seq_axis=-3, offset=r.ints(0, 9, 2)
    ),
    "qkv": lambda r: F.apply_rotary_qkv(r(2, 6, 8, 24, grad=True), (4, 2), ROTARIES["scaling_yarn"], offset=2),
    "qkv_equal_heads": lambda r: F.apply_rotary_qkv(
        r(2, 6, 9, 24, dtype="float16", grad=True), 3, positions=r.ints(0, 99, 2, 6)
    ),
    "qkv_BHTD": lambda r: F.apply_rotary_qkv(r(2, 8, 6, 24, grad=True), (4, 2), seq_axis=-2),
    "qkv_in_place": lambda r: F.apply_rotary_qkv(nonleaf(r(2, 6, 8, 24, grad=True)), (4, 2), inplace=True, offset=7),
    "qkv_in_place_plain": lambda r: F.apply_rotary_qkv(r(2, 6, 8, 24), (4, 2), ROTARIES["xpos"], inplace=True, offset=7),
    "rerotate": lambda r: F.rerotate(r(2, 4, 6, 24, grad=True), -3),
    "rerotate_tensor": lambda r: F.rerotate(r(2, 4, 6, 24, grad=True), r.ints(-9, 9, 2, 6)),
    "rerotate_rules": lambda r: F.rerotate(
        r(2, 4, 6, 24, grad=True), 4, source=Rotary(), target=ROTARIES["scaling_yarn"], offset=9
    ),
    "embed": lambda r: F.embed(r.ints(0, 11, 2, 6), r(11, 24, grad=True), "sinusoidal", scale=2.0, offset=6),
    "embed_many": lambda r: F.embed(r.ints(0, 11, 8, 300), r(11, 24, grad=True), "sinusoidal", scale=1.7),
    "embed_everything": lambda r: F.embed(
        r.ints(0, 11, 2, 6),
        r(11, 24, grad=True),
        Learned(r(40, 24, grad=True)),
        scale=2.0,
        token_types=(r.ints(0, 2, 2, 6), r(2, 24, grad=True)),
        padding_idx=3,
    ),
    "embed_padding": lambda r: F.embed(r.ints(0, 4, 2, 16), r(11, 24, grad=True), "sinusoidal", padding_idx=1),
    "embed_frozen": lambda r: F.embed(r.ints(0, 4, 2, 16), r(11, 24, grad=True), frozen_idx=1),
    "embed_sparse": lambda r: F.embed(r.ints(0, 4, 2, 16), r(11, 24, grad=True), mask=torch.arange(16) > 2, sparse=True),
    "embed_deterministic": lambda r: F.embed(r.ints(0, 4, 2, 16), r(11, 24, dtype="float16", grad=True), deterministic=True),
    "embed_dtype": lambda r: F.embed(r.ints(0, 11, 2, 6), r(11, 24, grad=True), "sinusoidal", dtype="bfloat16"),
    "embed_double": lambda r: F.embed(
        r.ints(0, 11, 2, 60), r(11, 24, dtype="bfloat16", grad=True), Learned(r(60, 24, dtype="float64", grad=True))
    ),
    "in_place/add": lambda r: fastpe.add_encoding(nonleaf(r(2, 6, 24, grad=True)), offset=3, input_scale=2.0),
    "in_place/add_view": lambda r: fastpe.add_encoding(nonleaf(r(2, 6, 24, grad=True))[:, 1:], ENCODINGS["concatenated"]),
    "in_place/add_learned": lambda r: fastpe.add_encoding(
        nonleaf(r(2, 6, 24, grad=True)), Learned(r(40, 24, grad=True)), offset=3
    ),
    "in_place/rotary": lambda r: fastpe.apply_rotary(
        nonleaf(r(2, 4, 6, 24, grad=True)), nonleaf(r(2, 2, 6, 24, grad=True)), offset=5
    ),
    "in_place/rotary_k": lambda r: fastpe.apply_rotary(None, nonleaf(r(2, 2, 6, 24, grad=True)), ROTARIES["xpos"]),
    "in_place/rerotate": lambda r: fastpe.rerotate(nonleaf(r(2, 2, 6, 24, grad=True)), 4),
    "in_place/embed": lambda r: fastpe.embed(
        r.ints(0, 11, 2, 6), r(11, 24, grad=True), Learned(r(40, 24, grad=True)), scale=0.5
    ),
    "in_place/bias": lambda r: fastpe.add_bias(nonleaf(r(2, 4, 5, 9, grad=True)), ALiBi(4), causal=True, input_scale=0.125),
}


def gradients(record: Recorder) -> None:
    """All verbs with and without gradients, and biases whose parameters are learned."""
    for name, run in FUNCTIONS.items():
        record.case(f"gradient/{name}", lambda r: forward_and_backward(r, run), TORCH)
        with torch.no_grad():
            record.case(f"functional/{name}", run, TORCH)
    for name, make in BIASES.items():
        for causal in (False, True):
            run = lambda r: backward(r, F.add_bias(r(2, 4, 9, 13, grad=True), make(r), causal=causal, input_scale=0.25))
            record.case(f"gradient/bias/{name}{'/causal' if causal else ''}", run, TORCH, name in LIBM)
    learned: dict[str, Callable[[Inputs], Any]] = {
        "t5": lambda r: T5Bias(r(32, 4, grad=True)),
        "t5_bfloat16": lambda r: T5Bias(r(20, 4, dtype="bfloat16", grad=True), bidirectional=False, max_distance=40),
        "deberta": lambda r: LogBuckets(r(16, 4, grad=True), max_distance=30),
        "alibi": lambda r: ALiBi(4, slopes=r(4, grad=True)),
        "alibi_symmetric": lambda r: ALiBi(4, symmetric=True, slopes=r(4, grad=True)),
        "kerple": lambda r: Kerple(r(4, grad=True), r(4, grad=True)),
        "kerple_power": lambda r: Kerple(r(4, grad=True), r(4, grad=True), kind="power"),
        "fire": lambda r: fire(r, grad=True),
        "fire_beyond": lambda r: fire(r, 9.0, grad=True),
    }
    for name, make in learned.items():
        for mode in ("plain", "q_positions_BT", "offset", "both_BT", "in_place"):

            def run(r: Inputs) -> Any:
                scores, given = r(2, 4, 9, 33, grad=True), STANDING[mode](r) if mode in STANDING else {"causal": True}
                verb = fastpe.add_bias if mode == "in_place" else F.add_bias
                return backward(r, verb(nonleaf(scores) if mode == "in_place" else scores, make(r), **given))

            record.case(f"gradient/learned_bias/{name}/{mode}", run, TORCH, name in LIBM)
