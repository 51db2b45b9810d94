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

from . import verbs  # noqa: E402
from .encodings import Grid, Learned, Rotary, Sinusoidal  # noqa: E402
from .verbs import *  # noqa: E402, F403

__version__ = "0.1.0"

__all__ = [
    "FIRE",
    "ALiBi",
    "Fourier",
    "Grid",
    "Kerple",
    "Learned",
    "LogBuckets",
    "RelativeTable",
    "Rotary",
    "Sandwich",
    "Sinusoidal",
    "T5Bias",
    "positions",
    "recipe",
    "recipes",
    "scaling",
]
__all__ += verbs.__all__

if _TYPE_CHECKING:
    from . import positions, scaling
    from .encodings.bias import ALiBi, Kerple, Sandwich
    from .encodings.buckets import LogBuckets, RelativeTable, T5Bias
    from .encodings.fire import FIRE
    from .encodings.fourier import Fourier
    from .encodings.recipes import recipe, recipes
else:
    _LATER = {name: name for name in ("dask", "jax", "keras", "plot", "positions", "scaling", "torch")}
    _LATER |= {"FIRE": "encodings.fire", "Fourier": "encodings.fourier"}
    _LATER |= dict.fromkeys(("ALiBi", "Kerple", "Sandwich"), "encodings.bias")
    _LATER |= dict.fromkeys(("LogBuckets", "RelativeTable", "T5Bias"), "encodings.buckets")
    _LATER |= dict.fromkeys(("recipe", "recipes"), "encodings.recipes")

    def __getattr__(name: str) -> object:
        """Load rarely used names lazily: they would make importing fastpe a third slower."""
        if name not in _LATER:
            raise AttributeError(f"module 'fastpe' has no attribute {name!r}")
        import importlib

        try:
            module = importlib.import_module(f"fastpe.{_LATER[name]}")
        except ImportError as error:  # an AttributeError leaves hasattr(), help() and inspect as they should be
            raise AttributeError(f"fastpe.{name} cannot be imported ({error}): pip install 'fastpe[{name}]'") from error
        found = globals()[name] = module if _LATER[name] == name else getattr(module, name)
        return found

    def __dir__() -> list[str]:
        """List what users may use, loaded or not."""
        return sorted([*__all__, "__version__", "dask", "encodings", "jax", "keras", "plot", "torch", "verbs"])
