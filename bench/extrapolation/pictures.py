"""One panel a task: how well each encoding does against the length, with its name where its line ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastpe._tools.plot import figures, gallery

from .encodings import ENCODINGS

__all__ = ["draw", "spread"]

HEIGHT = 5.6  # inches a panel: enough for the names of all lines
MARKS = "os^Dv<>"
BLUE, RED, GREEN, PINK, LIGHT_BLUE, ORANGE, BLACK = figures.COLOURS
# Colours by prefix of the name; the longest prefix counts.
FAMILIES = {
    "none": BLACK,
    "learned": PINK,
    "sinusoidal": ORANGE,
    "rotary": BLUE,
    "rotary_rerope": LIGHT_BLUE,
    "rotary_self_extend": LIGHT_BLUE,
    "rotary_randomized": GREEN,
    "xpos": GREEN,
    "t5": RED,
    "fire": RED,
    "kerple": RED,
    "alibi": RED,
}


def draw(every: list[dict[str, Any]], path: Path) -> None:
    """Draw the tasks of results, those of several seeds as their mean, into a file."""
    tasks = [task for task, task_results in every[0]["tasks"].items() if task_results["encodings"]]
    if not tasks:
        return
    panels, _ = figures.panels(None, len(tasks), HEIGHT * len(tasks), nrows=len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        _panel(axes, task, every)
    path.parent.mkdir(parents=True, exist_ok=True)
    gallery.save_small(panels, path)


def _panel(axes: Any, task: str, every: list[dict[str, Any]]) -> None:
    first = every[0]["tasks"][task]
    metric, better = next(iter(first["metrics"].items()))
    ends, marked = [], dict[str, int]()
    for name in (name for name in ENCODINGS if name in first["encodings"]):
        factors, values = _curve(every, task, name, metric)
        if not factors:
            continue
        colour = FAMILIES[max((start for start in FAMILIES if name.startswith(start)), key=len)]
        mark = MARKS[marked.get(colour, 0) % len(MARKS)]
        marked[colour] = marked.get(colour, 0) + 1
        style = "--" if name.endswith("_tuned") else "-"
        axes.plot(factors, values, style, color=colour, marker=mark, markersize=4, linewidth=1.3)
        ends.append((factors[-1], values[-1], first["encodings"][name]["label"], colour, mark))
    length = every[0]["length"]
    factors = sorted({int(factor) for entry in first["encodings"].values() for factor in entry["lengths"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor}x\n{factor * length}" for factor in factors])
    axes.set_xlabel("length, times the trained one, and in tokens")
    axes.set_ylabel(f"{metric} ({better} is better)")
    figures.lines(axes)
    figures.title(axes, first["title"])
    _name(axes, ends)


def _curve(every: list[dict[str, Any]], task: str, name: str, metric: str) -> tuple[list[int], list[float]]:
    """The lengths that all results have, and the mean at each."""
    lengths = [
        results["tasks"][task]["encodings"].get(name, {}).get("lengths", {}) for results in every if task in results["tasks"]
    ]
    factors = sorted(set.intersection(*({int(factor) for factor in metrics} for metrics in lengths)))
    return factors, [float(np.mean([metrics[str(factor)][metric] for metrics in lengths])) for factor in factors]


def _name(axes: Any, ends: list[tuple[int, float, str, str, str]]) -> None:
    """Put names to the right of the lines, in the order of the ends, apart from each other; a thin line leads to each."""
    axes.autoscale(False)
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value, *_ in ends], apart=1 / 25)
    right = max((factor for factor, *_ in ends), default=1)
    for (factor, value, label, colour, mark), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            (factor, value),
            (1.08, height),
            xycoords="data",
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkA": 9, "shrinkB": 3},
        )
        axes.plot(1.065, height, mark, color=colour, markersize=4, transform=axes.transAxes, clip_on=False)
    axes.set_xlim(0.93, right * 1.04)


def spread(heights: list[float], apart: float) -> list[float]:
    """Move heights to be that much apart, in their order: neighbours that are too close become a block around their mean.

    All stay between 0 and 1 if they fit.
    """
    order = np.argsort(heights, kind="stable")
    blocks: list[list[float]] = []  # of heights, lowest block first
    for index in order:
        blocks.append([heights[index]])
        while len(blocks) > 1 and _top(blocks[-2], apart) + apart > _bottom(blocks[-1], apart):
            last = blocks.pop()
            blocks[-1] += last
    stacked = [_bottom(block, apart) + i * apart for block in blocks for i in range(len(block))]
    steps = np.arange(len(heights)) * apart
    moved = np.empty(len(heights))
    moved[order] = np.maximum(np.minimum(stacked, 1 - steps[::-1]), steps)
    return [float(value) for value in moved]


def _bottom(block: list[float], apart: float) -> float:
    return float(np.mean(block)) - apart * (len(block) - 1) / 2


def _top(block: list[float], apart: float) -> float:
    return float(np.mean(block)) + apart * (len(block) - 1) / 2
