"""
Train in JAX, and begin anywhere
================================

A small transformer in plain JAX learns to predict the next letter of Python's own sources, with queries and keys rotated by their
positions, 0 to 63. Then the same texts begin elsewhere; only distances count for a rotation, so nothing should change. What you will see:
the loss by where texts begin, with ``fastpe.apply_rotary`` and with the usual expression, whose angles are rounded to float32.
"""

import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fastpe

WIDTH, HEADS, LAYERS, LENGTH, BATCH, STEPS = 64, 4, 2, 64, 16, 300
STARTS = (0, 10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 2 * 10**9)
files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
corpus = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)


def texts(count, seed):
    starts = np.random.default_rng(seed).integers(0, len(corpus) - LENGTH - 1, count)
    return jnp.asarray(corpus[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32))


# %%
# Two rotations
# -------------
# Both take the position of the first row as a traced number: one program serves every start. fastpe's is exact at any position.
def exact(q, k, start):
    return fastpe.apply_rotary(q, k, offset=start)


def usual(q, k, start):
    positions = (start + jnp.arange(q.shape[-2])).astype(jnp.float32)
    angles = positions[:, None] * 10000.0 ** (-jnp.arange(0, q.shape[-1], 2) / q.shape[-1])
    cosines, sines = (jnp.concatenate([one, one], -1) for one in (jnp.cos(angles), jnp.sin(angles)))

    def rotated(x):
        first, second = jnp.split(x, 2, -1)
        return x * cosines + jnp.concatenate([-second, first], -1) * sines

    return rotated(q), rotated(k)


# %%
# The model
# ---------
# Parameters are a dictionary, and a layer is one step of ``lax.scan``: it rotates queries and keys, (B, H, T, D), where it would
# multiply by cosines and sines. Gradients go through the rotation as through anything else.
def parameters(seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 5))
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    layers = {name: jax.random.normal(next(keys), (LAYERS, *shape)) * shape[0] ** -0.5 for name, shape in shapes.items()}
    return {"table": jax.random.normal(next(keys), (256, WIDTH)) * 0.1, "layers": layers}


def normed(x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def loss(given, ids, start, rotate):
    def layer(x, w):
        split = jnp.split(normed(x) @ w["qkv"], 3, -1)
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for part in split)
        q, k = rotate(q, k, start)
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5, -jnp.inf)
        x = x + (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape) @ w["out"]
        return x + jax.nn.gelu(normed(x) @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, given["table"][ids[:, :-1]], given["layers"])
    scores = jax.nn.log_softmax(4 * normed(x) @ given["table"].T)
    return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean() / np.log(2)


@jax.jit
def step(given, moments, ids, rate):  # Adam
    value, gradient = jax.value_and_grad(loss)(given, ids, 0, exact)
    moments = jax.tree.map(lambda m, g: jnp.stack([0.9 * m[0] + 0.1 * g, 0.98 * m[1] + 0.02 * g * g]), moments, gradient)
    return value, jax.tree.map(lambda w, m: w - rate * m[0] / (jnp.sqrt(m[1]) + 1e-8), given, moments), moments


given = parameters()
moments = jax.tree.map(lambda w: jnp.zeros((2, *w.shape)), given)
for number in range(STEPS):
    value, given, moments = step(given, moments, texts(BATCH, number), 3e-3 * min(number / 20, 1 - number / STEPS))
    if number % 100 == 0 or number == STEPS - 1:
        print(f"step {number:3}: {value:.2f} bits a letter")

# %%
# Texts that begin elsewhere
# --------------------------
unseen, found = texts(64, 10**6), {}
for name, rotate in (("fastpe.apply_rotary", exact), ("the usual expression, float32", usual)):
    measured = jax.jit(lambda ids, start, rotate=rotate: loss(given, ids, start, rotate))
    found[name] = [float(measured(unseen, start)) for start in STARTS]
    print(f"{name:30}", "  ".join(f"{start:.0e}: {one:.3f}" for start, one in zip(STARTS, found[name], strict=True)))
ours, others = found.values()
assert max(ours) - min(ours) < 1e-4
assert abs(others[0] - ours[0]) < 1e-4
assert others[-1] - ours[-1] > 0.3

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
for (name, losses), style, color in zip(found.items(), ("-o", "--s"), ("#0072B2", "#D55E00"), strict=True):
    axes.plot([max(start, 100) for start in STARTS], losses, style, color=color, label=name)
axes.set_xscale("log")
axes.set_xticks([max(start, 100) for start in STARTS], ["0", *(f"{start:.0e}" for start in STARTS[1:])])
axes.minorticks_off()
axes.set(title="Does it matter where a text begins?", xlabel="position of the first letter", ylabel="loss, bits a letter")
axes.grid(color="0.9")
axes.legend(frameon=False, fontsize=9)
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
