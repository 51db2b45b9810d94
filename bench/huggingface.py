"""Hugging Face's transformers, imported from a folder that has a package of ours with the name of one of theirs."""

from __future__ import annotations

import sys
from typing import Any


def import_transformers() -> Any:
    """The library. It asks for a package called kernels, as this repository's folder is, and remembers whether there is one."""
    ours = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import transformers

        if hasattr(transformers.utils, "is_kernels_available"):
            transformers.utils.is_kernels_available()
        import transformers.models.llama.modeling_llama
    finally:
        del sys.modules["kernels"]
        if ours is not None:
            sys.modules["kernels"] = ours
    return transformers
