"""Progress bars on a terminal: tqdm's where that is installed, or one without dependencies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

BAR = "{percentage:3.0f}% {bar:24} {desc}"


class Progress:
    """A bar on a terminal; writes nothing elsewhere."""

    WIDTH = 24

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None

    def show(self, fraction: float, label: str) -> None:
        if self._stream is not None:
            full = round(self.WIDTH * fraction)
            self._stream.write(f"\r[{'#' * full}{'.' * (self.WIDTH - full)}] {fraction:4.0%}  {label}\x1b[K")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each step as it begins."""
    begun = 0
    try:
        from tqdm import tqdm
    except ImportError:

        def show(what: str) -> None:
            nonlocal begun
            bar.show(begun / total, what)
            begun += 1

        with Progress(sys.stderr) as bar:
            yield show
        return
    with tqdm(total=total, disable=None, leave=False, file=sys.stderr, bar_format=BAR) as shown:

        def begin(what: str) -> None:
            nonlocal begun
            shown.n = begun  # what is done; the one that begins is not
            shown.set_description_str(what)
            begun += 1

        yield begin
