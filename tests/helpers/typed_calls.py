"""Calls whose types a checker must tell: what goes in comes out. Checked by mypy in test_types.py; pyright agrees."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import assert_type

import fastpe
import fastpe.torch

x: npt.NDArray[np.float32] = np.zeros((2, 3, 4), np.float32)
t = torch.zeros(2, 3, 4)
functional = fastpe.torch.functional

assert_type(fastpe.add_encoding(x), npt.NDArray[np.float32])
assert_type(fastpe.add_encoding(t), torch.Tensor)
assert_type(fastpe.apply_rotary(x), npt.NDArray[np.float32])
assert_type(fastpe.apply_rotary(t, t), tuple[torch.Tensor, torch.Tensor])
assert_type(fastpe.apply_rotary(None, t), torch.Tensor)
assert_type(fastpe.rerotate(t, 3), torch.Tensor)
assert_type(fastpe.embed([[1, 2]], t[0]), torch.Tensor)
assert_type(fastpe.add_bias(x, fastpe.ALiBi(2)), npt.NDArray[np.float32])
assert_type(fastpe.resample(t[0], 5), torch.Tensor)
assert_type(fastpe.convert_layout(x, "half", "interleaved", 4), npt.NDArray[np.float32])
assert_type(fastpe.encode([0, 1.5], 8), npt.NDArray[Any])
assert_type(fastpe.encode(0.25, 8), npt.NDArray[Any])
assert_type(fastpe.encode(t[0, 0], 8), torch.Tensor)
assert_type(fastpe.encode([1, 2], 8, like=t), torch.Tensor)
assert_type(fastpe.encode([1, 2], 8, out=x), npt.NDArray[np.float32])
assert_type(functional.add_encoding(t, offset=3), torch.Tensor)
assert_type(functional.apply_rotary(t, t, mask=None), tuple[torch.Tensor, torch.Tensor])
assert_type(functional.apply_rotary(t), torch.Tensor)
assert_type(functional.embed([1], t[0], "sinusoidal"), torch.Tensor)
