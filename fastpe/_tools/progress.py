"""Progress on a terminal: a bar of tqdm, or one line where that is not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BAR = "{percentage:3.0f}% {bar:24} {desc}"


@contextmanager
def steps(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each step as it begins; writes nothing where there is no terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        if sys.stderr is not None and sys.stderr.isatty():
            print(f"{what}, {total} steps (pip install tqdm shows them)", file=sys.stderr)
        yield lambda step: None
        return
    begun = 0
    with _quiet(), tqdm(total=total, disable=None, leave=False, file=sys.stderr, bar_format=BAR) as bar:

        def begin(step: str) -> None:
            nonlocal begun
            bar.n = begun  # what is done; the one that begins is not
            bar.set_description_str(step)
            begun += 1

        yield begin


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the line that tells of the first compilation from being written into the bar's, which says what goes on."""
    before = os.environ.get("FASTPE_QUIET")
    os.environ["FASTPE_QUIET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTPE_QUIET"]
        else:
            os.environ["FASTPE_QUIET"] = before
