"""The layers on the backend that Keras runs on here; `test_keras_backends.py` has the others. NumPy's verbs say what is right."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import ops  # noqa: E402
from keras_cases import BACKEND, HAS_KERNELS, check, host, quiet  # noqa: E402

import fastpe  # noqa: E402
from fastpe import ALiBi, Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.keras import ALiBi as ALiBiLayer  # noqa: E402
from fastpe.keras import RotaryEmbedding, SinusoidalEncoding, TokenAndPositionEmbedding  # noqa: E402

pytestmark = quiet

PLACES: dict[str, dict[str, Any]] = {
    "default": {},
    "a start": {"start_index": 7},
    "a far start": {"start_index": 2**31 - 9},
    "a negative start": {"start_index": -5},
    "a tensor": {"start_index": np.array(70_001, np.int32)},
    "a start for each": {"start_index": np.array([5, -70_000], np.int32)},
    "positions": {"positions": np.array([6, 5, 0, -1, 2**31 - 1, -(2**31), 3], np.int32)},
    "positions for each": {"positions": np.arange(14, dtype=np.int32).reshape(2, 7) ** 3},
    "real positions": {"positions": np.array([0.5, -0.25, 1e-7, -1e-7, 1e6 + 0.5, -3.7, 2.0**30], np.float32)},
}


def places(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a layer, and the verb's."""
    given = PLACES[name]
    return given, {{"start_index": "offset"}.get(key, key): value for key, value in given.items()}


SINUSOIDS = {
    "plain": Sinusoidal(),
    "concatenated": Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5),
    "shifted": Sinusoidal(frequency_shift=1.0, position_scale=0.25),
    "timesteps": Sinusoidal.timesteps(flip_sin_to_cos=True, scale=1000.0),
    "yarn": Sinusoidal(scaling=scaling.YaRN(4.0, 2048)),
}
ROTATIONS = {
    "plain": Rotary(),
    "interleaved": Rotary(500_000.0, interleaved=True),
    "part": Rotary(rotary_dim=8, rotary_offset=4, attention_factor=1.25),
    "interleaved part": Rotary(rotary_dim=8, rotary_offset=2, interleaved=True),
    "yarn": Rotary(scaling=scaling.YaRN(4.0, 2048)),
}

# ---- numbers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_rows_stand_where_they_should(place):
    given, verb = places(place)
    x, q = cases.random((2, 7, 24), "float32"), cases.random((2, 7, 4, 16), "float32")
    check(SinusoidalEncoding(input_scale=2.5)(x, **given), fastpe.add_encoding(x.copy(), input_scale=2.5, **verb))
    check(RotaryEmbedding()(q, **given), fastpe.apply_rotary(q.copy(), seq_axis=1, **verb))
    ids = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
    layer = TokenAndPositionEmbedding(11, None, 24, encoding="sinusoidal", scale=3.0)
    made = layer(ids, **given)
    (table,) = (host(weight) for weight in layer.weights)
    check(made, fastpe.embed(ids, table, "sinusoidal", scale=3.0, **verb))


@pytest.mark.parametrize("width", [24, 7, 1])
@pytest.mark.parametrize("name", SINUSOIDS)
def test_sinusoids_of_all_layouts(name, width):
    x = cases.random((2, 7, width), "float32")
    layer = SinusoidalEncoding(encoding=SINUSOIDS[name])
    check(layer(x, start_index=12), fastpe.add_encoding(x.copy(), SINUSOIDS[name], offset=12))


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_of_all_layouts(name):
    q = cases.random((2, 7, 4, 16), "float32")
    layer = RotaryEmbedding(encoding=ROTATIONS[name])
    check(layer(q, start_index=12), fastpe.apply_rotary(q.copy(), encoding=ROTATIONS[name], seq_axis=1, offset=12))


@pytest.mark.parametrize(("sequence", "feature"), [(1, -1), (2, 3), (-2, -1), (1, 2), (0, 3), (3, 1), (0, 1), (3, 0), (2, -4)])
@pytest.mark.parametrize("place", ["default", "positions for each", "a start for each"])
def test_axes(sequence, feature, place):
    given, verb = places(place)
    q = cases.random((2, 7, 4, 16), "float32")  # (B, T, H, D); what is left goes to the front
    moved = np.ascontiguousarray(np.moveaxis(q, (1, 3), (sequence, feature)))
    made = RotaryEmbedding(sequence_axis=sequence, feature_axis=feature)(moved, **given)
    check(ops.moveaxis(made, (sequence, feature), (1, 3)), fastpe.apply_rotary(q.copy(), seq_axis=1, **verb))
    assert tuple(made.shape) == moved.shape


@pytest.mark.parametrize("shape", [(7, 16), (2, 7, 16), (2, 3, 2, 7, 16)])
def test_any_number_of_axes(shape):
    x = cases.random(shape, "float32")
    axis = len(shape) - 2
    check(SinusoidalEncoding()(x, start_index=3), fastpe.add_encoding(x.copy(), offset=3))
    check(RotaryEmbedding(sequence_axis=axis)(x, start_index=3), fastpe.apply_rotary(x.copy(), seq_axis=axis, offset=3))


def test_learned_positions():
    ids = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
    layer = TokenAndPositionEmbedding(11, 32, 24, scale=3.0)
    for place in ({}, {"start_index": 25}, {"start_index": np.array([3, 9])}, {"positions": ids}):
        made = layer(ids, **place)
        words, learned = (host(weight) for weight in layer.weights)
        assert not np.array_equal(words[:11], learned[:11])
        verb = {"positions": place["positions"]} if "positions" in place else {"offset": place.get("start_index", 0)}
        cases.assert_close(host(made), fastpe.embed(ids, words, Learned(learned), scale=3.0, **verb).astype(float), "float32")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"start_index": 1000}, {"start_index": np.array([3, 90], np.int32)}], ids=str)
def test_biases(options, causal):
    scores = cases.random((2, 6, 5, 9), "float32")
    for symmetric in (False, True):
        expected = fastpe.add_bias(scores.copy(), ALiBi(6, 4.0, symmetric), causal=causal, q_offset=options.get("start_index"))
        check(ALiBiLayer(4.0, causal=causal, symmetric=symmetric)(scores, **options), expected)


def test_rows_at_no_position_are_nan_or_refused():
    x, positions = np.zeros((1, 3, 8), np.float32), np.array([0.0, np.nan, 3e9], np.float32)
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="position"):
            SinusoidalEncoding()(x, positions=positions)
    else:
        with np.errstate(invalid="ignore"):
            made = host(SinusoidalEncoding()(x, positions=positions))
        assert np.isnan(made).all(-1).tolist() == [[False, True, True]]


# ---- dtypes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_bfloat16", "mixed_float16", "float64"])
def test_policies(policy):
    """Numbers are rounded once, to the layer's compute dtype; tables of mixed policies are read in float32."""
    if policy == "float64" and BACKEND in ("jax", "numpy"):
        pytest.skip("Keras has no float64 here unless JAX is asked for it")
    dtype = policy.removeprefix("mixed_")
    x, q = cases.random((2, 7, 24), dtype), cases.random((2, 7, 4, 16), dtype)
    layer = SinusoidalEncoding(dtype=policy)
    check(
        layer(ops.convert_to_tensor(x.astype(np.float32), "float32"), start_index=1001),
        fastpe.add_encoding(x.astype(np.float32).astype(x.dtype), offset=1001),
    )
    given = ops.cast(ops.convert_to_tensor(q.astype(np.float32)), dtype)
    check(RotaryEmbedding(dtype=policy)(given), fastpe.apply_rotary(q.astype(np.float32).astype(q.dtype), seq_axis=1))
    ids = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
    embedding = TokenAndPositionEmbedding(11, 9, 24, encoding="sinusoidal", dtype=policy)
    made = embedding(ids)
    (table,) = (host(weight.value) for weight in embedding.weights)
    assert str(table.dtype) == ("float32" if policy.startswith("mixed") else dtype)
    check(made, fastpe.embed(ids, table, "sinusoidal", dtype=dtype))
    real = np.array([0.25, 1000.5, 2000.75, 3.0, 4.0, 5.0, 6.0], np.float32)  # which bfloat16 would round
    check(layer(np.zeros_like(x, np.float32), positions=real), fastpe.add_encoding(np.zeros_like(x), positions=real))


# ---- what is refused ---------------------------------------------------------------------------------------------------------

X = np.ones((2, 6, 8), np.float32)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an odd width": (
        lambda: RotaryEmbedding()(X[..., :7]),
        ValueError,
        "feature_axis must be known, and even, got 7.*rotary_dim",
    ),
    "an unknown width": (lambda: RotaryEmbedding()(keras.Input((3, None))), ValueError, "must be known, and even, got None"),
    "a rope_type": (
        lambda: RotaryEmbedding(rope_type="ntk"),
        ValueError,
        "rope_type must be one of 'linear', 'dynamic', 'yarn', got str 'ntk'",
    ),
    "one axis": (
        lambda: RotaryEmbedding(sequence_axis=2)(X),
        ValueError,
        r"two axes of the inputs, got \(2, -1\) for shape \(2, 6, 8\)",
    ),
    "no axis": (lambda: RotaryEmbedding(sequence_axis=3)(X), ValueError, "sequence_axis and feature_axis must be two axes"),
    "a factor": (lambda: RotaryEmbedding(scaling_factor=0.5), ValueError, "factor must be at least 1"),
    "a wavelength": (lambda: SinusoidalEncoding(-1), ValueError, "base must be greater than 0"),
    "a name": (lambda: SinusoidalEncoding(encoding="sine"), TypeError, "SinusoidalEncoding: encoding must be.*got 'sine'"),
    "a rotation that is added": (lambda: SinusoidalEncoding(encoding=Rotary()), TypeError, "SinusoidalEncoding"),
    "a sinusoid that rotates": (lambda: RotaryEmbedding(encoding=Sinusoidal()), TypeError, "RotaryEmbedding"),
    "a table": (
        lambda: SinusoidalEncoding(encoding=Learned(X[0])),
        TypeError,
        "(?s)must consist of numbers.*TokenAndPositionEmbedding",
    ),
    "ids": (lambda: SinusoidalEncoding()(X.astype(np.int32)), TypeError, "must be floating-point.*Embed ids first"),
    "no sequence_length": (lambda: TokenAndPositionEmbedding(9, None, 4), TypeError, "sequence_length must be an integer"),
    "no rows": (lambda: TokenAndPositionEmbedding(0, 8, 4), ValueError, "vocabulary_size must be at least 1"),
    "too many": (
        lambda: TokenAndPositionEmbedding(9, 8, 4)(np.ones((2, 9), np.int32)),
        ValueError,
        r"positions must lie in \[0, 8\), the sequence_length, got 9 from 0 on.*'sinusoidal' has no end",
    ),
    "too late": (
        lambda: TokenAndPositionEmbedding(9, 8, 4)(np.ones((2, 3), np.int32), start_index=6),
        ValueError,
        "3 from 6 on",
    ),
    "a scale": (lambda: SinusoidalEncoding(input_scale="2"), TypeError, "input_scale must be a real number"),
    "a bias": (lambda: ALiBiLayer(0), ValueError, "max_bias must be greater than 0"),
    "no heads": (
        lambda: ALiBiLayer()(X[0]),
        TypeError,
        "ALiBi: the size of axis -3, of heads, must be an integer",
    ),
    "causal": (lambda: ALiBiLayer(causal=1), TypeError, "causal must be True or False"),
    "an argument": (lambda: RotaryEmbedding(denominator_dim=4), ValueError, "denominator_dim"),
    "positions of another length": (lambda: SinusoidalEncoding()(X, positions=np.arange(5)), Exception, "(?i)position|shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    make, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        make()


@pytest.mark.skipif(HAS_KERNELS, reason="kernels do all of it")
@pytest.mark.parametrize(
    "encoding",
    [Rotary(sections=(1, 1, 2)), Rotary(xpos_scale_base=512.0), Rotary(scaling=scaling.DynamicNTK(2.0, 4))],
    ids=["sections", "xpos", "length"],
)
def test_what_only_kernels_do(encoding):
    with pytest.raises(TypeError, match=f"encoding must have positions of one axis.* on {BACKEND}.*PyTorch or JAX"):
        RotaryEmbedding(encoding=encoding)(X)
