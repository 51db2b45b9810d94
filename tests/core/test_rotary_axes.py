"""Rotary encodings of positions with several axes, as other projects have them: their own cosines, sines and rotated values."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest

import fastpe
from fastpe import Rotary
from fastpe.scaling import NTK, Custom, DynamicNTK, Linear

DATA = np.load(Path(__file__).parents[1] / "data" / "axes.npz")
GRID = np.stack(np.meshgrid(np.arange(7), np.arange(5), indexing="ij")).reshape(2, -1)  # (row, column) of 7 x 5 patches


def angles(encoding, pairs, positions, **given):
    """Cosine and sine of every pair: what the unit vector of each becomes."""
    x = np.zeros((positions.shape[-1], 2 * pairs), np.float32)
    ones = slice(0, None, 2) if encoding.interleaved else slice(0, pairs)
    others = slice(1, None, 2) if encoding.interleaved else slice(pairs, None)
    x[:, ones] = 1
    fastpe.apply_rotary(x, None, encoding, positions=positions, **given)
    return x[:, ones], x[:, others]


def assert_table(encoding, name, positions, *, interleaved, largest):
    """A project's table, which has every column twice, carries the error of its float32 angles."""
    cos, sin = (DATA[f"{name}{part}"] for part in ("cos", "sin"))
    pairs = cos.shape[-1] // 2
    columns = slice(0, None, 2) if interleaved else slice(0, pairs)
    for got, expected in zip(angles(encoding, pairs, positions), (cos, sin), strict=True):
        assert np.abs(got - expected[:, columns]).max() <= 1e-6 + 1.2e-7 * largest


def test_vision_towers():
    hw = DATA["rope2d_qwen2vl_vision__hw"].T
    encoding = Rotary(sections=(20, 20), section_frequencies="own")
    assert_table(encoding, "rope2d_qwen2vl_vision__", hw, interleaved=False, largest=hw.max())
    # Pixtral: one row of frequencies, of which the rows have the even and the columns the odd ones.
    frequencies = Rotary().frequencies(64)[0]
    encoding = Rotary(sections=(16, 16), scaling=Custom((*frequencies[::2], *frequencies[1::2])))
    hw = DATA["rope2d_pixtral__hw"].T
    assert_table(encoding, "rope2d_pixtral__", hw, interleaved=False, largest=hw.max())


def test_gemma4_turns_each_half_of_the_head_by_one_axis():
    hw, cos, sin = (DATA[f"rope2d_gemma4_vision__{name}"] for name in ("hw", "cos", "sin"))
    for half in (0, 1):
        found = angles(Rotary(100.0), 16, hw[:, half])
        for got, expected in zip(found, (cos, sin), strict=True):
            assert np.abs(got - expected[:, 32 * half : 32 * half + 16]).max() <= 1e-6 + 1.2e-7 * hw.max()


@pytest.mark.parametrize("interleaved", [True, False])
def test_timm_rotates(interleaved):
    encoding = Rotary(interleaved=interleaved, sections=(16, 16), section_frequencies="own")
    x = DATA["timm_apply_rot__x"].copy()
    fastpe.apply_rotary(x, None, encoding, positions=GRID)
    found = DATA[f"timm_apply_rot__{'interleaved' if interleaved else 'half'}"]
    by_pixels = Rotary(interleaved=interleaved, sections=(16, 16), scaling=Custom((*_pixel_bands(), *_pixel_bands())))
    again = DATA["timm_apply_rot__x"].copy()
    fastpe.apply_rotary(again, None, by_pixels, positions=_pixels())
    assert min(np.abs(x - found).max(), np.abs(again - found).max()) <= 5e-5


def _pixel_bands():
    return np.pi * 2.0 ** np.linspace(0, np.log2(224.0) - 1, 16)


def _pixels():
    return np.stack([np.linspace(-1, 1, 7)[GRID[0]], np.linspace(-1, 1, 5)[GRID[1]]])


def test_timm_tables():
    own = Rotary(interleaved=True, sections=(16, 16), section_frequencies="own")
    sizes = np.array([[7.0], [5.0]])
    linear = np.pi * np.linspace(1.0, 112.0, 16)
    for name, encoding, positions, largest in (
        ("lang_", own, GRID, 7),
        ("lang_offset1_", own, GRID + 1, 8),
        ("half_", Rotary(sections=(16, 16), section_frequencies="own"), GRID, 7),
        ("pixels_", _axial(_pixel_bands()), _pixels(), 352),
        ("pixels_linear_", _axial(linear), _pixels(), 352),
        ("centered_dinov3_", Rotary(100.0, sections=(16, 16), section_frequencies="own"), 2 * (GRID + 0.5) / sizes - 1, 1),
    ):
        assert_table(encoding, f"timm_rotary2d__{name}", positions, interleaved=encoding.interleaved, largest=largest)
    assert_table(own, "timm_rotary2d__lang_xy_", GRID[::-1].copy(), interleaved=True, largest=7)
    assert_table(own, "timm_rotary2d__lang_ref_", GRID * 16 / sizes, interleaved=True, largest=16)  # stretched to 16 x 16


def _axial(bands, interleaved=True):
    return Rotary(interleaved=interleaved, sections=(16, 16), scaling=Custom((*bands, *bands)))


def test_a_table_for_each_head():
    """RoPE-Mixed (Heo et al. 2024): angles x f_x + y f_y, learnt for each head: heads are the sequences of a table."""
    f, x, y = (DATA[f"timm_rope_mixed__{name}"] for name in ("freqs", "t_x", "t_y"))
    mixed = x[:, None] * f[0, 0][:, None] + y[:, None] * f[1, 0][:, None]  # (heads, T, 16)
    q = np.tile(np.array([1, 0], np.float32), (4, 35, 16))
    fastpe.apply_rotary(q, None, Rotary.tabulated(np.cos(mixed), np.sin(mixed), interleaved=True))
    out = DATA["timm_rope_mixed__out"][0]
    sines, cosines = out[..., :32], out[..., 32:]
    assert np.abs(q[..., ::2] - cosines[..., ::2]).max() <= 3e-6
    assert np.abs(q[..., 1::2] - sines[..., ::2]).max() <= 3e-6


def test_diffusers():
    positions = DATA["diffusers_rope1d__pos"]
    for name, encoding in (
        ("real_inter_", Rotary(interleaved=True)),
        ("real_half_", Rotary()),
        ("lin2_", Rotary(interleaved=True, scaling=Linear(2.0))),
        ("ntk4_", Rotary(40000.0, interleaved=True)),  # multiplies the base
        ("f64_", Rotary(interleaved=True)),
    ):
        assert_table(
            encoding, f"diffusers_rope1d__{name}", positions, interleaved=encoding.interleaved, largest=positions.max()
        )
    # CogVideoX: a quarter of the head for time, the rest for rows and columns.
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(6), np.arange(4), indexing="ij")).reshape(3, -1)
    encoding = Rotary(interleaved=True, sections=(8, 12, 12), section_frequencies="own")
    assert_table(encoding, "diffusers_rope3d__", grid, interleaved=True, largest=6)


@pytest.mark.parametrize(
    ("sections", "layout", "axes"),
    [
        ((3, 3), "interleaved", [0, 1, 0, 1, 0, 1]),
        ((4, 2), "interleaved", [0, 1, 0, 1, 0, 0]),
        ((2, 2, 2), "interleaved", [0, 1, 2, 0, 1, 2]),
        ((5, 1, 0), "interleaved", [0, 1, 0, 0, 0, 0]),
        ((2, 2, 2), "alternating", [1, 2, 1, 2, 0, 0]),
        ((0, 3, 3), "alternating", [1, 2, 1, 2, 1, 2]),
        ((1, 2, 3), "contiguous", [0, 1, 1, 2, 2, 2]),
        ((0, 6), "contiguous", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_each_axis_has_a_row_of_its_own_in_its_places(sections, layout, axes):
    """As if the channels of each axis were a head of their own."""
    encoding = Rotary(500.0, sections=sections, section_layout=layout, section_frequencies="own", scaling=NTK(4.0))
    places = np.array(axes)
    positions = np.random.default_rng(0).integers(0, 99, (len(sections), 5))
    found, q = encoding.frequencies(12)[0], cases.random((3, 5, 12), "float64")
    got = fastpe.apply_rotary(q.copy(), None, encoding, positions=positions)
    for axis in set(axes):
        own = Rotary(500.0, scaling=NTK(4.0))
        channels = np.concatenate([np.flatnonzero(places == axis), 6 + np.flatnonzero(places == axis)])
        assert (found[places == axis] == own.frequencies(len(channels))[0]).all()
        cases.assert_same_bits(
            got[..., channels], fastpe.apply_rotary(q[..., channels].copy(), None, own, positions=positions[axis])
        )


def test_x_transformers_and_xpos():
    """The middle of the sequence is the centre; half of the head turns."""
    freqs = DATA["x_transformers__freqs"][0]
    interleaved = np.array_equal(freqs[:, 0], freqs[:, 1])
    encoding = Rotary(interleaved=interleaved, rotary_dim=32, xpos_scale_base=512, xpos_centre=5)
    q, k = DATA["x_transformers__q"].copy(), DATA["x_transformers__q"].copy()
    fastpe.apply_rotary(q, k, encoding)
    assert np.abs(q - DATA["x_transformers__q_out"]).max() <= 5e-6
    assert np.abs(k - DATA["x_transformers__k_out"]).max() <= 5e-6
    stretched = Rotary(10000.0 * 2 ** (32 / 30), scaling=Linear(4.0)).frequencies(32)[0]
    also = Rotary(scaling=NTK(2.0)).frequencies(32)[0] / 4
    expected = DATA["x_transformers__freqs_pi4_ntk2"][0, 1]
    expected = expected[::2] if interleaved else expected[:16]
    assert np.abs(stretched / expected - 1).max() <= 4e-7
    assert np.abs(also / expected - 1).max() <= 4e-7


def test_ernie():
    """ERNIE 4.5 VL: rows and columns take turns, time has the slowest; adjacent pairs; its configuration says so by its type."""
    config = {
        "model_type": "ernie4_5_vl_moe_text",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [22, 22, 20]},
    }
    encoding = Rotary.from_config(config)
    assert encoding == Rotary(5e5, interleaved=True, sections=(20, 22, 22), section_layout="alternating")
    q, k = DATA["ernie__q"].copy(), DATA["ernie__k"].copy()
    fastpe.apply_rotary(q, k, encoding, positions=DATA["ernie__positions"])
    for got, name in ((q, "q_out"), (k, "k_out")):
        assert np.abs(got - DATA[f"ernie__{name}"]).max() <= (1e-6 + 1.2e-7 * DATA["ernie__positions"].max()) * 4


def test_resonance():
    """Wavelengths rounded to integers: periodic, which a caller's own frequencies give."""
    wavelengths = np.round(2 * np.pi / Rotary().frequencies(128)[0])
    assert (wavelengths == DATA["resonance__wavelengths_default"]).mean() > 0.95  # theirs come from float32 frequencies
    found = Rotary(scaling=Custom(tuple(2 * np.pi / DATA["resonance__wavelengths_default"].astype(float)))).frequencies(128)[0]
    assert np.abs(found / DATA["resonance__inv_default"] - 1).max() <= 4e-7


def test_the_module_that_remembers_the_longest_length():
    """Hugging Face's dynamic module is stateful: the length that it has in mind is what is given here."""
    encoding = Rotary(scaling=DynamicNTK(10.0, 2048))
    steps = sorted(name for name in DATA.files if name.startswith("dynamic_module"))
    for name, remembered in zip(steps, (100, 2048, 4096, 16384, 16384, 50), strict=True):
        found = encoding.frequencies(128, remembered)[0]
        assert np.abs(found / DATA[name] - 1).max() <= 4e-6  # the module computes the base in float32


def test_masked_rows_need_no_valid_position():
    encoding, q = Rotary(sections=(2, 2)), cases.random((2, 3, 5, 8), "float32")
    positions, mask = np.arange(20.0).reshape(2, 2, 5), np.arange(10).reshape(2, 5) % 3 > 0
    full = fastpe.apply_rotary(q.copy(), None, encoding, positions=positions)
    positions[:, ~mask] = np.inf
    got = fastpe.apply_rotary(q.copy(), None, encoding, positions=positions, mask=mask)
    cases.assert_same_bits(got, np.where(mask[:, None, :, None], full, q))
    with pytest.raises(ValueError, match="positions must be finite"):
        fastpe.apply_rotary(q, None, encoding, positions=positions)


def test_the_encoding_says_what_the_axes_of_positions_are():
    """(3, T) with a batch of 3: a sequence in each row, or an axis in each row if the encoding has sections."""
    q, positions = cases.random((3, 2, 5, 8), "float32"), np.random.default_rng(3).integers(0, 99, (3, 5))
    got = fastpe.apply_rotary(q.copy(), None, positions=positions)
    for b in range(3):
        cases.assert_same_bits(got[b : b + 1], fastpe.apply_rotary(q[b : b + 1].copy(), None, positions=positions[b]))
    encoding = Rotary(sections=(1, 2, 1))
    got = fastpe.apply_rotary(q.copy(), None, encoding, positions=positions)
    cases.assert_same_bits(got, fastpe.apply_rotary(q.copy(), None, encoding, positions=positions[:, None].repeat(3, axis=1)))


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5)])
def test_positions_of_several_axes_need_sections(shape):
    q, positions = np.ones((2, 4, 5, 8), np.float32), np.zeros(shape, int)
    text = r"positions must have shape \(5,\) or \(2, 5\), got shape \(3, .*5\).*several axes.*need an encoding with sections"
    with pytest.raises(ValueError, match=text):
        fastpe.apply_rotary(q, None, positions=positions)
    with pytest.raises(ValueError, match=r"several axes.* or a Grid"):
        fastpe.add_encoding(q, positions=positions)
    with pytest.raises(ValueError, match=r"got shape \(3, 6\). x has shape \(2, 5, 8\) and seq_axis 1\.$"):
        fastpe.apply_rotary(q, None, positions=np.zeros((3, 6), int))
    fastpe.apply_rotary(q, None, Rotary(sections=(1, 2, 1)), positions=positions)
