"""
A Vision Transformer at another resolution
==========================================

A small Vision Transformer learns on pictures of 8 x 8 patches in which of nine fields a bright spot lies, and then reads the same kind
of picture in up to 20 x 20 patches. What you will see: how often it is right with a learned table, resampled as a picture or stretched
as if it were a line of text, and with sinusoids of a grid, as they are or stretched onto the trained one.
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import fastpe
from fastpe.torch import functional

PATCH, TRAINED, WIDTH, STEPS, SIDES = 4, 8, 48, 150, (8, 12, 16, 20)


# %%
# The pictures
# ------------
# A bright spot in noise. At a higher resolution it covers more pixels.
def pictures(side, count, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator)
    lines = (torch.arange(side * PATCH) + 0.5) / (side * PATCH)
    rows, columns = (torch.exp(-(((lines - centres[:, i, None]) * 16) ** 2)) for i in (0, 1))
    spots = 3 * rows[:, :, None] * columns[:, None, :]
    field = (centres * 3).long()
    return spots + 0.2 * torch.randn(spots.shape, generator=generator), field[:, 0] * 3 + field[:, 1]


# %%
# The model
# ---------
# ``encoding`` is added to the patches: ``fastpe.Learned(table)``, which is trained, or a ``fastpe.Grid``, which need not be. The table
# starts as sinusoids: from random numbers it would take a real model's training to become smooth.
class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Linear(PATCH**2, WIDTH)
        self.table = nn.Parameter(fastpe.add_encoding(torch.zeros(TRAINED**2, WIDTH), fastpe.Grid.mae((TRAINED, TRAINED))))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 9)

    def forward(self, images, encoding):
        x = F.unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)  # (B, T, 16), row after row
        x = functional.add_encoding(self.patches(x), encoding)
        return self.head(self.blocks(x).mean(1))


def train(encoding):
    torch.manual_seed(0)
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        images, fields = pictures(TRAINED, 48, step)
        loss = F.cross_entropy(model(images, encoding(model)), fields)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


# %%
# At other resolutions
# --------------------
learned = train(lambda model: fastpe.Learned(model.table))
sines = train(lambda model: fastpe.Grid.mae((TRAINED, TRAINED)))
found, table = {}, learned.table.data
for name, model, encoding, style in (
    ("learned, resampled as a picture", learned, lambda n: fastpe.Learned(fastpe.resample(table, (n, n))), "-o"),
    ("learned, stretched as a line", learned, lambda n: fastpe.Learned(fastpe.resample(table, n * n)), "--o"),
    ("grid of sines, onto the trained one", sines, lambda n: fastpe.Grid.mae((n, n), base_size=TRAINED), "-s"),
    ("grid of sines, as it is", sines, lambda n: fastpe.Grid.mae((n, n)), "--s"),
):
    shares = []
    for side in SIDES:
        images, fields = pictures(side, 128, 10**6)
        shares.append((model(images, encoding(side)).argmax(-1) == fields).float().mean().item())
    found[name] = shares, style
    print(f"{name:36}", "  ".join(f"{side} x {side}: {share:4.0%}" for side, share in zip(SIDES, shares, strict=True)))
assert found["learned, resampled as a picture"][0][2] > found["learned, stretched as a line"][0][2] + 0.2
assert found["grid of sines, onto the trained one"][0][2] > found["grid of sines, as it is"][0][2] + 0.2

# %%
figure, axes = plt.subplots(figsize=(6, 3.8), dpi=150, layout="constrained")
for name, (shares, style) in found.items():
    axes.plot(SIDES, [100 * share for share in shares], style, color="#0072B2" if "learned" in name else "#D55E00", label=name)
axes.set_xticks(SIDES, [f"{side} x {side}" for side in SIDES])
axes.set(
    title="Which positions survive another resolution?",
    xlabel="patches (trained: 8 x 8)",
    ylabel="fields found, %",
    ylim=(0, 102),
)
axes.grid(color="0.9")
axes.legend(frameon=False, fontsize=9)
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
