"""What rotating with fastpe changes of a whole model: ``python -m bench.patched_models [--layers N] [--tokens N] ...``.

A small Llama with random weights runs unpatched and patched, alternating within one process. Each run is timed as a whole, and in it the
two functions that rotate: the one that makes cosines and sines (patched: passes positions on), and the one that applies them in each
layer. The backward pass of a rotation counts only in the whole. Prints a Markdown table of medians. Needs ``transformers``.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fastpe.torch import patch_transformers

from .huggingface import import_transformers

Llama = Any  # transformers.LlamaForCausalLM


class Timed(NamedTuple):
    """Seconds of one run, and of the rotations in it."""

    whole: float
    rotary: float


class Clock:
    """Adds up the time that is spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


@contextmanager
def clocked(model: Llama, clock: Clock) -> Iterator[None]:
    """Time the functions that rotate, whatever they are now."""
    modelling, rotary = sys.modules[type(model).__module__], model.model.rotary_emb
    apply, forward, own = modelling.apply_rotary_pos_emb, rotary.forward, rotary.__dict__.get("forward")
    modelling.apply_rotary_pos_emb, rotary.forward = clock.wrap(apply), clock.wrap(forward)
    try:
        yield
    finally:
        modelling.apply_rotary_pos_emb = apply
        del rotary.forward
        if own is not None:
            rotary.forward = own


def prefill(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states of all tokens, without a cache."""
    with torch.no_grad():
        result: torch.Tensor = model.model(ids, use_cache=False).last_hidden_state
    return result


def train(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    result: torch.Tensor = model.model(ids, use_cache=False).last_hidden_state
    result.square().mean().backward()
    return result.detach()


def run_once(work: Callable[..., torch.Tensor], model: Llama, ids: torch.Tensor, *, patched: bool) -> Timed:
    """Time one run, patched or not."""
    patch = patch_transformers(model) if patched else None
    clock = Clock()
    try:
        with clocked(model, clock):
            start = time.perf_counter()
            work(model, ids)
            whole = time.perf_counter() - start
    finally:
        if patch is not None:
            patch.undo()
    return Timed(whole, clock.seconds)


def check(work: Callable[..., torch.Tensor], model: Llama, ids: torch.Tensor) -> float:
    """The largest difference between hidden states; the first runs, which compile, are not timed."""
    usual = work(model, ids)
    with patch_transformers(model):
        patched = work(model, ids)
    difference = float((usual.float() - patched.float()).abs().max())
    limit = 1e-3 if usual.dtype is torch.float32 else 0.5
    if not difference <= limit:
        raise SystemExit(f"patched and unpatched differ by {difference:g}")
    return difference


def measure(work: Callable[..., torch.Tensor], model: Llama, ids: torch.Tensor, rounds: int) -> list[list[Timed]]:
    """Unpatched and patched runs, alternating; the first of a round alternates too."""
    runs: list[list[Timed]] = [[], []]
    for i in range(rounds):
        for patched in (False, True) if i % 2 == 0 else (True, False):
            runs[patched].append(run_once(work, model, ids, patched=patched))
    return runs


def row(name: str, runs: list[list[Timed]], difference: float) -> str:
    """A line of the table."""
    before, after = runs
    wholes = [statistics.median(run.whole for run in one) for one in runs]
    rotary = [statistics.median(run.rotary for run in one) for one in runs]
    shares = [statistics.median(run.rotary / run.whole for run in one) for one in runs]
    gain = statistics.median(a.whole / b.whole for a, b in zip(before, after, strict=True))
    times = " | ".join(
        f"{1e3 * whole:.0f} ms | {1e3 * part:.1f} ms ({share:.1%})"
        for whole, part, share in zip(wholes, rotary, shares, strict=True)
    )
    return f"| {name} | {times} | {rotary[0] / rotary[1]:.1f}x | {gain:.3f}x | {difference:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.patched_models", description=__doc__.partition(":")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=None, help="default: as many as --heads")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--intermediate", type=int, default=1408)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    transformers = import_transformers()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=given.heads * given.head_dim,
        intermediate_size=given.intermediate,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads or given.heads,
        vocab_size=1024,
        max_position_embeddings=max(given.tokens, 2048),
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, given.dtype))
    ids = torch.randint(0, 1024, (given.batch, given.tokens))
    kv_heads = given.kv_heads or given.heads
    print(
        f"Llama, {given.layers} layers, {given.heads} heads ({kv_heads} of keys) of {given.head_dim}, {given.dtype}, "
        f"{given.batch} x {given.tokens} tokens, {given.threads} threads, medians of {given.rounds} runs each\n"
    )
    print("| | whole | rotary | patched: whole | rotary | rotary faster | whole faster | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name, work in (("prefill", prefill), ("forward + backward", train)):
        difference = check(work, model, ids)
        print(row(name, measure(work, model, ids, given.rounds), difference), flush=True)


if __name__ == "__main__":
    main()
