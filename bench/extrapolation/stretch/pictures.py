"""Two pictures: the loss by position, and which pass keys are found by length and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastpe._tools.plot import figures, gallery

from ..pictures import BLACK, BLUE, GREEN, LIGHT_BLUE, ORANGE, PINK, RED, spread
from .rules import RULES

__all__ = ["ANSWERS", "LOSSES", "draw"]

LOSSES, ANSWERS = "stretch_losses.png", "stretch_keys.png"
STYLES = {
    "sliding": ("0.45", "", ":"),
    "none": (BLACK, "x", "-"),
    "linear": (PINK, "s", "--"),
    "ntk": (ORANGE, "^", "--"),
    "dynamic_ntk": (GREEN, "D", "-"),
    "llama3": (LIGHT_BLUE, "v", "-"),
    "yarn": (BLUE, "o", "-"),
    "self_extend": (RED, "P", "-."),
    "rerope": (RED, "<", ":"),
}
DEPTHS = 8
TICKS = (-0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8)
SMOOTHED = 2  # blocks that one point is the mean of
Results = dict[str, Any]


def draw(results: Results, folder: Path) -> None:
    """Draw both into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for panels, name in ((_losses(results), LOSSES), (_answers(results), ANSWERS)):
        if panels is not None:
            gallery.save_small(panels, folder / name)


# ---- loss by position --------------------------------------------------------------------------------------------------------


def _losses(results: Results) -> Any:
    factors = sorted({entry["factor"] for entry in results["readings"].values()})
    panels, _ = figures.panels(None, len(factors), 4.8 * len(factors), nrows=len(factors))
    for axes, factor in zip(panels, factors, strict=True):
        _curves(axes, results, factor)
    return panels


def _curves(axes: Any, results: Results, factor: int) -> None:
    trained, found = results["trained"], _chosen(results, factor)
    length = factor * trained
    base = found.get("sliding", {}).get("blocks")
    ends = []
    for name, entry in found.items():
        if name == "sliding":
            continue
        values = _smooth([block["loss"] for block in entry["blocks"]][: length // entry["block"]])
        if base is not None:
            values = values - _smooth([block["loss"] for block in base])[: len(values)]
        colour, mark, line = STYLES[name]
        at = (np.arange(len(values)) + 0.5) * SMOOTHED * entry["block"]
        axes.plot(at, values, line, color=colour, marker=mark, markersize=5, linewidth=1.4)
        ends.append((values[-1], entry["label"], colour, mark))
    axes.axvline(trained, color=figures.REFERENCE, linewidth=1, linestyle="--")
    axes.annotate(
        "trained to here",
        (trained, 1),
        (4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=9,
        color="0.3",
        va="top",
    )
    if base is not None:
        axes.axhline(0, color=figures.REFERENCE, linewidth=1)
        axes.set_yscale("symlog", linthresh=0.5, linscale=1.5)
        axes.set_yticks(TICKS)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlim(0, length)
    axes.set_xlabel("position in the text, in tokens")
    axes.set_ylabel("nats per token above the window" if base is not None else "nats per token")
    figures.integers(axes.xaxis)
    figures.lines(axes)
    figures.title(axes, f"Read to {factor}x the trained length: which rule loses least?")
    _name(axes, ends)


def _chosen(results: Results, factor: int) -> dict[str, Any]:
    """The reading of each rule for a factor: its own, or the longer one of a rule that is the same for all."""
    found = {}
    for name, rule in RULES.items():
        factors = [factor] if rule.own else sorted({entry["factor"] for entry in results["readings"].values()})
        for other in factors:
            if other >= factor and (entry := results["readings"].get(f"{name}-{other}x")) is not None:
                found[name] = entry
                break
    return found


def _smooth(values: list[float]) -> Any:
    return np.array(values).reshape(-1, SMOOTHED).mean(1)


def _name(axes: Any, ends: list[tuple[float, str, str, str]]) -> None:
    """Names to the right of the lines, in the order of their ends."""
    axes.autoscale(False)
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = spread([float(to_axes.transform((0, value))[1]) for value, *_ in ends], apart=1 / 16)
    for (_, label, colour, mark), height in zip(ends, heights, strict=True):
        axes.plot(1.03, height, mark, color=colour, markersize=5, transform=axes.transAxes, clip_on=False)
        axes.annotate(
            label, (1.05, height), xycoords="axes fraction", color=colour, fontsize=9, va="center", annotation_clip=False
        )


# ---- pass keys ---------------------------------------------------------------------------------------------------------------


def _answers(results: Results) -> Any:
    """One map a rule, of its longest reading; None where no text has a key at each depth."""
    longest = {entry["label"]: _shares(entry) for _, entry in sorted(results["readings"].items())}
    found = {rule.label: shares for rule in RULES.values() if (shares := longest.get(rule.label))}
    if not found:
        return None
    lengths = sorted(set().union(*found.values()))
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    panels, _ = figures.panels(None, rows * columns, 1.2 + 2.4 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True)
    for axes, (label, shares) in zip(panels, found.items(), strict=False):
        image = _map(axes, [shares.get(length, [np.nan] * DEPTHS) for length in lengths])
        axes.set_title(label, loc="left", fontsize=10)
    panels[0].set_xticks(range(len(lengths)), [f"{length / 1024:g}k" for length in lengths])
    panels[0].set_yticks([-0.5, DEPTHS / 2 - 0.5, DEPTHS - 0.5], ["start", "half", "end"])
    for index, axes in enumerate(panels):
        axes.tick_params(labelsize=8, labelbottom=index + columns >= len(found))
        axes.set_axis_on() if index < len(found) else axes.set_axis_off()
        axes.set_ylabel("depth of the key" if index % columns == 0 else "", fontsize=9)
        axes.set_xlabel("tokens read" if index + columns >= len(found) else "", fontsize=9)
    figure = panels[0].figure
    figure.suptitle("How many digits of a pass key does the model find?", fontsize=12, x=0.015, ha="left", fontweight="bold")
    colorbar = figure.colorbar(image, ax=panels, format="{x:.0%}", ticks=[0, 0.25, 0.5, 0.75, 1], pad=0.02, aspect=30)
    unread = any(shares.keys() != set(lengths) for shares in found.values())
    colorbar.set_label(f"digits right (a guess: 10%{'; grey: not read' * unread})")
    return panels


def _shares(entry: dict[str, Any]) -> dict[int, list[float]]:
    """For each length at which keys lie at all depths: the share of digits that are right, from the start of the text to its end."""
    found = {}
    for length in sorted({answer["length"] for answer in entry["answers"]}):
        there = [answer for answer in entry["answers"] if answer["length"] == length]
        depths = [[one["right"] for one in there if one["begin"] * DEPTHS // length == row] for row in range(DEPTHS)]
        if all(depths):
            found[length] = [float(np.mean(row)) for row in depths]
    return found


def _map(axes: Any, shares: list[list[float]]) -> Any:
    colours = figures.colour_map()
    return axes.imshow(np.transpose(shares), cmap=colours, vmin=0, vmax=1, aspect="auto")
