"""Read a text in blocks over a cache of keys and values: the loss of each block, and what a question is answered after some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .texts import BLOCK, Key, Text

__all__ = ["answer", "cache", "cost", "read", "slide"]

Tell = Callable[[float], None]


class _Kept(DynamicLayer):
    """A layer's keys and values in memory that is allocated once: no copy at each step, and steps are taken back at no cost."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, keys: Any, values: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.both = [new.new_empty(*new.shape[:-2], self.capacity, new.shape[-1]) for new in (keys, values)]
        begin = self.get_seq_length()
        end = begin + keys.shape[-2]
        for all_of_them, new in zip(self.both, (keys, values), strict=True):
            all_of_them[..., begin:end, :] = new
        self.keys, self.values = (all_of_them[..., :end, :] for all_of_them in self.both)
        return self.keys, self.values


def cache(model: Any, capacity: int) -> Any:
    """An empty cache for so many tokens."""
    empty = DynamicCache()
    empty.layers = [_Kept(capacity) for _ in range(model.config.num_hidden_layers)]
    return empty


def cost(model: Any, begin: int, count: int) -> float:
    """Multiplications, in 10^9, to read ``count`` tokens after ``begin`` others."""
    config = model.config
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    share = config.num_key_value_heads / heads
    weights = config.num_hidden_layers * (width * width * (2 + 2 * share) + 3 * width * inner) + width * config.vocab_size
    attention = config.num_hidden_layers * width * 2 * (begin + count)
    return count * (weights + attention) / 1e9


def read(model: Any, text: Text, asked: tuple[int, ...], tell: Tell) -> dict[str, Any]:
    """Read the text once; after each length of ``asked`` ask for the keys before it. ``tell`` is called with the cost of each step."""
    most = max((len(key.question + key.digits) for key in text.keys), default=0)
    kept, sums, answers = cache(model, len(text.ids) + most), list[dict[str, Any]](), list[dict[str, Any]]()
    for begin in range(0, len(text.ids), BLOCK):
        scores = _step(model, text, begin, begin + BLOCK, kept)
        sums.append(_judge(scores, text, begin))
        del scores
        tell(cost(model, begin, BLOCK))
        if begin + BLOCK in asked:
            for key in text.asked(begin + BLOCK):
                answers.append({"length": begin + BLOCK, "begin": key.begin, **answer(model, key, kept)})
                tell(cost(model, begin + BLOCK, len(key.question)))
    return {"blocks": sums, "answers": answers}


def slide(model: Any, text: Text, window: int, tell: Tell) -> dict[str, Any]:
    """Read the text in windows that overlap by half; the second half of each is judged, and all of the first window."""
    sums = []
    for start in range(0, len(text.ids) - window + 1, window // 2):
        kept = cache(model, window)
        for begin in range(0, window, BLOCK):
            scores = _step(model, text, start + begin, start + begin + BLOCK, kept)
            if start == 0 or begin >= window // 2:
                sums.append(_judge(scores, text, start + begin))
            tell(cost(model, begin, BLOCK))
    return {"blocks": sums, "answers": []}


def answer(model: Any, key: Key, kept: Any) -> dict[str, Any]:
    """Ask for a key; the cache is left as it was. Each digit is judged after the true ones before it."""
    before = kept.get_seq_length()
    tokens = torch.tensor([key.question + key.digits[:-1]])
    scores = model(tokens, past_key_values=kept, logits_to_keep=len(key.digits)).logits[0].float()
    kept.crop(before - kept.get_seq_length())
    digits = torch.tensor(key.digits)
    nats = torch.nn.functional.cross_entropy(scores, digits).item()
    return {"nats": round(nats, 4), "right": (scores.argmax(-1) == digits).tolist()}


def _step(model: Any, text: Text, begin: int, end: int, kept: Any) -> Any:
    """The scores of the next token at each of these, as the cache goes on."""
    return model(torch.tensor([text.ids[begin:end]]), past_key_values=kept).logits[0]


def _judge(scores: Any, text: Text, begin: int) -> dict[str, Any]:
    """Mean loss and share of right tokens of a block, over the tokens of the text itself."""
    end = min(begin + len(scores) + 1, len(text.ids))
    targets = torch.tensor(text.ids[begin + 1 : end])
    chosen = torch.tensor(text.scored[begin + 1 : end])
    losses = torch.cat(list(_losses(scores[: len(targets)], targets)))[chosen]
    right = (scores[: len(targets)].argmax(-1) == targets)[chosen]
    return {
        "loss": round(losses.mean().item(), 4),
        "accuracy": round(right.float().mean().item(), 4),
        "tokens": int(chosen.sum()),
    }


def _losses(scores: Any, targets: Any, most: int = 256) -> Iterator[Any]:
    """A few at a time: the scores of a block are 200 MB, and so would be each intermediate result."""
    for some, wanted in zip(scores.split(most), targets.split(most), strict=True):
        yield torch.nn.functional.cross_entropy(some.float(), wanted, reduction="none")
