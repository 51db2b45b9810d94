"""``python -m fastpe model``: what the configuration of a model says of its encodings."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

from ..._core.checks import message
from .. import model_config
from ..model_config import Entry
from .recipes import brief

EPILOG = """\
A part or type of layer that cannot be read is listed with the reason, and the exit status is 2.
`fastpe.Rotary.from_config(config, part=..., layer_type=...)` is the same in Python.
"""


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser(
        "model",
        help="say what the configuration of a model says of its encodings",
        description="Read the rotary encodings of a model from its config.json: of each part and type of layer, where they differ.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="config.json, a folder that has one, or - for the standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--interleaved",
        action=argparse.BooleanOptionalAction,
        help="pairs are channels 2i and 2i + 1, or i and i + d/2, of a model that fastpe does not know",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="save a picture of the wavelengths")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the encodings, and draw their wavelengths if asked for; 2 if one cannot be read."""
    if arguments.output is not None:
        from .. import plot

        plot.require(arguments.output)
    found = model_config.entries(model_config.load(arguments.config), arguments.interleaved)
    if all(one.error for one in found) and not arguments.json:
        raise ValueError(found[0].error)
    if arguments.output is not None:
        _draw([one for one in found if one.encoding is not None], arguments.output)
    print(json.dumps({"encodings": [_plain(one) for one in found]}) if arguments.json else "\n\n".join(map(_lines, found)))
    if arguments.output is not None and not arguments.json:
        print(f"\nsaved {os.path.abspath(arguments.output)}")
    return 2 if any(one.error for one in found) else 0


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry in the types of JSON."""
    found = {name: getattr(entry, name) for name in ("model_type", "part", "layer_type", "layers", "head_dim", "error")}
    found |= {
        "trained_length": entry.trained,
        "longest_length": entry.longest,
        "encoding": None,
        "attention_factor": None,
        "softmax_scale": None,
    }
    if entry.encoding is not None:
        found |= {
            "encoding": json.loads(entry.encoding.text),
            "attention_factor": _factor(entry),
            "softmax_scale": entry.encoding.softmax_scale,
        }
    return found


def _factor(entry: Entry) -> float | None:
    assert entry.encoding is not None
    return None if entry.head_dim is None else entry.encoding.frequencies(entry.head_dim)[1]


# ---- lines -------------------------------------------------------------------------------------------------------------------


def _lines(entry: Entry) -> str:
    """What a reader wants to know, one thing a line."""
    names = [entry.part, entry.layer_type]
    if entry.layers is not None:
        names[1] = f"{entry.layer_type} ({entry.layers[0]} of {entry.layers[1]} layers)"
    title = ": ".join(filter(None, [entry.model_type or "model", ", ".join(filter(None, names))]))
    encoding = entry.encoding
    if encoding is None:
        return f"{title}\n  {'not read' if entry.error else 'encoding':<14}{entry.error or 'none, these layers do not rotate'}"
    from ..plot import figures

    rows = [("encoding", brief(encoding)), ("head", _head(entry))]
    if encoding.scaling is not None:
        rows += [("rule", figures.rule(encoding.scaling)), ("", _summary(encoding.scaling))]
    if entry.head_dim is not None:
        frequencies, factor = encoding.frequencies(entry.head_dim)
        turning = frequencies[frequencies > 0]
        still = len(frequencies) - len(turning)
        longest = f"{2 * math.pi / turning.max():,.4g} to {2 * math.pi / turning.min():,.6g} positions"
        rows.append(("wavelengths", longest + (f", {still} pairs stand still" if still else "")))
        rows.append(("attention", f"factor {factor:.6g}, softmax scale {encoding.softmax_scale:.6g}"))
    if entry.trained is None and entry.longest is not None:
        rows.append(("length", f"the configuration allows {entry.longest:,} positions"))
    if entry.trained is not None:
        further = "" if entry.longest in (None, entry.trained) else f"; the configuration allows {entry.longest:,}"
        rows.append(("trained", f"{entry.trained:,} positions{further}"))
    return "\n".join([title, *(f"  {label:<14}{text}" for label, text in rows)])


def _head(entry: Entry) -> str:
    assert entry.encoding is not None
    if entry.head_dim is None:
        return "of a width that the configuration does not say"
    rotating = entry.encoding.width(entry.head_dim)
    which = "all rotate" if rotating == entry.head_dim else f"{rotating} rotate"
    pairs = "2i and 2i + 1" if entry.encoding.interleaved else f"i and i + {rotating // 2}"
    return f"{entry.head_dim} channels, {which}, in pairs {pairs}"


def _summary(rule: Any) -> str:
    """The first sentence of a rule's documentation."""
    text = " ".join((type(rule).__doc__ or "").partition("\n\n")[0].split()).replace("``", "")
    return text.rstrip(".")


# ---- the picture -------------------------------------------------------------------------------------------------------------


def _draw(found: list[Entry], path: str) -> None:
    """Wavelengths of each encoding, one beside the other."""
    from .. import plot
    from ..plot import figures

    drawn = [one for one in found if one.head_dim is not None]
    if not drawn:
        raise ValueError(
            message(model_config.FUNCTION, "-o needs the width of a head", "none", "Add head_dim to the configuration.")
        )
    count = len(drawn)
    width = max(figures.WIDTH, 5.0 * count)
    options: dict[str, Any] = {"nrows": 2, "ncols": count, "sharex": "col", "height_ratios": (1.7, 1)}
    axes, _ = figures.panels(None, 2 * count, 5.4, width, **options)
    for i, one in enumerate(drawn):
        pair = (axes[i], axes[count + i])
        length = one.longest if one.longest != one.trained else None
        plot.wavelengths(one.encoding, length, one.head_dim, trained=one.trained, axes=pair)
        assert one.encoding is not None
        what = ", ".join(filter(None, [one.part, one.layer_type])) or one.model_type or "model"
        pair[0].set_title(f"{what}: base {figures.number(one.encoding.base)}, D = {one.head_dim:,}", loc="left", fontsize=11)
        figures.legend(pair[0], own=False)
    plot.save(axes, path)
