"""Pictures: they show the numbers that they say they show, and refuse what they cannot show."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import reference

import fastpe
from fastpe import scaling

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
from matplotlib.figure import Figure

from fastpe._tools import plot
from fastpe._tools.plot import named, values

SUM = 1e-12  # of at most 512 products of float64 values up to 1
EXACT = 4e-12  # angles at 10^7 in turns of 2^-64, 1.7e-12 rad, and the sine
RULES = [scaling.Linear(4), scaling.NTK(4), scaling.YaRN(4, 1024), scaling.Llama3(4, original_max_position=1024)]


def drawn(axes: Any) -> None:
    """Render; layouts and ticks are made only then."""
    np.ravel(np.array(axes, dtype=object))[0].figure.canvas.draw()


# ---- heat map and contours ---------------------------------------------------------------------------------------------------


def test_heatmap_shows_the_encoding() -> None:
    encoding = fastpe.Sinusoidal(base=100.0, amplitude=-0.5)
    axes = plot.heatmap(encoding, length=9, dim=6, offset=1000)
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), fastpe.encode(np.arange(1000, 1009), 6, encoding))
    assert tuple(image.get_extent()) == (-0.5, 5.5, 1008.5, 999.5)
    low, high = image.get_clim()
    assert -low == high == np.abs(image.get_array()).max()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("channel", "position")
    assert axes.figure.axes[1].get_ylabel() == "value added to x"
    assert "D = 6" in axes.get_title(loc="left")
    assert axes.texts[0].get_text() == "base: 100, amplitude: -0.5"
    drawn(axes)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("interleaved", [False, True])
def test_heatmap_of_a_rotation_has_cosines_and_sines_and_no_value_where_nothing_turns(interleaved: bool) -> None:
    encoding = fastpe.Rotary(100.0, interleaved=interleaved, rotary_dim=4, rotary_offset=1)
    found = np.ma.filled(plot.heatmap(encoding, length=5, dim=8).images[0].get_array(), np.nan)
    angles = reference.angles(np.arange(5), reference.angular_frequencies(4, 100.0))
    first, second = ([1, 3], [2, 4]) if interleaved else ([1, 2], [3, 4])
    assert np.abs(found[:, first] - np.cos(angles)).max() < 2e-7  # what apply_rotary promises
    assert np.abs(found[:, second] - np.sin(angles)).max() < 2e-7
    assert np.isnan(found[:, [0, 5, 6, 7]]).all()


def test_heatmap_of_tables() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(plot.heatmap(fastpe.Learned(table)).images[0].get_array(), table)
    cos, sin = np.full((3, 2), 0.25), np.full((3, 2), 0.5)
    found = plot.heatmap(fastpe.Rotary.tabulated(cos, sin), length=3).images[0].get_array()
    np.testing.assert_array_equal(found, [[0.25, 0.25, 0.5, 0.5]] * 3)


def test_heatmap_of_sections_has_the_same_positions_on_every_axis() -> None:
    found = plot.heatmap(fastpe.Rotary(sections=(1, 2, 1)), length=6, dim=8).images[0].get_array()
    np.testing.assert_array_equal(found, plot.heatmap(fastpe.Rotary(), length=6, dim=8).images[0].get_array())


@pytest.mark.parametrize("encoding", ["sinusoidal:amplitude=2.0,layout=concatenated", "rotary", "sinusoidal:frequency_shift=1"])
def test_contours_go_through_the_channels(encoding: str) -> None:
    value = named.encoding(encoding)
    sines, cosines = values.smooth(value, 9, 8)
    step, row = (len(sines.channels) - 1) // 3, (len(sines.positions) - 1) // 8
    np.testing.assert_allclose(sines.channels[::step], range(4), atol=SUM)
    np.testing.assert_allclose(cosines.channels[::step], range(4, 8), atol=SUM)
    whole = fastpe.Sinusoidal(layout="concatenated", frequency_shift=getattr(value, "frequency_shift", 0))
    expected = fastpe.encode(np.arange(9), 8, whole, dtype="float64") * getattr(value, "amplitude", 1)
    found = np.concatenate((sines.values[::row, ::step], cosines.values[::row, ::step]), 1)
    np.testing.assert_allclose(found, expected, atol=SUM)
    axes = plot.contour(value, length=9, dim=8)
    assert len(axes.collections) >= 4  # two blocks, each filled and lined
    drawn(axes)


def test_contours_of_a_table_of_rotations_are_cosines_and_sines() -> None:
    cos, sin = np.arange(6.0).reshape(3, 2), -np.arange(6.0).reshape(3, 2)
    table = fastpe.Rotary.tabulated(cos, sin, interleaved=True, rotary_offset=1)
    cosines, sines = values.as_blocks("contour", table, 3, 6)
    np.testing.assert_array_equal(cosines.values, cos)
    np.testing.assert_array_equal(sines.values, sin)
    assert (cosines.channels.tolist(), sines.channels.tolist()) == ([0, 1], [2, 3])
    assert plot.contour(table, length=3).get_xlabel() == "channel, cosines before sines"


def test_contours_of_a_table_are_its_values() -> None:
    axes = plot.contour(fastpe.Learned(np.random.default_rng(0).standard_normal((5, 4))))
    assert axes.get_xlabel() == "channel"
    drawn(axes)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (2, 3)])
def test_small_pictures(size: tuple[int, int]) -> None:
    length, dim = size
    for picture in (plot.heatmap, plot.contour, plot.similarity):
        drawn(picture("sinusoidal", length=length, dim=dim))


# ---- similarity --------------------------------------------------------------------------------------------------------------


def test_similarity_of_rotations_is_the_mean_cosine() -> None:
    pairs, curve = plot.similarity("rotary:attention_factor=3", length=20, dim=16)
    angles = np.arange(20)[:, None] * fastpe.Rotary().frequencies(16)[0]
    expected = np.cos(angles).mean(-1)
    np.testing.assert_allclose(curve.lines[0].get_ydata(), expected, atol=SUM)
    distance = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    np.testing.assert_allclose(pairs.images[0].get_array(), expected[distance], atol=SUM)
    drawn(pairs)


def test_similarity_of_partial_rotations_counts_what_does_not_turn() -> None:
    _, curve = plot.similarity(fastpe.Rotary(rotary_dim=4), length=9, dim=8)
    angles = np.arange(9)[:, None] * fastpe.Rotary().frequencies(4)[0]
    np.testing.assert_allclose(curve.lines[0].get_ydata(), 0.5 + np.cos(angles).mean(-1) / 2, atol=SUM)


def test_similarity_of_a_table_has_a_band() -> None:
    table = np.random.default_rng(0).standard_normal((6, 4))
    table[2] = 0  # no direction
    found = values.similarity("similarity", fastpe.Learned(table), 6, 4)
    lengths = np.linalg.norm(table, axis=1)
    for i, j in ((0, 0), (4, 1), (1, 4)):
        assert found.pairs[i, j] == pytest.approx(table[i] @ table[j] / lengths[i] / lengths[j])
    assert not found.pairs[2].any()
    assert found.least[1] < found.mean[1] < found.largest[1]
    assert found.mean[1] == pytest.approx(np.mean([found.pairs[i + 1, i] for i in range(5)]))


def test_similarity_compares_with_the_plain_encoding() -> None:
    _, curve = plot.similarity(fastpe.Rotary(scaling=scaling.Linear(4)), length=32)
    plain, scaled = curve.lines[0].get_ydata(), curve.lines[1].get_ydata()
    np.testing.assert_allclose(scaled[::4], plain[:8], atol=SUM)
    assert [text.get_text() for text in curve.get_legend().get_texts()] == ["without the rule", "with it"]


# ---- wavelengths -------------------------------------------------------------------------------------------------------------


def test_wavelengths_and_how_much_they_are_stretched() -> None:
    upper, lower = plot.wavelengths(RULES)
    plain = 2 * np.pi * 10000 ** (np.arange(64) / 64)
    np.testing.assert_allclose(upper.lines[0].get_ydata(), plain, rtol=SUM)
    for number, rule in enumerate(RULES, 1):
        frequencies, _ = fastpe.Rotary(scaling=rule).frequencies(128)
        np.testing.assert_allclose(upper.lines[number].get_ydata(), 2 * np.pi / frequencies, rtol=SUM)
        np.testing.assert_allclose(lower.lines[number].get_ydata(), 2 * np.pi / frequencies / plain, rtol=SUM)
    assert [text.get_text() for text in upper.texts] == ["trained length 1,024", "target length 4,096"]
    assert (lower.get_xlabel(), upper.get_ylabel(), lower.get_ylabel()) == (
        "frequency (0 is the fastest)",
        "wavelength (positions)",
        "times longer",
    )
    labels = [text.get_text() for text in upper.figure.legends[0].get_texts()]
    assert labels[:3] == ["plain", "Linear, factor 4", "NTK, factor 4"]
    assert "attention x 1.14" in labels[3]
    drawn(upper)


def test_wavelengths_of_a_rule_that_depends_on_the_length() -> None:
    rule = scaling.LongRoPE((1.0,) * 4, (8.0,) * 4, 100, factor=8.0)
    _, lower = plot.wavelengths(rule, dim=8, length=100)
    np.testing.assert_allclose(lower.lines[1].get_ydata(), 1.0)
    upper, lower = plot.wavelengths(rule, dim=8)
    np.testing.assert_allclose(lower.lines[1].get_ydata(), 8.0)
    assert upper.texts[1].get_text() == "target length 800"


def test_wavelengths_of_pairs_that_stand_still_are_counted() -> None:
    upper, _ = plot.wavelengths("proportional:fraction=0.25", dim=16, trained=50)
    assert "6 stand still" in upper.figure.legends[0].get_texts()[1].get_text()
    assert np.isnan(upper.lines[1].get_ydata()[2:]).all()
    assert [text.get_text() for text in upper.texts] == ["trained length 50", "target length 50"][:1]
    drawn(upper)


# ---- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["sinusoidal:layout=concatenated,amplitude=3", "rotary:interleaved=true", "sinusoidal:frequency_shift=1"]
)
def test_errors_are_those_against_the_reference(encoding: str) -> None:
    value, dim = named.encoding(encoding), 8
    starts, found = values.errors("error", value, 10**7, dim)
    assert (starts[0], starts[-1]) == (1, 10**7 - values.ROWS)
    last = np.arange(values.ROWS) + starts[-1]
    frequencies = reference.angular_frequencies(dim, shift=getattr(value, "frequency_shift", 0))
    angles = reference.angles(last, frequencies)
    float32 = last.astype(np.float32)[:, None] * np.array(frequencies, np.float64).astype(np.float32)
    expected = max(np.abs(np.sin(float32) - np.sin(angles)).max(), np.abs(np.cos(float32) - np.cos(angles)).max())
    assert found[values.ANGLES][-1] == pytest.approx(expected, abs=EXACT)
    assert found[values.FASTPE].max() < 2e-7  # what fastpe promises
    assert found[values.ANGLES][-1] > 1e-3
    assert 1e-3 < found[values.STORED][0] < 2.0**-8
    assert found[values.CAST][-1] > 1


def test_error_labels() -> None:
    axes = plot.error("sinusoidal:scaling=linear(factor=4)", length=1000, dim=5)  # odd: a sine without a cosine
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "position")
    assert len(axes.lines) == 4
    assert "scaling: Linear (factor 4)" in axes.texts[0].get_text()
    drawn(axes)


def test_rounding_to_bfloat16_is_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    x[:4] = 0, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8  # ties to even
    np.testing.assert_array_equal(values.to_bfloat16(x), x.astype(ml_dtypes.bfloat16).astype(np.float32))


# ---- biases ------------------------------------------------------------------------------------------------------------------


def test_bias_by_distance_and_head() -> None:
    axes = plot.bias("alibi:heads=4", length=10)
    for head, line in enumerate(axes.lines[:4], 1):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(11))
        np.testing.assert_allclose(line.get_ydata(), -np.arange(11) * 2.0 ** (-2 * head))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1", "2", "3", "4"]
    assert axes.get_xlabel() == "distance, query - key (positions)"
    drawn(axes)


def test_biases_for_encoders_are_drawn_on_both_sides_and_many_heads_have_a_bar() -> None:
    table = np.random.default_rng(0).standard_normal((32, 12))
    axes = plot.bias(fastpe.T5Bias(table), length=20)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), np.arange(-20, 21))
    np.testing.assert_array_equal(axes.lines[11].get_ydata(), fastpe.T5Bias(table).values(np.arange(-20, 21))[11])
    assert axes.get_legend() is None
    assert axes.figure.axes[1].get_ylabel() == "head"
    assert plot.bias(fastpe.T5Bias(table, bidirectional=False)).get_xlim()[0] == 0
    drawn(axes)


def test_a_bias_that_depends_on_the_query_is_that_of_the_last_one() -> None:
    fire = fastpe.FIRE(w1=np.ones((1, 1)), b1=np.zeros(1), w2=-np.ones((2, 1)), b2=np.zeros(2), length=10)
    axes = plot.bias(fire, length=100)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), fire.values(np.arange(101), np.full(101, 100))[0])
    assert "query at 100" in axes.get_title(loc="left")


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def test_pictures_go_into_the_axes_that_are_given() -> None:
    figure = Figure()
    one, *pair = figure.subplots(3)
    assert plot.bias(length=5, ax=one) is one
    for picture in (plot.heatmap, plot.contour, plot.error):
        assert picture("sinusoidal", length=20, dim=8, ax=one) is one
    assert list(plot.similarity("rotary", length=5, dim=8, axes=pair)) == pair
    assert list(plot.wavelengths(RULES, axes=pair)) == pair
    assert pair[0].get_legend() is not None
    assert not figure.legends
    with pytest.raises(TypeError, match=r"plot: axes must be 2 of matplotlib's axes, got"):
        plot.similarity("rotary", axes=one)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: plot.heatmap(fastpe.ALiBi(8)), ValueError, "got a bias on scores, ALiBi. fastpe.plot.bias"),
        (lambda: plot.heatmap("nosuch"), ValueError, "must be one of alibi, fire, fourier, grid, kerple, learned,"),
        (lambda: plot.heatmap(3), TypeError, "heatmap: encoding must be one of fastpe's, got int 3"),
        (lambda: plot.heatmap(length=0), ValueError, "heatmap: length must be at least 1, got 0"),
        (lambda: plot.heatmap(length=2.5), TypeError, "heatmap: length must be an integer"),
        (lambda: plot.heatmap(dim=0), ValueError, "heatmap: dim must be at least 1"),
        (lambda: plot.heatmap(length=10**9), ValueError, "length \\* dim must be at most"),
        (lambda: plot.contour(length=10**9), ValueError, "length \\* dim must be at most"),
        (lambda: plot.heatmap(offset=2**31 - 1), ValueError, "positions must lie in \\[-2\\^31, 2\\^31\\)"),
        (lambda: plot.heatmap(fastpe.Learned(np.zeros((4, 2))), length=5), IndexError, "table"),
        (lambda: plot.similarity(length=5000), ValueError, "length must be at most 4096"),
        (lambda: plot.wavelengths([]), ValueError, "1 to 7"),
        (lambda: plot.wavelengths(fastpe.ALiBi(8)), TypeError, "which have wavelengths, got ALiBi"),
        (lambda: plot.wavelengths(length=0), ValueError, "seq_len must be at least 1"),
        (lambda: plot.wavelengths(trained=0), ValueError, "trained must be at least 1"),
        (lambda: plot.error(fastpe.Learned(np.zeros((99, 2)))), ValueError, "which have angles, got Learned"),
        (lambda: plot.error(length=3), ValueError, "length must be at least 16"),
        (lambda: plot.bias("rotary"), TypeError, "must be a bias on scores .*alibi.*plot heatmap"),
        (lambda: plot.bias(length=0), ValueError, "length must lie in \\[1, 131072\\]"),
        (lambda: plot.save(plot.bias(), "x.nosuch"), ValueError, "path must end with one of"),
    ],
)
def test_errors(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


# ---- what can be seen --------------------------------------------------------------------------------------------------------


def test_an_encoding_without_a_rule_shows_the_usual_ones() -> None:
    upper, _ = plot.wavelengths(fastpe.Rotary(500.0))
    labels = upper.get_legend_handles_labels()[1]
    assert [label.split(",")[0] for label in labels] == ["plain", "Linear", "NTK", "YaRN", "Llama3"]
    np.testing.assert_allclose(upper.lines[1].get_ydata(), 8 * upper.lines[0].get_ydata(), rtol=SUM)
    drawn(upper)


def test_contours_leave_no_gap_between_sines_and_cosines() -> None:
    axes = plot.contour(length=9, dim=8)
    spans = sorted({(float(block.get_paths()[0].vertices[:, 0].min())) for block in axes.collections if len(block.get_paths())})
    assert spans[0] == -0.5
    for block in values.smooth(fastpe.Sinusoidal(), 9, 8):
        edges = values.to_edges(block)
        assert (edges.channels[0], edges.channels[-1]) == (block.channels[0] - 0.5, block.channels[-1] + 0.5)
        np.testing.assert_array_equal(edges.values[:, [0, -1]], block.values[:, [0, -1]])


def test_the_heads_of_a_bias_are_apart_where_they_end() -> None:
    axes = plot.bias(fastpe.ALiBi(8))
    drawn(axes)
    ends = [axes.transData.transform((256, line.get_ydata()[-1]))[1] for line in axes.lines[:8]]
    height = axes.bbox.height
    assert (np.diff(ends) > 0.04 * height).all()
    assert axes.get_ylim()[1] == 0  # nothing is drawn above


def test_curves_differ_in_more_than_colour() -> None:
    for axes in (plot.error(length=1000), plot.wavelengths(RULES)[1]):
        shapes = [(line.get_linestyle(), round(line.get_linewidth(), 2)) for line in axes.lines]
        assert len(shapes) == len(set(shapes))


def test_a_greater_value_is_lighter_so_that_a_print_in_grey_tells_them_apart() -> None:
    for axes in (plot.heatmap(length=4, dim=4), plot.similarity(length=4)[0]):
        red, green, blue, _ = axes.images[0].get_cmap()(np.linspace(0, 1, 64)).T
        assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()
