"""``python -m fastpe demo``: its options, its heat map and its exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from ..._core.checks import FLOATS
from .arguments import require_folder

CHECK_FAILED = 1
DEFAULT_PLOT = "heatmap.png"


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("demo", help="encode a text in place, check the result, time it")
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="a text, or - for standard input (default: sonnets of Shakespeare)")
    add("--json", action="store_true", help="print one JSON object")
    add("--dim", type=int, default=512, metavar="D", help="width (default: 512)")
    add("--dtype", choices=FLOATS, default="float32", help="element type (default: float32)")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--plot", metavar="PATH", help=f"where to save the heat map (default: {DEFAULT_PLOT})")
    picture.add_argument("--no-plot", action="store_true", help="save no heat map")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print its report; ImportError and ValueError say in one line which argument is wrong."""
    from .. import demo, plot
    from ..progress import steps

    if not 1 <= arguments.dim <= demo.MOST_DIM:
        raise ValueError(f"demo: --dim must be between 1 and {demo.MOST_DIM}, got {arguments.dim}.")
    asked = arguments.plot is not None
    if asked:  # say now what would fail after the work
        plot.require(arguments.plot)
        require_folder("demo", "--plot", arguments.plot)
    with steps(demo.STEPS, "encoding and timing") as show:
        report = demo.run(arguments.file, arguments.dim, arguments.dtype, show)
    if not arguments.no_plot:
        report.plot, report.plot_note = _save_picture(arguments.plot if asked else DEFAULT_PLOT, arguments.dim)
    print(json.dumps(dataclasses.asdict(report)) if arguments.json else demo.table(report))
    if not report.ok:
        print("demo: the result differs from the formula by more than fastpe promises.", file=sys.stderr)
        return CHECK_FAILED
    if asked and report.plot is None:
        raise ValueError(f"demo: heat map {report.plot_note}.")
    return 0


def _save_picture(path: str, dim: int) -> tuple[str | None, str | None]:
    """Save the heat map and return its path, or None and why it was not saved."""
    from .. import plot

    try:
        plot.save(plot.heatmap(dim=dim), path)
    except ImportError:
        return None, f"not drawn: {plot.INSTALL}"
    except OSError as error:
        return None, f"not saved: {path}: {error.strerror or error}"
    return os.path.abspath(path), None
