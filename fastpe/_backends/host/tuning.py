"""How work on the CPU is cut to fit the processor: by its caches, or as ``FASTPE_TUNING`` says. No result depends on it.

``FASTPE_TUNING="block=32K, ahead=0"`` gives sizes in bytes, K or M: to measure others, and where the system does not say what caches
there are. `docs/internals/kernels.md` has what was measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from ..._arrays import errors

CPU = "/sys/devices/system/cpu/cpu0/cache"
UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


class Caches(NamedTuple):
    """Bytes of a core's data caches and of the last level; the defaults where the system does not say."""

    first: int = 32 << 10
    second: int = 512 << 10
    last: int = 32 << 20


class Tuning(NamedTuple):
    """Bytes, but for ``near``."""

    ahead: int  # from the x that is used to the x that is prefetched
    block: int  # of encoding made at a time where sequences or heads share it
    shared: int  # the same for x that is converted, which hides the way to the second level
    angles: int  # of cosines and sines made at a time
    summed: int  # of encoding made at a time for a sum of rows, where nothing shares it
    streamed: int  # of encoding made at a time before it is streamed out, where nothing shares it
    chunk: int  # of x that a thread claims at a time
    largest_chunk: int  # the same where sequences share their positions, and a chunk takes many of them
    helper: int  # of x for which a helper is called
    wake: int  # of x from which helpers that sleep are woken, too: they come too late for less
    stream_above: int  # an `out` larger than this is written past the caches
    near: int  # whether x is prefetched into the first level (1) or the second (0)


def of(caches: Caches) -> Tuning:
    """What fits caches. What does not depend on their sizes depends on how long memory and threads take to come.

    x goes to the first level where that holds 12 KB of it beside the rotations of eight rows of 1024 columns, 36 KB. Smaller ones lose the
    rotations to it: one thread adds to 512 MB of float32 rows in 39 ms with x in the first level, 25 in the second, 44 where it is not
    prefetched (AMD EPYC, Zen 4, 32 KB), but in 22 and 29 on Zen 5 (48 KB); rows that lie in the caches gain a tenth there.
    """
    first, second = min(caches.first, 1 << 17), min(caches.second, 1 << 20)
    return Tuning(
        ahead=12 << 10,
        block=first // 2,
        shared=second // 16,
        angles=second // 16,
        summed=first,
        streamed=first // 4,
        chunk=1 << 18,
        largest_chunk=1 << 21,
        helper=3 << 18,
        wake=6 << 20,
        stream_above=caches.last,
        near=int(first >= 48 << 10),
    )


@functools.lru_cache(maxsize=1)
def here() -> Tuning:
    """Of this processor and this process's environment."""
    return overridden(of(caches()), os.environ.get("FASTPE_TUNING", ""))


def overridden(tuning: Tuning, text: str) -> Tuning:
    """With the sizes of a text; what is none of them is ignored, with a warning."""
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = (piece.strip() for piece in part.partition("="))
        nbytes = _bytes(size)
        if name not in tuning._fields or nbytes is None or _is_wrong(name, nbytes):
            rule = f"the environment's FASTPE_TUNING must give sizes like 16K to {', '.join(tuning._fields[:-1])}, and 0 or 1 to near"
            warnings.warn(errors.message("fastpe", rule, repr(part), "It is ignored."), RuntimeWarning, stacklevel=2)
        else:
            tuning = tuning._replace(**{name: nbytes})
    return tuning


def _is_wrong(name: str, nbytes: int) -> bool:
    return nbytes > 1 if name == "near" else nbytes == 0 and name in ("chunk", "largest_chunk", "helper")


def caches(folder: str = CPU) -> Caches:
    """The caches of the first core, as Linux describes them."""
    levels = {}
    with contextlib.suppress(OSError, ValueError):
        for index in Path(folder).glob("index*"):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                levels[int(level)] = _bytes(size)
    usual = Caches()
    first, second = levels.get(1) or usual.first, levels.get(2) or usual.second
    return Caches(first, second, max((size for size in levels.values() if size), default=usual.last))


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,12})([KMG]?)", text)
    return int(found[1]) << UNITS[found[2]] if found else None
