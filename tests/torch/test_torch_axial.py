"""Vision models whose rows and columns alternate: their own modules beside the encodings that the refusals name."""

from __future__ import annotations

import importlib

import cases
import pytest

import fastpe

torch = pytest.importorskip("torch")
transformers = cases.transformers()
OWN = {"section_layout": "interleaved", "section_frequencies": "own"}


def test_kimi_k25():
    """Columns first, half pairs."""
    module = importlib.import_module("transformers.models.kimi_k25.modeling_kimi_k25")
    config = module.Kimi_K25VisionConfig(hidden_size=96, num_attention_heads=2)
    rows, columns = (one.flatten() for one in torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij"))
    q, k = (torch.randn(35, 2, 48, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    tables = module.Kimi_K25VisionRotaryEmbedding(config)(q, torch.stack([rows, columns], dim=-1))
    expected = module.apply_rotary_pos_emb_vision(q, k, *tables)
    encoding = fastpe.Rotary(config.rope_parameters["rope_theta"], sections=(12, 12), **OWN)
    fastpe.apply_rotary(q, k, encoding, positions=torch.stack([columns, rows]), seq_axis=-3)
    for got, wanted in zip((q, k), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-5
    with pytest.raises(
        ValueError, match=r"write Rotary.*section_layout='interleaved', .*section_frequencies='own'.* columns first"
    ):
        fastpe.Rotary.from_config(config)


def test_efficientloftr():
    """All heads as one, adjacent pairs, rows first, counted from 1."""
    module = importlib.import_module("transformers.models.efficientloftr.modeling_efficientloftr")
    config = module.EfficientLoFTRConfig()
    width, step = config.hidden_size, config.q_aggregation_stride
    cos, sin = module.EfficientLoFTRRotaryEmbedding(config)(torch.zeros(1, 1, 5 * step, 7 * step))
    q, k = (torch.randn(1, 35, 1, width, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = module.apply_rotary_pos_emb(q, k, *(one.reshape(1, 35, width) for one in (cos, sin)), unsqueeze_dim=2)
    encoding = fastpe.Rotary(config.rope_parameters["rope_theta"], interleaved=True, sections=(width // 4, width // 4), **OWN)
    positions = torch.stack(torch.meshgrid(torch.arange(1, 6), torch.arange(1, 8), indexing="ij")).flatten(1)
    fastpe.apply_rotary(q, k, encoding, positions=positions, seq_axis=-3)
    for got, wanted in zip((q, k), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-5
