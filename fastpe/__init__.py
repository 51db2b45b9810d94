"""fastpe: positional encodings at memory speed, in place, for whatever array the caller has."""

from __future__ import annotations

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING

_here = _os.path.dirname(_os.path.abspath(__file__))
if not _os.path.isdir(_os.path.join(_here, "kernels")) and _os.path.exists(
    _os.path.join(_here, "..", "kernels", "__init__.py")
):
    # Imported from a checkout: the kernels stand beside this folder.
    __path__.append(_os.path.dirname(_here))

from .api import add_encoding, array_module, encode, warmup  # noqa: E402
from .backends.pool import get_num_threads, set_num_threads  # noqa: E402
from .embedding import embed, resample  # noqa: E402
from .encodings import Learned, Rotary, Sinusoidal  # noqa: E402
from .rotations import apply_rotary, convert_layout, rerotate  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Learned",
    "Rotary",
    "Sinusoidal",
    "add_encoding",
    "apply_rotary",
    "array_module",
    "convert_layout",
    "embed",
    "encode",
    "get_num_threads",
    "rerotate",
    "resample",
    "scaling",
    "set_num_threads",
    "warmup",
]

if _TYPE_CHECKING:
    from . import scaling
else:

    def __getattr__(name: str) -> object:
        """Import ``fastpe.scaling`` when it is first asked for: it would be a quarter of what importing fastpe takes."""
        if name != "scaling":
            raise AttributeError(f"module 'fastpe' has no attribute {name!r}")
        import importlib

        return importlib.import_module("fastpe.scaling")
