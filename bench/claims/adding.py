"""Claims of ``add_encoding``: one row, in the caches, past them, positions, out of place, grids, threads."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import random_values
from fastpe._tools.benchmark.probes import torch_if_installed
from fastpe._tools.benchmark.workload import CACHED, FASTPE, TORCH

from .. import contenders, registry
from ..registry import MB
from .table import Call, Claim, Measuring, at_least, at_most, chosen, microseconds, milliseconds


def row(measuring: Measuring) -> Iterator[Claim]:
    """One row: decoding."""
    for case in registry.CLAIMED["row"](measuring.shrink):
        work = registry.workload(case)
        calls = chosen(work, {name: work.contenders[name] for name in (FASTPE, CACHED, TORCH)})
        medians = measuring.medians(calls, work.spend)
        what = f"float32 {case.shape}"
        detail = microseconds(medians, 2)
        yield at_most(f"{what}: us above NumPy", (medians[FASTPE] - medians[CACHED]) * 1e6, 6.0, detail)
        if TORCH in medians:
            yield at_most(f"{what}: times torch", medians[FASTPE] / medians[TORCH], 1.5)


def cached(measuring: Measuring) -> Iterator[Claim]:
    """Against ``x += table[:T]`` of NumPy and torch with the table in the caches too."""
    for case in registry.CLAIMED["cached"](measuring.shrink):
        work = registry.workload(case)
        rivals = (FASTPE, TORCH, CACHED) if case.dtype in ("float32", "float64") else (FASTPE, TORCH)
        medians = measuring.medians(chosen(work, {name: work.contenders[name] for name in rivals}), work.spend)
        detail = microseconds(medians)
        ours = medians.pop(FASTPE)
        best = min(medians.values(), default=ours)
        what = f"{case.dtype} {case.shape} {work.x.nbytes / 1e6:.2f} MB"
        if work.x.nbytes >= 1_000_000:
            yield at_least(f"{what}: speed over the best", best / ours, 1.0, detail)
        else:
            yield at_most(f"{what}: us behind the best", (ours - best) * 1e6, 5.0, detail)


def large(measuring: Measuring) -> Iterator[Claim]:
    """Share of the bandwidth of the fastest ``x += 1``, and speed over torch's cached table."""
    concatenated = fastpe.Sinusoidal(layout="concatenated")
    for case in registry.CLAIMED["large"](measuring.shrink):
        work, itemsize = registry.workload(case), registry.element(case.dtype).itemsize
        target = 0.90 if itemsize >= 4 else 0.75 if case.shape[0] > 1 else 0.60
        calls: dict[str, Call] = {
            "interleaved": work.call(FASTPE),
            "concatenated": lambda x=work.x: fastpe.add_encoding(x, concatenated),
            **chosen(work, {TORCH: work.contenders[TORCH]}),
        }
        medians, roofline = measuring.over_roofline(calls, work.x.nbytes, work.spend)
        what = f"{case.dtype} {case.shape}"
        for layout in ("interleaved", "concatenated"):
            yield at_least(f"{what} {layout}: roofline", roofline / medians[layout], target, milliseconds(medians))
        if TORCH in medians:
            ratio = medians[TORCH] / max(medians["interleaved"], medians["concatenated"])
            yield at_least(f"{what}: over torch's cached table", ratio, 1.0)
        del work, calls
        gc.collect()
        yield _strided(measuring, what, case.shape, case.dtype, target)
        gc.collect()


def _strided(measuring: Measuring, what: str, shape: tuple[int, ...], dtype: str, target: float) -> Claim:
    """Rows of 1024 columns in rows of 1536; ``x += 1`` runs over the same, 16-bit pairs as one float32."""
    view = random_values((*shape[:2], 1536), dtype)[..., : shape[2]]
    same = view if view.dtype.itemsize >= 4 else view.view(np.float32)
    calls: dict[str, Call] = {"fastpe": lambda: fastpe.add_encoding(view), "numpy +1": lambda: np.add(same, 1, out=same)}
    torch = torch_if_installed()
    if torch is not None:
        tensor = torch.from_numpy(same)
        calls["torch +1"] = lambda: tensor.add_(1)
    medians = measuring.medians(calls)
    roofline = min(seconds for name, seconds in medians.items() if name != "fastpe")
    return at_least(f"{what} of rows 1536 wide: roofline", roofline / medians["fastpe"], target, milliseconds(medians))


def positions(measuring: Measuring) -> Iterator[Claim]:
    """``positions=`` against an offset."""
    for case in registry.CLAIMED["positions"](measuring.shrink):
        batch, rows, _ = case.shape
        x = random_values(case.shape, case.dtype)
        consecutive = np.arange(rows)
        scattered = np.random.default_rng(0).integers(0, 1 << 20, (batch, rows))
        calls: dict[str, Call] = {
            "offset": lambda x=x: fastpe.add_encoding(x, offset=5),
            "consecutive": lambda x=x, p=consecutive: fastpe.add_encoding(x, positions=p),
            "random": lambda x=x, p=scattered: fastpe.add_encoding(x, positions=p),
        }
        medians = measuring.medians(calls)
        ratios = {name: seconds / medians["offset"] for name, seconds in medians.items()}
        what = f"float32 {case.shape}"
        yield at_most(f"{what}: consecutive positions, times offset", ratios["consecutive"], 1.15, milliseconds(medians))
        yield at_most(f"{what}: random positions, times offset", ratios["random"], 2.5)


def out(measuring: Measuring) -> Iterator[Claim]:
    """Out of place against ``np.add(x, table, out=out)``, one thread each."""
    fastpe.set_num_threads(1)
    try:
        for case in registry.CLAIMED["out"](measuring.shrink):
            work = registry.workload(case)
            x, table, target = work.x, work.table[: case.shape[1]], np.empty_like(work.x)
            calls: dict[str, Call] = {
                "fastpe": contenders.OUT.make(work),
                "numpy": lambda x=x, table=table, target=target: np.add(x, table, out=target),
            }
            medians = measuring.medians(calls)
            what = f"float32 {case.shape}, out"
            if x.nbytes >= 8 * MB:
                least = 1.3 if x.nbytes > 64 * MB else 1.0
                ratio = medians["numpy"] / medians["fastpe"]
                yield at_least(f"{what}: speed over np.add", ratio, least, milliseconds(medians))
            else:
                behind = (medians["fastpe"] - medians["numpy"]) * 1e6
                yield at_most(f"{what}: us behind np.add", behind, 5.0, milliseconds(medians))
    finally:
        fastpe.set_num_threads(None)


def size(measuring: Measuring) -> Iterator[Claim]:
    """Time per byte from 64 MB to 4 GB, and memory beside x."""
    (case,) = registry.CLAIMED["size"](measuring.shrink)
    x = random_values(case.shape, case.dtype)
    fastpe.add_encoding(x[:, :4096])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls: dict[str, Call] = {}
    nbytes = 64 * MB // measuring.shrink
    while nbytes <= x.nbytes:
        calls[str(nbytes)] = lambda x=x[:, : nbytes // 4096]: fastpe.add_encoding(x)
        nbytes *= 2
    per_byte = {int(name): seconds / int(name) for name, seconds in measuring.medians(calls).items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    detail = ", ".join(f"{n // MB} MB {2 / t / 1e9:.1f} GB/s" for n, t in per_byte.items())
    ratio = max(per_byte.values()) / min(per_byte.values())
    yield at_most("time per byte, 64 MB to 4 GB: most over least", ratio, 1.15, detail)
    yield at_most("memory beside x, MB", grown, 2.0)


def grids(measuring: Measuring) -> Iterator[Claim]:
    """``add_encoding(x, Grid)`` against one axis on all channels of the same array."""
    one = fastpe.Sinusoidal(layout="concatenated")
    for case in registry.CLAIMED["grids"](measuring.shrink):
        side = round(case.shape[1] ** 0.5)
        x = random_values(case.shape, case.dtype)
        kinds = (fastpe.Grid.mae, fastpe.Grid.timm, fastpe.Grid.detr)
        encodings = {"one axis": one, **{kind.__name__: kind((side, side)) for kind in kinds}}
        calls: dict[str, Call] = {
            name: lambda x=x, encoding=encoding: fastpe.add_encoding(x, encoding) for name, encoding in encodings.items()
        }
        medians = measuring.medians(calls)
        for name in list(encodings)[1:]:
            what = f"{case.dtype} {case.shape}, {name}: times one axis"
            yield at_most(what, medians[name] / medians["one axis"], 1.15, milliseconds(medians))


def threads(measuring: Measuring) -> Iterator[Claim]:
    """One thread and all, small and large."""
    most = measuring.threads
    for case in registry.CLAIMED["threads"](measuring.shrink):
        x = random_values(case.shape, case.dtype)

        def with_threads(count: int, x: np.ndarray = x) -> Call:
            def call() -> None:
                fastpe.set_num_threads(count)
                fastpe.add_encoding(x)

            return call

        medians = measuring.medians({str(count): with_threads(count) for count in dict.fromkeys((1, most))})
        what = f"float32 {case.shape}: speed of {most} threads over one"
        yield at_least(what, medians["1"] / medians[str(most)], 0.95, milliseconds(medians))
    fastpe.set_num_threads(None)
