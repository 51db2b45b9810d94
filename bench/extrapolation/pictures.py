"""One picture a task, one panel a family of encodings: how well each does against the length, with its name where its line ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpe._tools.plot import figures, gallery

__all__ = ["FAMILIES", "draw", "file_name", "spread"]

MARKS = "osD^vP"
BLUE, RED, GREEN, PINK, LIGHT_BLUE, ORANGE, BLACK = figures.COLOURS
DARK_ORANGE, DARK_PINK = "#B06A00", "#A8457F"  # the two that are pale in grey
OTHERS = "0.85"  # lines of the other families, behind
FONT = 10.5  # points: still readable where a page shows the picture 600 pixels wide
PANEL_HEIGHT = 2.9  # inches
TOP = 0.95  # of a panel, up to which there are names: above is its title


class Family(NamedTuple):
    """Encodings that are drawn in one panel, by the names of their results; what their lines are called there."""

    title: str
    colour: str
    members: dict[str, str]


RULES = {
    "rotary{}": "no rule",
    "rotary_linear{}": "interpolation",
    "rotary_ntk{}": "NTK-aware",
    "rotary_dynamic{}": "dynamic NTK",
    "rotary_llama3{}": "Llama 3's rule",
    "rotary_yarn{}": "YaRN",
}
FAMILIES = (
    Family(
        "Added to the input, or none",
        DARK_ORANGE,
        {
            "none": "none",
            "learned_clipped": "learned, clipped",
            "learned_resampled": "learned, resampled",
            "sinusoidal": "sinusoidal",
            "sinusoidal_linear": "sinusoidal, interp.",
        },
    ),
    Family("Rotary under a rule, untrained", BLUE, {name.format(""): label for name, label in RULES.items()}),
    Family("Rotary under a rule, fine-tuned", GREEN, {name.format("_tuned"): label for name, label in RULES.items()}),
    Family(
        "Rotary in other ways",
        DARK_PINK,
        {
            "rotary_self_extend": "Self-Extend",
            "rotary_rerope": "ReRoPE",
            "rotary_randomized": "randomised",
            "xpos": "xPos",
        },
    ),
    Family("Biases on the scores", RED, {"t5": "T5", "fire": "FIRE", "kerple": "KERPLE, logarithmic", "alibi": "ALiBi"}),
)


class Curve(NamedTuple):
    """A metric at lengths, which are multiples of the trained one."""

    factors: list[int]
    values: list[float]


def file_name(task: str) -> str:
    return f"lengths_{task}.png"


def draw(every: list[dict[str, Any]], folder: Path) -> None:
    """Draw each task of results, those of several seeds as their mean, into a file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, found in every[0]["tasks"].items():
        if found["encodings"]:
            gallery.save_small(_picture(task, every), folder / file_name(task))


def _picture(task: str, every: list[dict[str, Any]]) -> Any:
    """A panel for each family that has results, and one for the best of each."""
    first = every[0]["tasks"][task]
    metric, better = next(iter(first["metrics"].items()))
    curves = {name: curve for name in first["encodings"] if (curve := _curve(every, task, name, metric)).factors}
    families = [family for family in FAMILIES if family.members.keys() & curves.keys()]
    shown = [*families, *[_best(families, curves, better)] * (len(families) > 1)]
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    panels, _ = figures.panels(None, rows * columns, 0.5 + PANEL_HEIGHT * rows, nrows=rows, ncols=columns, sharey=True)
    limits = _limits(curves)
    for number, (axes, family) in enumerate(zip(panels, shown, strict=False)):
        colours = [one.colour for one in families] if family.title == BEST else [family.colour]
        _panel(axes, family, curves, colours, limits)
        axes.set_ylabel(f"{metric}\n({better} is better)" if number % columns == 0 else "", fontsize=FONT)
        last = number + columns >= len(shown)
        _lengths(axes, curves, every[0]["length"] if last else None)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    title = f"{first['title']}: which encodings work past the {every[0]['length']} tokens of training?"
    figures.title(panels[0], title, above=panels[0].figure)
    panels[0].set_title(shown[0].title, loc="left", fontsize=FONT + 0.5, color="black")
    return panels


BEST = "The best of each"


def _best(families: list[Family], curves: dict[str, Curve], better: str) -> Family:
    """The encoding of each family with the best mean past the trained length."""
    members = {}
    for family in families:
        sign = 1 if better == "lower" else -1
        name = min(family.members.keys() & curves.keys(), key=lambda one: (sign * np.mean(curves[one].values[1:]), one))
        members[name] = family.members[name] + ", tuned" * name.endswith("_tuned")
    return Family(BEST, BLACK, members)


def _panel(axes: Any, family: Family, curves: dict[str, Curve], colours: list[str], limits: tuple[float, float]) -> None:
    for curve in curves.values():
        axes.plot(curve.factors, curve.values, color=OTHERS, linewidth=0.8, zorder=1)
    ends = []
    for number, (name, label) in enumerate((name, label) for name, label in family.members.items() if name in curves):
        factors, values = curves[name]
        colour, mark = colours[number % len(colours)], MARKS[number % len(MARKS)]
        style = figures.STYLES[number % 4]
        axes.plot(factors, values, color=colour, linestyle=style, marker=mark, markersize=4.5, linewidth=1.6, zorder=2)
        ends.append((factors[-1], values[-1], label, colour, mark))
    axes.set_ylim(*limits)
    axes.set_title(family.title, loc="left", fontsize=FONT + 0.5)
    axes.tick_params(labelsize=FONT - 1)
    figures.lines(axes)
    _name(axes, ends)


def _limits(curves: dict[str, Curve]) -> tuple[float, float]:
    every = [value for curve in curves.values() for value in curve.values]
    margin = 0.05 * (max(every) - min(every) or 1)
    return min(every) - margin, max(every) + margin


def _lengths(axes: Any, curves: dict[str, Curve], trained: int | None) -> None:
    """Ticks at the lengths that were read; below the lowest panels in tokens, too."""
    factors = sorted({factor for curve in curves.values() for factor in curve.factors})
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor}x" + (f"\n{factor * trained}" if trained else "") for factor in factors])
    axes.minorticks_off()
    axes.set_xlim(0.93 * factors[0], 1.07 * factors[-1])
    if trained:
        axes.set_xlabel("length read: times the trained one, in tokens", fontsize=FONT - 1)


def _curve(every: list[dict[str, Any]], task: str, name: str, metric: str) -> Curve:
    """The lengths that all results have, and the mean at each."""
    lengths = [
        results["tasks"][task]["encodings"].get(name, {}).get("lengths", {}) for results in every if task in results["tasks"]
    ]
    factors = sorted(set.intersection(*({int(factor) for factor in metrics} for metrics in lengths)))
    return Curve(factors, [float(np.mean([metrics[str(factor)][metric] for metrics in lengths])) for factor in factors])


def _name(axes: Any, ends: list[tuple[int, float, str, str, str]]) -> None:
    """Put names to the right of the lines, in the order of the ends, apart from each other; a thin line leads to each."""
    low, high = axes.get_ylim()
    heights = [TOP * height for height in spread([(value - low) / (high - low) / TOP for _, value, *_ in ends], apart=1 / 8.5)]
    for (factor, value, label, colour, mark), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            (factor, value),
            (1.14, height),
            xycoords="data",
            textcoords="axes fraction",
            fontsize=FONT - 1,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 11, "shrinkB": 3},
        )
        axes.plot(1.1, height, mark, color=colour, markersize=4.5, transform=axes.transAxes, clip_on=False)


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
