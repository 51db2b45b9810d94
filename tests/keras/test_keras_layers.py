"""The layers on the backend that Keras runs on here; `test_keras_backends.py` has the others. NumPy's verbs say what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import ops  # noqa: E402

import fastpe  # noqa: E402
from fastpe import ALiBi, Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.keras import ALiBi as ALiBiLayer  # noqa: E402
from fastpe.keras import RotaryEmbedding, SinusoidalEncoding, TokenAndPositionEmbedding  # noqa: E402

BACKEND = keras.backend.backend()
HAS_KERNELS = BACKEND in ("torch", "jax")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, of tensors
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras trains nothing with NumPy")
with np.load(Path(__file__).resolve().parents[1] / "data" / "peers.npz") as arrays:
    HUB = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("keras_hub/")}


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


# ---- keras-hub ---------------------------------------------------------------------------------------------------------------

# Its angles are float32: they err by 1.2e-7 of the largest, which is 40 + 6 or 1000 + 6 here; stored by tests/data/make_peers.py.
YARN = {"rope_type": "yarn", "scaling_factor": 4.0, "original_max_position_embeddings": 2048}
SAME: dict[str, tuple[dict[str, Any], int]] = {
    "rotated": ({}, 40),
    "linear": ({"rope_type": "linear", "scaling_factor": 4.0}, 1000),
    "dynamic": ({"rope_type": "dynamic", "scaling_factor": 4.0}, 1000),
    "yarn": (YARN, 1000),
    "yarn_whole": ({**YARN, "truncate": False}, 1000),
}


@pytest.mark.parametrize("name", SAME)
def test_rotations_are_keras_hubs(name):
    options, start = SAME[name]
    made = host(RotaryEmbedding(**options)(HUB["q"], start_index=start))
    np.testing.assert_allclose(made, HUB[name], rtol=0, atol=(1e-6 + 1.2e-7 * (start + 6)) * np.abs(HUB["q"]).max())


def test_sums_and_embeddings_are_keras_hubs():
    layer = TokenAndPositionEmbedding(12, 6, 16)
    layer.build((1, 6))
    layer.set_weights([HUB["words"], HUB["places"]])
    np.testing.assert_allclose(host(layer(HUB["ids"])), HUB["embedded"], rtol=0, atol=1e-6)
    for name, start in (("sine", 0), ("sine_7", 7)):
        np.testing.assert_allclose(host(SinusoidalEncoding()(HUB["x"], start_index=start)), HUB[name], rtol=0, atol=5e-6)


def test_keras_hubs_own_layers_here():
    layers = pytest.importorskip("keras_hub").layers
    x, scores = cases.random((2, 50, 32), "float32"), cases.random((2, 6, 9, 9), "float32")
    theirs, ours = layers.AlibiBias()(scores), ALiBiLayer()(scores)
    mask = np.tri(9, dtype=bool)
    chances = [host(ops.softmax(ops.where(mask, one, -np.inf))) for one in (theirs, ours)]
    np.testing.assert_allclose(*chances, atol=2e-6)
    np.testing.assert_allclose(host(theirs)[..., -1, :], host(ours)[..., -1, :], atol=1e-5)  # for the last query it is the same
    for start in (0, 500, 100_000, 1_000_000):
        exact = fastpe.encode(np.arange(start, start + 50), 32, dtype="float64")
        found = host(layers.SinePositionEncoding()(x, start_index=start))
        own = host(SinusoidalEncoding()(np.zeros_like(x), start_index=start))
        assert np.abs(own - exact).max() <= 2e-7
        assert np.abs(found - exact).max() <= 4e-7 * (start + 50)  # float32 angles
        if start >= 100_000:
            assert np.abs(found - exact).max() > 1e-3
    for width in (32, 64):
        q = cases.random((2, 7, 3, width), "float32")
        for options in (
            {},
            {"max_wavelength": 500_000},
            {"scaling_factor": 2.5},
            YARN,
            {**YARN, "beta_fast": 20.0, "beta_slow": 2.0},
        ):
            for axes in ({}, {"sequence_axis": 2}, {"sequence_axis": -3, "feature_axis": 3}):
                both = [kind(**options, **axes)(q, start_index=3) for kind in (layers.RotaryEmbedding, RotaryEmbedding)]
                np.testing.assert_allclose(*map(host, both), atol=2e-5)


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


# ---- models ------------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Scores(keras.layers.Layer):
    def call(self, q: Any, k: Any) -> Any:
        return ops.einsum("bthd,bshd->bhts", q, k)


@keras.saving.register_keras_serializable("tests")
class Mixed(keras.layers.Layer):
    def call(self, scores: Any, x: Any) -> Any:
        return ops.einsum("bts,bsd->btd", ops.mean(ops.softmax(scores), 1), x)


def build(layers: dict[str, Any], policy: str = "float32") -> Any:
    """A small classifier of tokens, some of whose layers are given."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32")
    x = layers["embed"](ids)
    heads = keras.layers.Reshape((-1, 2, 8), dtype=policy)(x)
    scores = layers["bias"](Scores(dtype=policy)(layers["rotate"](heads), layers["rotate"](heads)))
    x = layers["add"](Mixed(dtype=policy)(scores, x))
    return keras.Model(ids, keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling1D()(x)))


def own_layers(policy: str = "float32") -> dict[str, Any]:
    return {
        "embed": TokenAndPositionEmbedding(30, 16, 16, dtype=policy),
        "rotate": RotaryEmbedding(scaling_factor=2.0, dtype=policy),
        "bias": ALiBiLayer(causal=True, dtype=policy),
        "add": SinusoidalEncoding(encoding=Sinusoidal(layout="concatenated"), input_scale=2.0, dtype=policy),
    }


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30, (64, 12)).astype(np.int32)
    return ids, (ids[:, 0] // 10).astype(np.int32)


@trains
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_model_trains_saves_and_loads(policy, tmp_path):
    ids, labels = data()
    keras.utils.set_random_seed(0)
    model = build(own_layers(policy), policy)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=BACKEND != "torch")
    before = [host(weight) for weight in model.weights]
    losses = model.fit(ids, labels, epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((host(weight) != was).any() for weight, was in zip(model.weights, before, strict=True))
    made = model.predict(ids, verbose=0)
    assert model.predict(ids[:, :5], verbose=0).shape == (64, 3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(ids, verbose=0), made)
    found = next(layer for layer in again.layers if isinstance(layer, SinusoidalEncoding))
    assert found.encoding == Sinusoidal(layout="concatenated")
    assert (found.compute_dtype, found.input_scale) == (policy.removeprefix("mixed_"), 2.0)


class ByHand(keras.layers.Layer):
    """Learned embeddings, added up as Keras does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = keras.layers.Embedding(30, 16), keras.layers.Embedding(16, 16)

    def call(self, ids: Any) -> Any:
        return self.words(ids) + self.places(ops.arange(ops.shape(ids)[1]))


@trains
def test_training_is_that_of_layers_by_hand():
    """Gradients reach both tables and go through the others as they should: three epochs, the same weights."""
    ids, labels = data()

    def usual(x: Any, rows: Any) -> Any:
        cosine, sine = (ops.convert_to_tensor(one[:, None].astype(np.float32)) for one in (np.cos(rows), np.sin(rows)))
        u, v = ops.split(x, 2, axis=-1)
        return ops.concatenate([u * cosine - v * sine, v * cosine + u * sine], axis=-1)

    angles = np.outer(np.arange(12), 10000.0 ** (-np.arange(0, 8, 2) / 8)) / 2
    table = fastpe.encode(range(12), 16, Sinusoidal(layout="concatenated"))
    bias = np.triu(np.full((12, 12), -1e9), 1) + ALiBi(2).values(np.arange(12)[:, None] - np.arange(12))
    fixed = {
        "rotate": keras.layers.Lambda(lambda x: usual(x, angles), output_shape=(None, 2, 8)),
        "bias": keras.layers.Lambda(lambda x: x + ops.cast(bias, "float32"), output_shape=(2, None, None)),
        "add": keras.layers.Lambda(lambda x: 2 * x + ops.convert_to_tensor(table), output_shape=(None, 16)),
    }
    models = [build(own_layers()), build({"embed": ByHand(), **fixed})]
    models[1](ids)
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        model.fit(ids, labels, epochs=3, batch_size=16, shuffle=False, verbose=0)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_shapes_and_masks():
    spec = keras.KerasTensor((None, None, 24), "float32")
    for layer in (SinusoidalEncoding(dtype="mixed_bfloat16"), RotaryEmbedding(dtype="mixed_bfloat16")):
        made = layer.compute_output_spec(spec, start_index=keras.KerasTensor((), "int32"))
        assert (made.shape, made.dtype) == ((None, None, 24), "bfloat16")
        assert layer.compute_output_shape((2, 7, 24)) == (2, 7, 24)
        assert layer.supports_masking
    ids = keras.Input((None,), dtype="int32")
    embedding = TokenAndPositionEmbedding(9, 8, 24, mask_zero=True)
    start = keras.Input((), dtype="int32")
    x = SinusoidalEncoding()(embedding(ids), start_index=start)
    assert (x.shape, x.dtype) == ((None, None, 24), "float32")
    given = np.array([[1, 2, 0, 0], [3, 0, 0, 0]], np.int32)
    behind = SinusoidalEncoding()(embedding(ops.convert_to_tensor(given)))
    assert BACKEND == "numpy" or (host(behind._keras_mask) == (given != 0)).all()
    assert TokenAndPositionEmbedding(9, 8, 24).compute_mask(given, None) is None


class Around(keras.layers.Layer):
    """A layer that says nothing of its shapes: Keras traces it with sizes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [SinusoidalEncoding(), RotaryEmbedding(), SinusoidalEncoding()]

    def call(self, x: Any) -> Any:
        for layer in self.inner:
            x = layer(x)
        return x


def test_layers_inside_of_others_are_traced():
    x = keras.Input((None, 16))
    model = keras.Model(x, Around()(x))
    assert model.output_shape == (None, None, 16)
    given = cases.random((2, 7, 16), "float32")
    expected = fastpe.add_encoding(fastpe.apply_rotary(fastpe.add_encoding(given.copy())))
    np.testing.assert_allclose(host(model(given)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        SinusoidalEncoding(100, input_scale=2.0, name="a", dtype="mixed_bfloat16"),
        SinusoidalEncoding(encoding=Sinusoidal(500.0, scaling=scaling.YaRN(4.0, 2048))),
        RotaryEmbedding(5e5, 4.0, "yarn", 20.0, 2.0, 2048, False, 2, -1),
        RotaryEmbedding(encoding=Rotary(interleaved=True, scaling=scaling.Linear(2.0)), sequence_axis=-2),
        TokenAndPositionEmbedding(9, 8, 4, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02), mask_zero=True),
        TokenAndPositionEmbedding(9, None, 4, encoding="sinusoidal", scale=2.0),
        ALiBiLayer(4, causal=True),
    ],
    ids=lambda layer: layer.name,
)
def test_configurations(layer):
    text = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(text)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


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
