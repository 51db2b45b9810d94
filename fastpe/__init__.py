"""fastpe: positional encodings at memory speed, in place, for whatever array the caller has."""

from __future__ import annotations

import os as _os

_here = _os.path.dirname(_os.path.abspath(__file__))
if not _os.path.isdir(_os.path.join(_here, "kernels")) and _os.path.exists(
    _os.path.join(_here, "..", "kernels", "__init__.py")
):
    # Imported from a checkout: the kernels stand beside this folder.
    __path__.append(_os.path.dirname(_here))

from . import scaling  # noqa: E402
from .api import add_encoding, array_module, encode, warmup  # noqa: E402
from .backends.pool import get_num_threads, set_num_threads  # noqa: E402
from .encodings import Rotary, Sinusoidal  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Rotary",
    "Sinusoidal",
    "add_encoding",
    "array_module",
    "encode",
    "get_num_threads",
    "scaling",
    "set_num_threads",
    "warmup",
]
