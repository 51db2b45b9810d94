"""Training one model: the same bits for a seed and a number of threads, from wherever it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .encodings import FINE_TUNED, Size, Training
from .files import write_torch
from .model import Decoder
from .tasks import IGNORED, Task

__all__ = ["TUNING_STEPS", "build", "train"]

BATCH, RATE, WARMUP, DECAY, LARGEST_GRADIENT = 32, 3e-3, 0.05, 0.01, 1.0
TUNING_STEPS, TUNING_BATCH, TUNING_RATE = 100, 4, 5e-4
SAVE_EVERY = 200  # steps


def build(task: Task, training: Training, size: Size, seed: int) -> Decoder:
    """Return a model with the weights with which its training starts."""
    torch.manual_seed(seed)
    return Decoder(task.tokens, task.outputs, training.make(size), size)


def train(
    task: Task,
    training: Training,
    size: Size,
    seed: int,
    steps: int,
    path: Path,
    start: Path | None,
    tell: Callable[[int], None],
) -> float:
    """Train a model and write its weights to path; return the seconds. ``tell`` is called with steps done, those of earlier runs too.

    ``start``: the weights of the model to fine-tune. The state to resume from is kept beside path meanwhile.
    """
    began, model = time.perf_counter(), build(task, training, size, seed)
    factor, batch, rate = (1, BATCH, RATE) if start is None else (FINE_TUNED, TUNING_BATCH, TUNING_RATE)
    if start is not None:
        model.load_state_dict(torch.load(start))
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=WARMUP)
    kept = {"weights": model, "optimizer": optimizer, "schedule": schedule}
    unfinished = path.with_suffix(".unfinished")
    done, before = 0, 0.0
    if unfinished.exists():
        saved = torch.load(unfinished)
        done, before = saved["done"], saved["seconds"]
        for name, part in kept.items():
            part.load_state_dict(saved[name])
        tell(done)
    model.train()
    for step in range(done, steps):
        if step > done and step % SAVE_EVERY == 0:
            state = {name: part.state_dict() for name, part in kept.items()}
            write_torch(unfinished, {**state, "done": step, "seconds": before + time.perf_counter() - began})
        rng = np.random.default_rng((seed, step))
        texts = task.batch(rng, batch, factor)
        scores = model(texts.ids, rng)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), texts.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        tell(1)
    seconds = before + time.perf_counter() - began
    write_torch(path, model.state_dict())
    unfinished.unlink(missing_ok=True)
    return seconds
