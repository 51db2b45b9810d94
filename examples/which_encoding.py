"""
Which encoding for my length?
=============================

The same small model learns to write Python's help topics, from texts of 48 letters, with four encodings of positions. Then it reads texts
of up to eight times that length. What you will see: which encoding is best at the trained length and which ones hold beyond it, in half a
minute. The lab of a clone, ``make lab``, does it thoroughly: 25 encodings, three tasks, several seeds.
"""

import sys
from pydoc_data import topics

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import fastpe
from fastpe.torch import functional

LENGTH, WIDTH, HEADS, LAYERS, STEPS, BATCH, FACTORS = 48, 64, 4, 2, 250, 16, (1, 2, 4, 8)

# %%
# The text
# --------
text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text[:300_000]])
training, held_out = ids[:270_000], ids[270_000:]


# %%
# Where an encoding goes in
# -------------------------
# One is added to the rows of tokens, one rotates queries and keys, one is added to the scores, and one is none.
class Decoder(nn.Module):
    def __init__(self, encoding):
        super().__init__()
        self.encoding = encoding
        self.tokens = nn.Embedding(len(letters), WIDTH)
        self.layers = nn.ModuleList(self.layer() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(letters)))

    def layer(self):
        mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        return nn.ModuleList((nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), mlp))

    def forward(self, ids):
        x, encoding = self.tokens(ids), self.encoding
        B, T, C = x.shape
        if isinstance(encoding, fastpe.Sinusoidal):
            x = functional.add_encoding(x, encoding)
        ahead = torch.full((T, T), -torch.inf).triu(1)
        for norm, qkv, mixed, mlp in self.layers:
            q, k, v = qkv(norm(x)).view(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
            if isinstance(encoding, fastpe.Rotary):
                q, k = functional.apply_rotary(q, k, encoding)
            scores = q @ k.mT * q.shape[-1] ** -0.5 + ahead
            if isinstance(encoding, fastpe.ALiBi):
                scores = functional.add_bias(scores, encoding)
            x = x + mixed((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))
            x = x + mlp(x)
        return self.head(x)


# %%
# Training, and longer texts
# --------------------------
# Whatever the length, the same 16 letters at the end of each text are judged: more text before them should help, not harm.
def windows(source, starts, length):
    rows = source[starts[:, None] + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def train(encoding):
    torch.manual_seed(0)
    model = Decoder(encoding)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        before, after = windows(training, torch.randint(len(training) - LENGTH, (BATCH,)), LENGTH)
        loss = F.cross_entropy(model(before).flatten(0, 1), after.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def judge(model, length):
    ends = torch.linspace(FACTORS[-1] * LENGTH, len(held_out) - 1, 96).long()
    before, after = windows(held_out, ends - length, length)
    return F.cross_entropy(model(before)[:, -16:].flatten(0, 1), after[:, -16:].flatten()).item()


encodings = {"none": None, "sinusoidal": fastpe.Sinusoidal(), "rotary": fastpe.Rotary(), "ALiBi": fastpe.ALiBi(HEADS)}
found = {name: [judge(model, f * LENGTH) for f in FACTORS] for name, model in ((n, train(e)) for n, e in encodings.items())}
for name, losses in found.items():
    print(
        f"{name:11}", "  ".join(f"{f * LENGTH}: {loss:.2f}" for f, loss in zip(FACTORS, losses, strict=True)), "nats a letter"
    )
assert found["rotary"][0] < found["none"][0]
assert found["ALiBi"][-1] < found["sinusoidal"][-1] - 0.5

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
for (name, losses), style, colour in zip(
    found.items(), (":x", "--s", "-o", "-.^"), ("0.4", "#D55E00", "#0072B2", "#009E73"), strict=True
):
    axes.plot([f * LENGTH for f in FACTORS], losses, style, color=colour, label=name)
axes.set_xscale("log", base=2)
axes.set_xticks([f * LENGTH for f in FACTORS], [f * LENGTH for f in FACTORS])
axes.set(
    title="Which encoding holds beyond the trained length?", xlabel="letters read (trained: 48)", ylabel="loss, nats a letter"
)
axes.grid(color="0.9")
axes.legend(frameon=False)
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
