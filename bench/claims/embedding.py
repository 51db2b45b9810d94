"""Claims of ``embed``: against gathering, scaling and adding, and a bare gather."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import as_tensor
from fastpe._tools.benchmark.probes import torch_if_installed
from fastpe._tools.benchmark.verbs import Embedding
from fastpe._tools.benchmark.verbs.embed import SCALE
from fastpe._tools.benchmark.workload import CACHED, FASTPE, TORCH

from .. import registry
from .gather import bare_gather
from .table import Call, Claim, Measuring, at_least, chosen, milliseconds


def embed(measuring: Measuring) -> Iterator[Claim]:
    """``embed(ids, table, Sinusoidal(), scale=, out=)``: against gathering, scaling and adding; and a bare gather past the caches."""
    for case in registry.CLAIMED["embed"](measuring.shrink):
        work = Embedding(case)
        ids, table, out = work.ids, work.table, work.out
        rivals = (FASTPE, TORCH, CACHED) if case.dtype == "float32" else (FASTPE, TORCH)
        calls: dict[str, Call] = {
            **chosen(work, {name: work.contenders[name] for name in rivals}),
            "no encoding": lambda i=ids, t=table, o=out: fastpe.embed(i, t, scale=SCALE, out=o),
            "gather": bare_gather(ids, table, out, measuring.threads),
        }
        if case.dtype == "float32":
            calls["int8"] = _int8(work)
        medians = measuring.medians(calls)
        detail, what = milliseconds(medians), f"{case.dtype} ids {ids.shape}, table {table.shape}"
        ours = medians[FASTPE]
        yield at_least(f"{what}: of a bare gather's bandwidth", medians["gather"] / ours, 0.8, detail)
        for name, title, target in ((TORCH, "torch", 2.2), (CACHED, "numpy", 2.8)):
            if name in medians:
                yield at_least(f"{what}: times as fast as {title}", medians[name] / ours, target, detail)
        if "int8" in medians:
            yield at_least(f"{what}: int8 table, speed over float32", ours / medians["int8"], 1.0, detail)
        medians = measuring.medians(_allocating(work))
        for name in list(medians)[1:]:
            ratio = medians[name] / medians["fastpe"]
            yield at_least(f"{what}, all allocating: times as fast as {name}", ratio, None, milliseconds(medians))
        del work, ids, table, out, calls
        gc.collect()


def _int8(work: Embedding) -> Call:
    """From a quantised table with a scale for each row."""
    ids, out, encoding = work.ids, work.out, fastpe.Sinusoidal()
    quantised, scales = np.zeros(work.table.shape, np.int8), np.full(len(work.table), 0.01)
    return lambda: fastpe.embed(ids, quantised, encoding, scale=SCALE, row_scale=scales, out=out)


def _allocating(work: Embedding) -> dict[str, Call]:
    """All into new memory."""
    ids, table, added, encoding, torch = work.ids, work.table, work.added, fastpe.Sinusoidal(), torch_if_installed()
    calls: dict[str, Call] = {"fastpe": lambda: fastpe.embed(ids, table, encoding, scale=SCALE)}
    if work.case.dtype == "float32":
        calls["numpy"] = lambda: table[ids] * np.float32(SCALE) + added
    if torch is not None:
        words, rows, encoded = as_tensor(table), torch.from_numpy(ids), as_tensor(added)
        calls["torch"] = lambda: torch.nn.functional.embedding(rows, words) * SCALE + encoded
    return calls
