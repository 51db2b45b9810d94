"""Recipes with what they leave open, and the numbers of the models that they are named after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import fastpe
from fastpe.encodings import recipes as catalog

ROOT = Path(__file__).resolve().parents[2]
DATA: dict[str, np.ndarray] = {}
for name in ("recipes", "tables", "grids", "axes", "rotated", "biases"):
    with np.load(ROOT / "tests" / "data" / f"{name}.npz") as arrays:
        DATA |= {f"{name}/{key}": arrays[key] for key in arrays.files}

SHAPES = {"cogvideox": (3, 6, 4)}
LEFT_OPEN: dict[str, dict[str, Any]] = {
    **{name: {"heads": 12} for name in ("alibi", "bloom", "mpt", "alibi-symmetric", "sandwich")},
    **{name: {"table": np.zeros((32, 4), np.float32)} for name in ("t5", "t5-decoder")},
    "deberta": {"table": np.zeros((512, 4), np.float32)},
    "wavlm": {"table": np.zeros((320, 4), np.float32)},
    **{name: {"p": [1.0] * 4, "a": [0.5] * 4} for name in ("kerple", "kerple-power")},
    "fire": {key: DATA[f"biases/fire_{key}"] for key in ("w1", "b1", "w2", "b2")},
}


def recipe(name: str, **fields: Any) -> catalog.Recipe:
    entry = catalog.CATALOGUE[name]
    if entry.kind is fastpe.Grid:
        fields.setdefault("shape", SHAPES.get(name, (5, 7)))
    return fastpe.recipe(name, **{**LEFT_OPEN.get(name, {}), **fields})
