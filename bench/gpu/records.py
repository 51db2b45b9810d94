"""Findings: a JSON object a line, written as soon as it is known."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from typing import Any

STATUSES = ("ok", "fail", "skip", "info")

_stage = ""


class Skipped(Exception):
    """A check that cannot be made here, and why."""


def begin(stage: str) -> None:
    """Name the stage of the records that follow."""
    global _stage
    _stage = stage


def say(check: str, status: str, **more: Any) -> None:
    """Write one record."""
    print(json.dumps({"stage": _stage, "check": check, "status": status, **more}, default=str), flush=True)


@contextlib.contextmanager
def checking(check: str, **more: Any) -> Iterator[dict[str, Any]]:
    """Record how the body ends, with what it found. A failure stops nothing that follows."""
    found: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        yield found
    except Skipped as reason:
        say(check, "skip", reason=str(reason), **more)
    except Exception as error:
        where = traceback.format_exc().strip().splitlines()[-4:-1]
        say(check, "fail", error=f"{type(error).__name__}: {error}"[:600], where=where, **{**more, **found})
    else:
        say(check, "ok", seconds=round(time.perf_counter() - start, 3), **{**more, **found})
