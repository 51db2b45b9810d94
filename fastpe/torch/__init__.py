"""fastpe for PyTorch: differentiable functions, modules, and models of Hugging Face that rotate with fastpe.

``fastpe.add_encoding`` and the other verbs take tensors as they take arrays; this package is for training and for models.
"""

from __future__ import annotations

import torch

from .._core import text
from . import functional
from ._onnx import onnx_translations
from .modules import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding, TokenEmbedding
from .transformers import Patched, patch_transformers

__all__ = [
    "LearnedEncoding",
    "Patched",
    "RotaryEmbedding",
    "SinusoidalEncoding",
    "TokenEmbedding",
    "functional",
    "onnx_translations",
    "patch_transformers",
]

torch.serialization.add_safe_globals(
    text.own_kinds()
)  # torch.load(weights_only=True) reads encodings, which are made with every check
