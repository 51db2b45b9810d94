"""The picture of the table: how many times fastpe's time others take, a row of panels for each machine that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastpe._tools.machine import size
from fastpe._tools.plot import figures, gallery

__all__ = ["draw", "panels"]

Entry = dict[str, Any]
LOOKS = {  # of a contender: its name, colour and mark
    "numpy_cached": ("NumPy, table at hand", figures.COLOURS[1], "s"),
    "torch_cached": ("PyTorch, table at hand", figures.COLOURS[0], "^"),
    "numpy_scratch_f64": ("NumPy, table built", figures.COLOURS[2], "D"),
}
DTYPES = ("float32", "float16")
ROW_HEIGHT, AROUND = 0.34, 1.6  # inches a shape, and of a machine's title and axis


def draw(machines: list[tuple[str, list[Entry]]], path: Path) -> None:
    """Draw machines, each a name and the entries of its run, into a file."""
    gallery.save_small(panels(machines), path)


def panels(machines: list[tuple[str, list[Entry]]]) -> Any:
    """The axes of a figure of its own: a row a machine, a column an element type."""
    dtypes = [one for one in DTYPES if all(any(entry["dtype"] == one for entry in entries) for _, entries in machines)]
    rows = max(len({tuple(entry["shape"]) for entry in entries}) for _, entries in machines)
    height = (AROUND + ROW_HEIGHT * rows) * len(machines)
    drawn, _ = figures.panels(None, len(dtypes) * len(machines), height, nrows=len(machines), ncols=len(dtypes), sharex=True)
    figures.title(drawn[0], "How many times as long as fastpe's add_encoding?", above=drawn[0].figure)
    every = [(name, entries, dtype) for name, entries in machines for dtype in dtypes]
    for axes, (name, entries, dtype) in zip(drawn, every, strict=True):
        _panel(axes, [entry for entry in entries if entry["dtype"] == dtype and entry["device"] == "cpu"])
        axes.set_title(f"{dtype}, {name}" if dtype == dtypes[0] else dtype, loc="left", fontsize=10, color="black")
    figures.legend(drawn[0], own=True)
    return drawn


def _panel(axes: Any, entries: list[Entry]) -> None:
    ours = {tuple(entry["shape"]): entry for entry in entries if entry["contender"] == "fastpe"}
    places = {shape: place for place, shape in enumerate(ours)}
    axes.axvline(1, color="black", linewidth=1)
    for contender, (label, colour, mark) in LOOKS.items():
        found = [(entry, ours[tuple(entry["shape"])]) for entry in entries if entry["contender"] == contender]
        ratios = [theirs["seconds"] / own["seconds"] for theirs, own in found]
        heights = [places[tuple(own["shape"])] for _, own in found]
        axes.plot(ratios, heights, mark, color=colour, markersize=6, label=label)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ours)), [size(shape, entry["array_bytes"]) for shape, entry in ours.items()], fontsize=8.5)
    axes.set_ylim(len(ours) - 0.5, -0.5)
    axes.set_xlabel("times fastpe's time", fontsize=9)
    axes.xaxis.set_major_formatter("{x:g}x")
    figures.lines(axes)
