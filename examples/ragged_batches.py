"""
Ragged batches, as a server has them
====================================

A server's requests have prompts of all lengths, and one token of each sequence follows at each step. What you will see: how long
it takes to rotate the queries and keys of 48 requests one by one, padded to the longest, and packed behind each other; and that the
bits are the same in all three.
"""

import itertools
import statistics
import sys
import time

import matplotlib.pyplot as plt
import numpy as np

import fastpe

# %%
# The requests
# ------------
# Most prompts are short and a few are long. Queries have 8 heads of 64 channels and keys 2, as in a small Llama.
rng = np.random.default_rng(0)
lengths = np.clip(rng.lognormal(5.0, 1.0, 48), 8, 2048).astype(int)
bounds = np.concatenate(([0], np.cumsum(lengths)))
rope = fastpe.Rotary(500_000.0)
tokens, longest = int(bounds[-1]), int(lengths.max())
print(f"{len(lengths)} prompts of {lengths.min()} to {longest} tokens, {tokens:,} in all")
q, k = (rng.standard_normal((tokens, heads, 64), dtype=np.float32) for heads in (8, 2))

# %%
# Prefill, in three ways
# ----------------------
# Packed, one call gets the boundaries of the prompts; each counts from 0. It is what flash-attn calls ``cu_seqlens``.
packed = [q.copy(), k.copy()]
padded = [np.zeros((len(lengths), longest, *x.shape[1:]), np.float32) for x in (q, k)]
for x, rows in zip((q, k), padded, strict=True):
    for row, (begin, end) in zip(rows, itertools.pairwise(bounds), strict=True):
        row[: end - begin] = x[begin:end]
single = [[x[begin:end].copy() for x in (q, k)] for begin, end in itertools.pairwise(bounds)]


def one_by_one():
    for one_q, one_k in single:
        fastpe.apply_rotary(one_q, one_k, rope, seq_axis=0)


ways = {
    "prefill, one by one": one_by_one,
    "prefill, padded": lambda: fastpe.apply_rotary(*padded, rope, seq_axis=1),
    "prefill, packed": lambda: fastpe.apply_rotary(*packed, rope, seq_axis=0, cu_seqlens=bounds),
}
for way in ways.values():
    way()  # once, to compare
for i in range(2):
    together = np.concatenate([pair[i] for pair in single])
    kept = np.concatenate([rows[:length] for rows, length in zip(padded[i], lengths, strict=True)])
    assert (packed[i] == together).all()
    assert (packed[i] == kept).all()
print(f"same bits in three ways; padding rotates {padded[0].shape[0] * longest / tokens:.1f} rows for each that is needed")
assert padded[0].shape[0] * longest > 3 * tokens

# %%
# Decode: a token of each sequence
# --------------------------------
# Sequence b has ``lengths[b]`` tokens so far, so that its next one stands there.
next_q, next_k = (rng.standard_normal((len(lengths), heads, 1, 64), dtype=np.float32) for heads in (8, 2))


def decode_one_by_one():
    for one_q, one_k, length in zip(next_q, next_k, lengths.tolist(), strict=True):
        fastpe.apply_rotary(one_q, one_k, rope, offset=length)


ways["decode, one by one"] = decode_one_by_one
ways["decode, one call"] = lambda: fastpe.apply_rotary(next_q, next_k, rope, offset=lengths)

# %%
# How long it takes
# -----------------
# Ways take turns, so that a busy moment of the machine meets all of them; of each the median counts.
seconds = {name: [] for name in ways}
for _ in range(30):
    for name, way in ways.items():
        began = time.perf_counter()
        way()
        seconds[name].append(time.perf_counter() - began)
medians = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
for name, taken in medians.items():
    print(f"{name:20} {taken:8.3f} ms")

figure, panels = plt.subplots(1, 2, figsize=(6, 3), dpi=150, layout="constrained")
for axes, step in zip(panels, ("prefill", "decode"), strict=True):
    shown = {name.split(", ")[1]: taken for name, taken in medians.items() if name.startswith(step)}
    bars = axes.barh(list(shown), shown.values(), color=["0.7", "0.7", "#0072B2"][-len(shown) :])
    axes.bar_label(bars, fmt="%.2g", padding=2)
    axes.set(title=step, xlabel="milliseconds")
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
figure.suptitle("What does a ragged batch cost to rotate?")
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
