"""Processes that share DTensors over gloo: started once for many tests, which report what went wrong."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from library_rows import Row, of_tensor, tensor, tensor_place
from verb_cases import CASES

LAYOUTS = {  # what each axis of the mesh shards
    2: [("rows",), ("batch",), ("heads",), ("",)],
    4: [("batch", "rows"), ("rows", "rows"), ("heads", "rows"), ("", "rows"), ("rows", "batch"), ("keys", "rows")],
}
ROLES = {"batch": "BA", "rows": "TGQ1", "heads": "HhFf", "keys": "K"}  # by the letters of axes


def placed(layout: tuple[str, ...], axes: dict[str, int]) -> list[Any]:
    """The placements of a tensor whose axes have these roles."""
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(axes[role]) if role in axes else Replicate() for role in layout]


def spread(x: Any, mesh: Any, layout: tuple[str, ...], axes: dict[str, int]) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.clone(), mesh, placed(layout, axes), src_data_rank=None)  # every rank has all of it


def outcome(test: Callable[..., None], *arguments: Any) -> str:
    """Empty, or what went wrong; all ranks go on together."""
    try:
        test(*arguments)
    except BaseException:  # what any test may raise is reported by the parent
        return traceback.format_exc()
    return ""


def work(rank: int, ranks: int, folder: str, tests: Callable[[Any], Iterable[tuple[str, Callable[[], None]]]]) -> None:
    """A process: what its tests report."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,) if ranks == 2 else (2, 2))
        found = {name: outcome(test) for name, test in tests(mesh)}
        Path(folder, f"results-{rank}").write_text(json.dumps(found))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    leave()


def leave() -> None:
    """End a process that has used gloo, without the end of Python.

    PyTorch keeps a mesh that a DTensor was calculated on, and with it gloo's threads, also after ``destroy_process_group``. One that still
    holds a tensor of the last collective asks for the GIL to let it go, and aborts the process if Python is ending: "terminate called
    without an active exception" (python 3.11; pytorch/pytorch issues 38228 and 179291). And where nothing keeps gloo's object, returning
    lets it go: it waits for its thread with the GIL held, which that thread may be waiting for.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def reports(ranks: int, tests: Callable[[Any], Iterable[tuple[str, Callable[[], None]]]]) -> list[dict[str, str]]:
    """What each process says of each test; ``tests`` are importable by name, as processes get no more of it."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(work, (ranks, folder, tests), nprocs=ranks, join=False)
        while not context.join(timeout=200):
            pass
        return [json.loads(Path(folder, f"results-{rank}").read_text()) for rank in range(ranks)]


def ensure(found: list[dict[str, str]], begin: str = "") -> None:
    """Every process has run tests whose names begin so, and nothing went wrong."""
    assert all(any(name.startswith(begin) for name in report) for report in found)
    wrong = {name: text for report in found for name, text in report.items() if name.startswith(begin) and text}
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())


# ---- the shared cases --------------------------------------------------------------------------------------------------------


class OfRank(Row):
    """A rank compares its own part, so that nothing is communicated but by fastpe."""

    def check_bits(self, one: Any, expected: np.ndarray) -> None:
        from torch.distributed.tensor import distribute_tensor

        wanted = tensor(expected)
        if hasattr(one, "placements"):
            assert one.shape == wanted.shape
            wanted = distribute_tensor(wanted, one.device_mesh, one.placements, src_data_rank=None).to_local()
            one = one.to_local()
        super().check_bits(one, of_tensor(wanted))


def sharded(mesh: Any, layout: tuple[str, ...], axes: str, value: np.ndarray) -> Any:
    """An array as a DTensor, each of its axes sharded by its role."""
    roles = {role: index for index, axis in enumerate(axes) for role, letters in ROLES.items() if axis in letters}
    return spread(tensor(value), mesh, layout, roles)


def shared(mesh: Any) -> Iterable[tuple[str, Callable[[], None]]]:
    """All cases in all layouts."""
    for layout in LAYOUTS[mesh.size()]:
        row = OfRank(tensor, of_tensor, split=partial(sharded, mesh, layout), place=tensor_place)
        yield from ((f"{name} on {layout}", partial(row.check, case)) for name, case in CASES.items())
