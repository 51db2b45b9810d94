"""Models with the layers: trained, saved and loaded, traced by Keras with open sizes, and their configurations."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import ops  # noqa: E402
from keras_cases import BACKEND, host, quiet, trains  # noqa: E402

import fastpe  # noqa: E402
from fastpe import ALiBi, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.keras import ALiBi as ALiBiLayer  # noqa: E402
from fastpe.keras import RotaryEmbedding, SinusoidalEncoding, TokenAndPositionEmbedding  # noqa: E402

pytestmark = quiet


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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Keras on NumPy traces with numbers of unwritten memory
def test_layers_inside_of_others_are_traced():
    x = keras.Input((None, 16))
    model = keras.Model(x, Around()(x))
    assert model.output_shape == (None, None, 16)
    given = cases.random((2, 7, 16), "float32")
    expected = fastpe.add_encoding(fastpe.apply_rotary(fastpe.add_encoding(given.copy())))
    np.testing.assert_allclose(host(model(given)), expected, atol=1e-6)


class Embedded(keras.layers.Layer):
    """A layer of a user's that embeds: Keras traces it with sizes of its own, which may be longer than any learned row."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.add = TokenAndPositionEmbedding(9, 8, 16, **options), SinusoidalEncoding(dtype=options.get("dtype"))

    def call(self, ids: Any) -> Any:
        return self.add(self.embed(ids))


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras on NumPy traces with 83 ids of unwritten memory")
@pytest.mark.parametrize("options", [{}, {"mask_zero": True}, {"encoding": "sinusoidal"}, {"dtype": "mixed_bfloat16"}], ids=str)
def test_embeddings_inside_of_others_are_traced(options):
    ids = keras.Input((None,), dtype="int32")
    layer = Embedded(**options)
    model = keras.Model(ids, layer(ids))
    dtype = options.get("dtype", "float32").removeprefix("mixed_")
    assert (model.output_shape, model.output.dtype) == ((None, None, 16), dtype)
    given = np.arange(12, dtype=np.int32).reshape(2, 6) % 9
    words, *learned = (host(weight.value) for weight in layer.embed.weights)
    places = learned[0][:6] if learned else fastpe.encode(range(6), 16)
    expected = fastpe.add_encoding(words[given] + places)
    np.testing.assert_allclose(host(model(given)).astype(np.float32), expected, atol=2e-2 if dtype == "bfloat16" else 1e-6)
    if learned:
        with pytest.raises(ValueError, match=r"positions must lie in \[0, 8\), the sequence_length, got 9 from 0 on"):
            model(np.zeros((2, 9), np.int32))


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
