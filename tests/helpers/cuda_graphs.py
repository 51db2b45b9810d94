"""Captures of PyTorch's in which a call may raise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def captured(device: Any) -> Iterator[Any]:
    """Capture the body into a graph. What it raises is raised once the capture has ended, and with something in the graph.

    An error inside ``torch.cuda.graph`` leaves the graph empty, of which torch warns. Where warnings are errors, this one comes in the
    error's place, and the stream of the capture stays the current one.
    """
    raised, graph, something = None, torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.graph(graph):
        something.add_(1)
        try:
            yield graph
        except Exception as error:
            raised = error
    if raised is not None:
        raise raised
