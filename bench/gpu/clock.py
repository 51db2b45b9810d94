"""Time of calls on the GPU, and of the CPU until they return."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Call = Callable[[], object]


def gpu_seconds(call: Call, repeats: int = 20, rounds: int = 7) -> float:
    """Time of a call on the GPU: many in a captured graph, so that the CPU plays no part; without one where it cannot be captured."""
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    run = _captured(call, repeats) or _repeated(call, repeats)
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / repeats)
    return statistics.median(times)


def _repeated(call: Call, repeats: int) -> Call:
    def run() -> None:
        for _ in range(repeats):
            call()

    return run


def _captured(call: Call, repeats: int) -> Call | None:
    """What replays the calls; None if they cannot be captured."""
    import torch

    graph, before, captured = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), True
    something = torch.zeros(1, device="cuda")  # an empty graph would warn
    try:
        with torch.cuda.graph(graph):
            something.add_(1)
            try:
                _repeated(call, repeats)()
            except Exception:
                captured = False
    except RuntimeError:  # a call did what ends a capture
        captured = False
        torch.cuda.set_stream(before)
    torch.cuda.synchronize()
    return graph.replay if captured else None


def host_seconds(call: Call, calls: int = 200, rounds: int = 5) -> float:
    """Time until a call returns; the GPU is waited for between rounds."""
    import torch

    for _ in range(20):
        call()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return min(times)
