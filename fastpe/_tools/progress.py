"""A progress bar without dependencies."""

from __future__ import annotations

from typing import TextIO


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
