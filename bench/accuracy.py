"""Print the documentation's tables of errors: ``PYTHONPATH=tests/helpers python -m bench.accuracy``.

Each column is the largest error over 64 rows from a position on, against integers of 160 fractional bits (``tests/helpers/reference.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import reference

import fastpe

WIDTH = 128
POSITIONS = (0, 1_000, 10_000, 131_008, 1_000_000, 10_000_000, 2**31 - 64)
FREQUENCIES = 10000.0 ** -(np.arange(0, WIDTH, 2) / WIDTH)


def usual_angles(positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """The common float32 recipe: float32 positions times float32 frequencies."""
    return positions.astype(np.float32)[:, None] * frequencies.astype(np.float32)


def usual_table(positions: np.ndarray) -> np.ndarray:
    angles = usual_angles(positions, FREQUENCIES)
    return np.stack((np.sin(angles), np.cos(angles)), -1).reshape(len(positions), WIDTH)


def encoding_error(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], float]:
    """The largest error of the encoding that is added."""
    return lambda positions: float(np.abs(make(positions).astype(np.float64) - reference.sinusoidal(positions, WIDTH)).max())


def rotation_error(rotate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[np.ndarray], float]:
    """The largest error of rotated queries whose pairs have norm 1."""

    def error(positions: np.ndarray) -> float:
        phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (len(positions), WIDTH // 2))
        q = np.concatenate((np.cos(phase), np.sin(phase)), -1).astype(np.float32)
        angles = reference.angles(positions, reference.angular_frequencies(WIDTH))
        expected = reference.rotate(q, np.cos(angles), np.sin(angles))
        return float(np.abs(rotate(q, positions).astype(np.float64) - expected).max())

    return error


def by_angles(frequencies: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Rotate by cosines and sines as models build them."""

    def rotate(q: np.ndarray, positions: np.ndarray) -> np.ndarray:
        angles = usual_angles(positions, frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        u, v = q[:, : WIDTH // 2], q[:, WIDTH // 2 :]
        return np.concatenate((u * cos - v * sin, v * cos + u * sin), -1)

    return rotate


def by_fastpe(q: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotate in place."""
    result: np.ndarray = fastpe.apply_rotary(q, None, positions=positions)
    return result


ENCODINGS = {
    "fastpe, float32": encoding_error(lambda positions: fastpe.encode(positions, WIDTH)),
    "fastpe, float64": encoding_error(lambda positions: fastpe.encode(positions, WIDTH, dtype="float64")),
    "float32 table as usually built": encoding_error(usual_table),
}
ROTATIONS = {
    "fastpe, float32": rotation_error(by_fastpe),
    "float32 cosines and sines, as models build them": rotation_error(by_angles(FREQUENCIES)),
    "the same, frequencies cast to bfloat16 with the model": rotation_error(by_angles(FREQUENCIES.astype(ml_dtypes.bfloat16))),
}


def table(rows: dict[str, Callable[[np.ndarray], float]]) -> str:
    lines = [
        "| first position | " + " | ".join(f"{p:,}".replace(",", " ") for p in POSITIONS) + " |",
        "|---|" + "--:|" * len(POSITIONS),
    ]
    for name, error in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{error(np.arange(p, p + 64)):.1e}" for p in POSITIONS) + " |")
    return "\n".join(lines)


def main() -> None:
    print(f"Encoding\n\n{table(ENCODINGS)}\n\nRotation\n\n{table(ROTATIONS)}")


if __name__ == "__main__":
    main()
