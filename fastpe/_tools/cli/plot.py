"""``python -m fastpe plot``: its options, and the picture they ask for. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from typing import Any

KINDS = {
    "heatmap": "an encoding by position and channel",
    "contour": "the same as contours",
    "similarity": "how alike positions are, and how that decays with distance",
    "wavelengths": "what scaling rules do to wavelengths, beside the trained and the target length",
    "error": "errors of float32 and bfloat16 tables and of fastpe by position",
    "bias": "what a bias adds to scores, by distance and head",
    "all": "the pictures of the documentation, into a folder",
}
# Which options a picture takes beside -o.
OPTIONS: dict[str, tuple[str, ...]] = {
    "heatmap": ("encoding", "recipe", "scaling", "length", "dim", "offset"),
    "contour": ("encoding", "recipe", "scaling", "length", "dim"),
    "similarity": ("encoding", "recipe", "scaling", "length", "dim"),
    "wavelengths": ("encoding", "recipe", "scaling", "length", "dim", "trained"),
    "error": ("encoding", "recipe", "scaling", "length", "dim"),
    "bias": ("encoding", "recipe", "length"),
    "all": (),
}
EPILOG = """\
Encodings and rules are names with fields:
  --encoding rotary:base=500000,interleaved=true --scaling yarn:factor=4,original_max_position=8192
`wavelengths` takes several --scaling, and compares them.
"""


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    described = "\n".join(f"  {kind:<12} {what}" for kind, what in KINDS.items())
    plot = commands.add_parser(
        "plot",
        help="save a picture of an encoding",
        description=f"Save a picture:\n{described}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plot.add_argument("kind", choices=KINDS, metavar="PICTURE", help=", ".join(KINDS))
    which = plot.add_mutually_exclusive_group()
    which.add_argument("--encoding", metavar="NAME[:FIELD=VALUE,...]", help="such as sinusoidal, rotary, alibi:heads=12")
    which.add_argument("--recipe", metavar="NAME", help="what a published model uses, fastpe.recipe(NAME)")
    plot.add_argument("--scaling", action="append", metavar="NAME[:FIELD=VALUE,...]", help="a rule of fastpe.scaling")
    plot.add_argument("--length", type=int, metavar="N", help="positions, the greatest distance, or the context to reach")
    plot.add_argument("--trained", type=int, metavar="N", help="wavelengths: context of the training (default: the rule's)")
    plot.add_argument("--dim", type=int, metavar="D", help="width (default: 128; contour: 64)")
    plot.add_argument("--offset", type=int, metavar="P", help="heatmap: the first position (default: 0)")
    plot.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the file, whose ending chooses the format (default: PICTURE.png); all: the folder",
    )
    plot.add_argument("--json", action="store_true", help="print one JSON object, with the files that were saved")
    return plot


def run(arguments: argparse.Namespace) -> int:
    """Draw and save; ImportError, TypeError, ValueError and OSError say in one line which argument is wrong."""
    from .. import plot
    from ..plot import gallery

    kind = arguments.kind
    options = ("encoding", "recipe", "scaling", "length", "trained", "dim", "offset")
    given = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    refused = [name for name in given if name not in OPTIONS[kind]]
    if refused:
        known = ", ".join(f"--{name}" for name in OPTIONS[kind]) or "nothing but -o"
        raise ValueError(f"plot: {kind} takes {known}, got --{refused[0]}.")
    if kind == "all":
        saved = []
        for drawn in gallery.draw(arguments.output or "pictures"):
            saved.append(os.path.abspath(drawn))
            if not arguments.json:
                print(f"saved {saved[-1]}")
        if arguments.json:
            print(json.dumps({"saved": saved}))
        return 0
    path = arguments.output or f"{kind}.png"
    plot.require(path)
    chosen = _chosen(kind, given)
    rest = {name: value for name, value in given.items() if name not in ("encoding", "recipe", "scaling")}
    plot.save(getattr(plot, kind)(chosen, **rest), path)
    print(json.dumps({"saved": [os.path.abspath(path)]}) if arguments.json else f"saved {os.path.abspath(path)}")
    return 0


def _chosen(kind: str, given: dict[str, Any]) -> Any:
    """The encoding that was asked for, with the rule; None for the picture's own; several for wavelengths."""
    from ..plot import named

    chosen = named.recipe(given["recipe"]) if "recipe" in given else None
    if "encoding" in given:
        chosen = named.encoding(given["encoding"])
    rules = [named.rule(text) for text in given.get("scaling", ())]
    if not rules:
        return chosen
    if chosen is None:
        chosen = named.encoding("rotary")
    if not hasattr(chosen, "scaling"):
        raise ValueError(
            f"plot: --scaling is for encodings with frequencies (sinusoidal, rotary), got {type(chosen).__name__}."
        )
    if len(rules) > 1 and kind != "wavelengths":
        raise ValueError(f"plot: {kind} takes one --scaling, got {len(rules)}. wavelengths compares several.")
    with_rules = [replace(chosen, scaling=rule) for rule in rules]
    return with_rules if kind == "wavelengths" else with_rules[0]
