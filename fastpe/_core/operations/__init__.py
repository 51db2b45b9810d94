"""The operations that verbs consist of: frozen values, the same for every library."""

from __future__ import annotations

from .. import text
from .add import Add, Encode, Scale
from .add_bias import AddBias, Between
from .base import Spec
from .embed import Embed, Scatter
from .resample import Resample
from .rotate import Rerotate, Rotate

__all__ = ["Add", "AddBias", "Between", "Embed", "Encode", "Rerotate", "Resample", "Rotate", "Scale", "Scatter", "Spec"]

for _kind in (Add, AddBias, Embed, Encode, Rerotate, Resample, Rotate):  # those that graphs hold
    text.register(_kind)
