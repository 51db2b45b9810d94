"""
Write text with Keras
=====================

A small transformer in Keras learns a few lines by heart, letter by letter, and goes on greedily from a beginning: with learned positions,
and with sinusoids in their place. What you will see: how the loss of both falls, what they write, and that the one with sinusoids also
reads a text longer than any that it was trained on, for which learned positions have no rows.
"""

import os
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")  # or "jax", or "tensorflow": before keras is imported

import keras
import matplotlib.pyplot as plt
import numpy as np

from fastpe.keras import TokenAndPositionEmbedding

warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras' own, of tensors
LENGTH, WIDTH, HEADS, EPOCHS = 48, 64, 4, 30

# %%
# The text
# --------
# Each window of letters is an input, and the same window one letter later is what the model should say.
text = """the cat sat on the mat and looked at the moon.
the moon looked at the sea and sang to the fish.
the fish swam in the sea and dreamt of the cat.
"""
letters = sorted(set(text))
ids = np.array([letters.index(letter) for letter in text])
windows = np.lib.stride_tricks.sliding_window_view(ids, LENGTH + 1)


# %%
# The model
# ---------
# The first layer looks letters up and adds their positions in one pass. A causal mask hides what comes later.
def block(x):
    normal = keras.layers.LayerNormalization()(x)
    x = x + keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(normal, normal, use_causal_mask=True)
    hidden = keras.layers.Dense(4 * WIDTH, activation="gelu")(keras.layers.LayerNormalization()(x))
    return x + keras.layers.Dense(WIDTH)(hidden)


def generator(encoding):
    tokens = keras.Input((None,), dtype="int32")
    x = TokenAndPositionEmbedding(len(letters), LENGTH, WIDTH, encoding=encoding)(tokens)
    return keras.Model(tokens, keras.layers.Dense(len(letters))(keras.layers.LayerNormalization()(block(x))))


# %%
# Training and writing
# --------------------
def train(encoding):
    keras.utils.set_random_seed(0)
    model = generator(encoding)
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, model.fit(windows[:, :-1], windows[:, 1:], batch_size=16, epochs=EPOCHS, verbose=0).history["loss"]


def continued(model, start, length):
    while len(start) < length:
        tokens = np.array([[letters.index(letter) for letter in start[-LENGTH:]]])
        start += letters[int(keras.ops.argmax(model(tokens)[0, -1]))]
    return start


losses = {}
for name, encoding in (("learned positions", None), ("sinusoids", "sinusoidal")):
    model, losses[name] = train(encoding)
    print(f"{name}: {losses[name][-1]:.2f} nats a letter; writes {continued(model, 'the moon look', 45)!r}")
    assert losses[name][-1] < losses[name][0] / 5

# %%
# Longer than it was trained on
# -----------------------------
long = np.resize(ids, (1, 3 * LENGTH))
assert model(long).shape == (1, 3 * LENGTH, len(letters))
try:
    generator(None)(long)
except ValueError as error:
    refused = str(error)
    print(f"{3 * LENGTH} letters at once: sinusoids read them, learned positions do not")
assert "the sequence_length" in refused

figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
for (name, values), style, color in zip(losses.items(), ("--", "-"), ("#D55E00", "#0072B2"), strict=True):
    axes.plot(range(1, EPOCHS + 1), values, style, color=color, label=name)
axes.set(title="How fast are a few lines learned by heart?", xlabel="epoch", ylabel="loss, nats a letter", ylim=0)
axes.grid(color="0.9")
axes.legend(frameon=False)
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
