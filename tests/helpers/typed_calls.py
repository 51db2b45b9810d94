"""Calls whose types a checker must tell: what goes in comes out. Checked by mypy in test_types.py; pyright agrees."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from typing_extensions import assert_type

import fastpe
import fastpe.plot
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

# ---- arguments of every kind ----

fastpe.add_encoding(x, offset=np.array([1, 2]), mask=[[True, False, True]] * 2)
fastpe.add_encoding(x, fastpe.Sinusoidal(position_scale=0.5), positions=np.linspace(0, 1, 3), out=np.empty_like(x))
fastpe.add_encoding(t, positions=[0, 0.5, 1], input_scale=2.0, seq_len=9, validate=True)
fastpe.add_encoding(x[:1], cu_seqlens=[0, 1, 3], seq_axis=-2)
fastpe.add_encoding(x, offset=np.int64(3))
fastpe.apply_rotary(x, x, fastpe.Rotary(scaling=fastpe.scaling.YaRN(4.0, 4096)), offset=7, inverse=True, head_dim=4)
fastpe.embed(np.zeros((2, 3), int), x[0], fastpe.Learned(x[0]), token_types=([[0, 1, 0]] * 2, x[0]), dtype="float16")
fastpe.embed([[1]], np.zeros((3, 4), np.int8), row_scale=np.ones(3), dtype=np.float32, padding_idx=1)
fastpe.add_bias(t, fastpe.Sandwich(3), causal=True, q_offset=[0, 1], input_scale=0.5)
fastpe.rerotate(x, -5.0, source=fastpe.Rotary(), target=fastpe.Rotary(500_000.0), seq_len=(5, 9))
fastpe.resample(x, (5, 5), grid=(1, 3), method="bicubic")
fastpe.warmup(["float32", np.float64], device=None)
fastpe.warmup("bfloat16")
assert_type(fastpe.get_num_threads(), int)
assert_type(fastpe.recipes(), tuple[str, ...])
assert_type(fastpe.recipe("t5", heads=2).arguments(64), dict[str, Any])

# ---- encodings show their fields, and constructors return their class ----

assert_type(fastpe.Sinusoidal().base, float)
assert_type(fastpe.Sinusoidal.timesteps(), fastpe.Sinusoidal)
assert_type(fastpe.Rotary(500_000.0).base, float)
assert_type(fastpe.Rotary.from_config({"rope_theta": 1e4}), fastpe.Rotary)
assert_type(fastpe.Rotary.tabulated(x[0], x[0]).interleaved, bool)
assert_type(fastpe.Grid.mae((14, 14), base_size=7), fastpe.Grid)
assert_type(fastpe.Grid.timm((14, 14)).axes, tuple[int, ...] | None)
assert_type(fastpe.Fourier.nerf(2, 16), fastpe.Fourier)
assert_type(fastpe.Learned(t).out_of_range, str)
assert_type(fastpe.ALiBi(8, slopes=[0.5] * 8).heads, int)
assert_type(fastpe.T5Bias(x[0], max_distance=64).max_distance, int)
assert_type(fastpe.RelativeTable(x[0]).table.ndim, int)
assert_type(fastpe.Kerple(np.ones(2), [1.0, 2.0]).values([0, 1]), npt.NDArray[np.float64])
assert_type(fastpe.FIRE(x[0], x[0, 0], x[0], x[0, 0]).eps, float)

scaling = fastpe.scaling
assert_type(scaling.Linear(2.0).factor, float)
assert_type(scaling.NTK(2.0).factor, float)
assert_type(scaling.DynamicNTK(2.0, 4096).original_max_position, int)
assert_type(scaling.YaRN(2.0, 4096).beta_fast, float)
assert_type(scaling.NTKByParts(2.0, 4096).original_max_position, int)
assert_type(scaling.Llama3(8.0, original_max_position=8192).factor, float)
assert_type(scaling.Proportional(0.25).fraction, float)

# ---- positions: NumPy's unless an example says otherwise ----

positions = fastpe.positions
assert_type(positions.grid((2, 3), start=(1, 0)), npt.NDArray[np.int64])
assert_type(positions.grid((2, 3), like=t), torch.Tensor)
assert_type(positions.window((2, 3)), npt.NDArray[np.int64])
assert_type(positions.window((2, 3), class_token=True, like=t), tuple[torch.Tensor, torch.Tensor])
assert_type(positions.resized((2, 3), (4, 6)), npt.NDArray[np.float64])
assert_type(positions.centred((2, 3), like=t), torch.Tensor)
assert_type(positions.pixels((2, 3)), npt.NDArray[np.float64])
assert_type(positions.log_spaced((2, 3)), npt.NDArray[np.float64])
assert_type(positions.llama4(4), npt.NDArray[np.int64])
assert_type(positions.qwen2_vl([[1, 4, 4]]), npt.NDArray[np.int64])
assert_type(positions.detr([[True, True]]), npt.NDArray[np.float64])
assert_type(positions.detr(t), torch.Tensor)
assert_type(positions.from_mask([[True, False]]), npt.NDArray[np.int64])
assert_type(positions.from_mask(t, offset=3), torch.Tensor)
assert_type(positions.packed([0, 3, 5]), npt.NDArray[np.int64])
assert_type(positions.fairseq(t), torch.Tensor)
assert_type(positions.abacus([True, False]), npt.NDArray[np.int64])
assert_type(positions.contextual(x, 9), npt.NDArray[np.float64])
assert_type(positions.randomized(5, 100, rng=0), npt.NDArray[np.int64])
assert_type(positions.shifted(5, 100, like=t), torch.Tensor)
assert_type(positions.skipped(5, 100, rng=np.random.default_rng()), npt.NDArray[np.int64])
assert_type(positions.random_float(5, 100), npt.NDArray[np.float64])
assert_type(positions.self_extend(9, [8], group=2, window=4), positions.Remap)
assert_type(positions.rerope(9, window=4).branch(), npt.NDArray[np.int64])
assert_type(positions.mrope([[0, 0, 1]], image_grids=[[1, 4, 4]], mask=[[True] * 3]).deltas.ndim, int)

# ---- PyTorch: modules and the patch ----

rotary = fastpe.torch.RotaryEmbedding(fastpe.Rotary(), seq_axis=-3)
assert_type(rotary(t), torch.Tensor)
assert_type(rotary(t, t, offset=3), tuple[torch.Tensor, torch.Tensor])
assert_type(rotary.seq_axis, int)
adds = fastpe.torch.SinusoidalEncoding(input_scale=8.0)
assert_type(adds(t, offset=2), torch.Tensor)
assert_type(adds.input_scale, float | torch.Tensor)
learned = fastpe.torch.LearnedEncoding(9, 4, out_of_range="clip", dtype=torch.float16, device="cpu")
assert_type(learned(t), torch.Tensor)
assert_type(learned.encoding, fastpe.Learned)
tokens = fastpe.torch.TokenEmbedding(9, 4, learned, num_token_types=2)
assert_type(tokens(torch.tensor([[1]]), token_types=torch.tensor([[0]])), torch.Tensor)
assert_type(fastpe.torch.TokenEmbedding.from_pretrained(t[0]).skip_padding, bool)
assert_type(functional.apply_rotary_qkv(t, (1, 1)), torch.Tensor)
assert_type(functional.rerotate(t, 2), torch.Tensor)
assert_type(functional.add_bias(t, fastpe.ALiBi(2)), torch.Tensor)
assert_type(
    fastpe.torch.patch_transformers(torch.nn.Linear(1, 1), scaling={"full_attention": scaling.Linear(2.0)}),
    fastpe.torch.Patched,
)
assert_type(fastpe.plot.heatmap(fastpe.Grid((4, 4))), Axes)
assert_type(fastpe.plot.wavelengths([fastpe.scaling.NTK(4), "linear:factor=4"]), tuple[Axes, Axes])
