"""Claims of ``apply_rotary``: the roofline, torch's eager and compiled expression, decoding."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import as_tensor, random_values, usual_rotation
from fastpe._tools.benchmark.probes import torch_if_installed
from fastpe._tools.benchmark.verbs import Rotating
from fastpe._tools.benchmark.workload import FASTPE

from .. import registry
from ..huggingface import import_transformers
from .table import Call, Claim, Measuring, at_least, microseconds, milliseconds


def rotary(measuring: Measuring) -> Iterator[Claim]:
    """``apply_rotary(q, k)``: the roofline, torch's eager expression (as in Hugging Face's Llama) and its compiled form; decoding."""
    interleaved = fastpe.Rotary(interleaved=True)
    for case in registry.CLAIMED["rotary"](measuring.shrink):
        work = Rotating(case)
        batch, q_heads, k_heads, length, width = case.shape
        packed = random_values((batch, length, q_heads + k_heads, width), case.dtype)
        q, k = packed[:, :, :q_heads], packed[:, :, q_heads:]
        calls: dict[str, Call] = {
            "half": work.call(FASTPE),
            "interleaved": lambda work=work: fastpe.apply_rotary(work.q, work.k, interleaved),
            "(B, T, H, D)": lambda q=q, k=k: fastpe.apply_rotary(q, k, seq_axis=-3),
        }
        medians, roofline = measuring.over_roofline(calls, work.q.nbytes + work.k.nbytes)
        what = described(work)
        for layout in ("half", "interleaved", "(B, T, H, D)"):
            target = 0.85 if case.dtype == "float32" and layout == "half" else None
            yield at_least(f"{what}, {layout}: roofline", roofline / medians[layout], target, milliseconds(medians))
        del packed, q, k, calls
        if torch_if_installed() is not None and case.dtype != "float16":
            yield from _over_torch(measuring, what, work)
        del work
        gc.collect()
    yield from _decoding(measuring)


def described(work: Rotating) -> str:
    """Element type and shapes."""
    return f"{work.case.dtype} q {work.q.shape}, k {work.k.shape[1]} heads"


def tables(work: Rotating) -> tuple[Any, Any]:
    """Cosines and sines as models keep them, tensors (1 or B, T, D)."""
    cos, sin = (as_tensor(np.ascontiguousarray(array[:, 0])) for array in work.tables)
    return cos, sin


def eager_rotation() -> Callable[..., Any]:
    """Hugging Face's function, or the same expression."""
    try:
        rotation: Callable[..., Any] = import_transformers().models.llama.modeling_llama.apply_rotary_pos_emb
        return rotation
    except ImportError:
        import torch

        def usual(q: Any, k: Any, cos: Any, sin: Any) -> Any:
            return tuple(usual_rotation(torch, x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k))

        return usual


def _over_torch(measuring: Measuring, what: str, work: Rotating) -> Iterator[Claim]:
    import torch

    tensors, eager = (as_tensor(work.q), as_tensor(work.k), *tables(work)), eager_rotation()
    calls: dict[str, Call] = {"fastpe": work.call(FASTPE), "eager": lambda: eager(*tensors)}
    if measuring.shrink == 1 and work.case.dtype == "float32":
        compiled = torch.compile(eager)
        calls["compiled"] = lambda: compiled(*tensors)
    with torch.no_grad():
        medians = measuring.medians(calls)
    for name, target in (("eager", 5.0), ("compiled", 1.5)):
        if name in medians:
            ratio = medians[name] / medians["fastpe"]
            least = target if work.case.dtype != "float64" else None
            yield at_least(f"{what}: times as fast as {name}", ratio, least, milliseconds(medians))


def _decoding(measuring: Measuring) -> Iterator[Claim]:
    """One token of 32 sequences, each at its own position."""
    for case in registry.CLAIMED["decoding"](measuring.shrink):
        work = Rotating(case)
        calls: dict[str, Call] = {"fastpe": work.call(FASTPE)}
        torch = torch_if_installed()
        if torch is not None:
            eager, q, k = eager_rotation(), as_tensor(work.q), as_tensor(work.k)
            rows = torch.from_numpy(case.offset)
            gathered = tables(work)
            whole = [torch.zeros(4096, case.shape[-1], dtype=one.dtype) for one in gathered]
            for table, some in zip(whole, gathered, strict=True):
                table[rows] = some[:, 0]
            calls["gathering"] = lambda q=q, k=k, f=eager, t=whole, r=rows: f(q, k, *(one[r][:, None] for one in t))
            calls["gathered"] = lambda q=q, k=k, f=eager, t=gathered: f(q, k, *t)
        medians = measuring.medians(calls)
        for name in list(medians)[1:]:
            what = f"{described(work)}: times torch, cos and sin {name}"
            yield at_least(what, medians[name] / medians["fastpe"], 1.0, microseconds(medians))
