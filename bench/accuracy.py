"""Print the README's table of errors: ``python bench/accuracy.py``.

Each column is the largest error over 64 rows from a position on, against integers of 160 fractional bits (``tests/reference.py``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastpe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference

WIDTH = 128
POSITIONS = (0, 4_032, 131_008, 1_000_000, 2**31 - 64)


def usual_table(positions: np.ndarray) -> np.ndarray:
    """The common float32 recipe: angles are float32 positions times float32 frequencies."""
    frequencies = (10000.0 ** -(np.arange(0, WIDTH, 2) / WIDTH)).astype(np.float32)
    angles = positions.astype(np.float32)[:, None] * frequencies
    result = np.empty((len(positions), WIDTH), np.float32)
    result[:, 0::2], result[:, 1::2] = np.sin(angles), np.cos(angles)
    return result


def errors(kind: str) -> list[float]:
    found = []
    for first in POSITIONS:
        positions = np.arange(first, first + 64)
        got = usual_table(positions) if kind == "usual" else fastpe.encode(positions, WIDTH, dtype=kind)
        found.append(float(np.abs(got.astype(np.float64) - reference.sinusoidal(positions, WIDTH)).max()))
    return found


def main() -> None:
    rows = {"fastpe, float32": "float32", "fastpe, float64": "float64", "float32 table as usually built": "usual"}
    print("| first position | " + " | ".join(f"{p:,}".replace(",", " ") for p in POSITIONS) + " |")
    print("|---|" + "---|" * len(POSITIONS))
    for name, kind in rows.items():
        print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors(kind)) + " |")


if __name__ == "__main__":
    main()
