"""Rows of the tables that show what to write instead of another library's code: read, run, and compared with that library's numbers."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastpe
from fastpe import scaling
from fastpe.torch import functional

ROOT = Path(__file__).resolve().parents[2]
with np.load(ROOT / "tests" / "data" / "peers.npz") as arrays:
    PEERS = {key: arrays[key] for key in arrays.files}

Spans = list[str]
Check = Callable[[Spans, str], None]  # of the right column's code, and the left cell
T, D, H, V = 6, 32, 2, 50
NAMES = {
    "fastpe": fastpe,
    "functional": functional,
    "math": math,
    "torch": torch,
    "nn": torch.nn,
    "np": np,
    "T": T,
    "D": D,
    "H": H,
}
NAMES |= {name: getattr(fastpe, name) for name in ("Rotary", "Grid", "Sinusoidal", "Fourier")}
NAMES |= {name: getattr(scaling, name) for name in ("NTK", "Linear")}


def rows(page: str, *headings: str) -> dict[str, Spans]:
    """The right column's pieces of code, by the whole left cell."""
    text = (ROOT / "docs" / page).read_text()
    sections = [part.partition("\n") for part in re.split(r"^## ", text, flags=re.M)[1:]]
    assert {*headings} <= {title for title, _, _ in sections}
    found: dict[str, Spans] = {}
    for _, _, body in (section for section in sections if section[0] in headings):
        for line in re.findall(r"^\| (.*) \|$", body, re.M)[1:]:
            left, right = line.split(" | ")
            assert left not in found, f"two rows begin with {left}"
            found[left] = re.findall(r"`([^`]+)`", right)
    return found


def run(code: str, **names: Any) -> Any:
    """What a piece of code returns: the value of an expression or assignment, or what ``+=`` has written."""
    given = {**NAMES, **names}
    node = ast.parse(code).body[0]
    if isinstance(node, ast.AugAssign):
        exec(code, given)
        return given[ast.unparse(node.target)]
    return eval(ast.unparse(node.value) if isinstance(node, ast.Assign | ast.Expr) else code, given)


def of(peer: str, *keys: str) -> dict[str, Any]:
    """Copies of stored arrays, by their names."""
    return {key: PEERS[f"{peer}/{key}"].copy() for key in keys}


def close(found: Any, expected: Any, angle: float = 10.0) -> None:
    """Float32 angles of other projects err by 1.2e-7 of the largest; a sum by one rounding more."""
    found = found.detach() if isinstance(found, torch.Tensor) else found
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite])
    scale = max(1.0, np.abs(expected[finite]).max())
    np.testing.assert_allclose(found[finite], expected[finite], rtol=0, atol=(1e-6 + 1.2e-7 * angle) * scale)


def softmax(x: Any) -> Any:
    masked = np.where(np.tri(x.shape[-1], dtype=bool), x, -np.inf)
    weights = np.exp(masked - masked.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# ---- stored numbers ----------------------------------------------------------------------------------------------------------


def equals(peer: str, expected: str, *inputs: str, angle: float = 10.0, **names: Any) -> Check:
    """The code returns a stored array."""

    def check(right: Spans, left: str) -> None:
        found = run(right[0], **of(peer, *inputs), **names)
        close(found, PEERS[f"{peer}/{expected}"], angle)

    return check


def as_tensors(expected: str, *inputs: str, angle: float = 10.0) -> Check:
    """The same of flash-attn, whose inputs are tensors; written in place where both sides say so, and only there."""

    def check(right: Spans, left: str) -> None:
        given = {key: torch.from_numpy(value) for key, value in of("flash_attn", *inputs).items()}
        found = run(right[0], **given)
        close(found, PEERS[f"flash_attn/{expected}"], angle)
        assert (found is given[inputs[0]]) == ("inplace" in left or "qkv_" in left)

    return check


def pair(peer: str, before: str, after: str, *inputs: str, angle: float = 1000.0, **names: Any) -> Check:
    """The code rotates q and k, in place."""

    def check(right: Spans, left: str) -> None:
        given = of(peer, "q", "k", *inputs)
        q, k = run(right[0], **given, **names)
        assert q is given["q"]
        assert k is given["k"]
        close(q, PEERS[f"{peer}/{before}q{after}"], angle)
        close(k, PEERS[f"{peer}/{before}k{after}"], angle)

    return check


def rotates(peer: str, expected: str, start: int, axis: int = -2, angle: float = 1000.0) -> Check:
    """The code is an encoding, whose rotation of q is stored."""

    def check(right: Spans, left: str) -> None:
        rotated = fastpe.apply_rotary(PEERS[f"{peer}/q"].copy(), encoding=run(right[0]), offset=start, seq_axis=axis)
        close(rotated, PEERS[f"{peer}/{expected}"], angle)

    return check
