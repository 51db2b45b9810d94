"""The verbs for arrays of JAX, which return new arrays: under ``jit``, with gradients, and in programs that were exported.

``fastpe.add_encoding(x)`` and the others do the same where ``x`` is an array of JAX. Import this module before a program runs that another
process exported: it makes XLA's call known.
"""

from __future__ import annotations

from ..verbs import add_bias, add_encoding, apply_rotary, embed, encode, rerotate
from . import _partition as _partition
from . import _rules as _rules
from . import _run as _run

__all__ = ["add_bias", "add_encoding", "apply_rotary", "embed", "encode", "rerotate"]
