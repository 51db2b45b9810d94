"""
Add RoPE to a nanoGPT and train it
==================================

A small GPT in the style of nanoGPT learns to write Python's help topics, letter by letter: once with its table of learned positions, and
once with rotary positions (RoPE). It takes one line in the attention, and the table goes. What you will see: which of the two learns
faster, how the one with RoPE does on texts of twice the length, for which the other has no rows, and what it writes.
"""

import sys
from pydoc_data import topics

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from fastpe.torch import functional

LENGTH, WIDTH, HEADS, LAYERS, STEPS, BATCH = 64, 96, 4, 2, 200, 16

# %%
# The text
# --------
text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text[:300_000]])
training, held_out = ids[:270_000], ids[270_000:]


def loss_of(model, source, length, count):
    windows = source[torch.randint(len(source) - length, (count, 1)) + torch.arange(length + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


# %%
# The model
# ---------
# ``apply_rotary`` returns q and k rotated by where they stand, with gradients. It keeps no table and knows no longest length.
class Block(nn.Module):
    def __init__(self, rope):
        super().__init__()
        self.rope = rope
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if self.rope:
            q, k = functional.apply_rotary(q, k)  # the line
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, rope):
        super().__init__()
        self.wte = nn.Embedding(len(letters), WIDTH)
        self.wpe = None if rope else nn.Embedding(LENGTH, WIDTH)  # not needed any more
        self.blocks = nn.Sequential(*(Block(rope) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(letters)))

    def forward(self, ids):
        where = 0 if self.wpe is None else self.wpe(torch.arange(ids.shape[1]))
        return self.head(self.blocks(self.wte(ids) + where))


# %%
# Training
# --------
def train(rope):
    torch.manual_seed(0)
    model, losses = GPT(rope), []
    torch.manual_seed(1)  # the same texts for both
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        loss = loss_of(model, training, LENGTH, BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model, losses


def judge(model, length):
    torch.manual_seed(2)
    return loss_of(model, held_out, length, 64).item()


(table, table_losses), (rope, rope_losses) = train(rope=False), train(rope=True)
torch.set_grad_enabled(False)
with_table, with_rope, longer = (judge(model, n * LENGTH) for model, n in ((table, 1), (rope, 1), (rope, 2)))
print(f"held-out texts of {LENGTH} letters: {with_table:.2f} nats a letter with the table, {with_rope:.2f} with RoPE")
print(f"held-out texts of {2 * LENGTH} letters: no rows in the table, {longer:.2f} with RoPE")
assert with_rope < with_table - 0.2
assert longer < with_rope + 0.2

# %%
# What it writes
# --------------
written = torch.tensor([[letters.index(letter) for letter in "The statement "]])
while written.shape[1] < 2 * LENGTH:
    chances = (rope(written)[:, -1] / 0.5).softmax(-1)
    written = torch.cat((written, torch.multinomial(chances, 1)), 1)
print("it writes:", repr("".join(letters[i] for i in written[0])))

figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
for losses, label, style in ((table_losses, "learned table", "--"), (rope_losses, "RoPE", "-")):
    smooth = torch.tensor(losses).unfold(0, 8, 1).mean(1)
    axes.plot(range(4, 4 + len(smooth)), smooth, style, color="#D55E00" if style == "--" else "#0072B2", label=label)
axes.set(title="Does a small GPT learn faster with RoPE?", xlabel="training step", ylabel="loss, nats a letter")
axes.grid(color="0.9")
axes.legend(frameon=False)
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
