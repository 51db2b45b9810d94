"""The parser of ``python -m fastpe``, and the exit code of a command."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from ... import __version__
from . import bench, cache, demo, info, model, plot, recipes, warmup

BAD_ARGUMENT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (a check failed), 2 (a bad argument), 130 (Ctrl-C)."""
    try:
        arguments = _parser().parse_args(argv)
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse has printed help or an error
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Send what Python still holds for it elsewhere, or flushing at exit complains.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


class _Parser(argparse.ArgumentParser):
    """Names the nearest choice for one that is wrong; commands have parsers of this class, too."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), 1, 0.5) if wrong else []
        super().error(message + "".join(f". Did you mean {name!r}?" for name in near))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastpe", description="Positional encodings at memory speed, in place.")
    parser.add_argument("--version", action="version", version=f"fastpe {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, demo, plot, bench, recipes, model, warmup, cache):
        command.add_parser(commands).set_defaults(command=command.run)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Run a command; an error in its arguments becomes one line."""
    try:
        code: int = arguments.command(arguments)
        return code
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(f"fastpe: {error.filename!r} cannot be used: {error.strerror or error}.")
    except (ImportError, TypeError, ValueError) as error:
        return _refuse(error)


def _refuse(text: object) -> int:
    print(" ".join(str(text).split()), file=sys.stderr)
    return BAD_ARGUMENT
