"""Pictures of encodings, for notebooks and papers; needs matplotlib: ``pip install 'fastpe[plot]'``."""

from __future__ import annotations

from ._tools.plot import *  # noqa: F403
from ._tools.plot import __all__ as __all__
from ._tools.plot import named as named
