"""What tests of the Keras layers have in common: the backend that runs, and comparisons with what NumPy's verbs make."""

from __future__ import annotations

from typing import Any

import cases
import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.backend.backend()
HAS_KERNELS = BACKEND in ("torch", "jax")
quiet = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, of tensors
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras trains nothing with NumPy")


def host(x: Any) -> np.ndarray:
    """NumPy's array of a tensor; of bfloat16, too."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return (
        ops.convert_to_numpy(ops.cast(x, "float32")).astype(cases.DTYPES[dtype])
        if dtype == "bfloat16"
        else ops.convert_to_numpy(x)
    )


def check(got: Any, expected: np.ndarray) -> None:
    """The bits of NumPy's verbs where kernels run, else their numbers: both err by what is allowed once."""
    got = host(got)
    if HAS_KERNELS:
        cases.assert_same_bits(got, expected)
    else:
        name = str(expected.dtype)
        hidden = np.isinf(expected)
        assert (np.isinf(got) == hidden).all()
        wide = np.where(hidden, 0, expected).astype(np.float64)
        cases.assert_close(np.where(hidden, 0, got).astype(got.dtype), wide, name, amplitude=2.0)
