"""A long text that every Python has, its help topics, with pass keys hidden in it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pydoc_data import topics
from typing import Any

__all__ = ["BLOCK", "Key", "Text", "make"]

BLOCK = 1024  # tokens that are read at once, whose loss is one number, and that hide one key
DIGITS = 5
WORDS = (
    "apple bridge candle dolphin engine forest garden hammer island jacket kettle ladder mirror needle orange pencil "
    "queen river saddle table umbrella valley window anchor basket carpet desert eagle feather guitar honey ticket"
)
NAMES = WORDS.split()
BEGIN = "<|im_start|>user\nRemember the pass keys that are hidden in this text.\n\n"
HIDDEN = "The pass key of the {name} is {digits}."
QUESTION = "\n\nWhat is the pass key of the {name}?<|im_end|>\n<|im_start|>assistant\nThe pass key of the {name} is "


@dataclass(frozen=True)
class Key:
    """A key, where its sentence begins and ends, the tokens of the question and those of its digits."""

    begin: int
    end: int
    question: list[int]
    digits: list[int]


@dataclass(frozen=True)
class Text:
    """The tokens; whether each is of the text itself, not of a sentence with a key; and the keys."""

    ids: list[int]
    scored: list[bool]
    keys: list[Key]

    def asked(self, length: int, most: int = 16) -> list[Key]:
        """Keys that lie before a length, evenly spread where there are more than are asked for."""
        there = [key for key in self.keys if key.end <= length]
        return [there[(2 * i + 1) * len(there) // (2 * most)] for i in range(most)] if len(there) > most else there


def paragraphs() -> Iterable[str]:
    """Python's help topics, in alphabetic order."""
    return (part for name in sorted(topics.topics) for part in topics.topics[name].split("\n\n"))


def make(tokenizer: Any, length: int, seed: int, parts: Iterable[str] | None = None, spacing: int = BLOCK) -> Text:
    """Return a text of so many tokens, with a key after the first paragraph that ends behind the middle of each ``spacing``."""
    rng = random.Random(seed)
    ids: list[int] = tokenizer.encode(BEGIN).ids
    scored, keys = [False] * len(ids), list[Key]()
    for part in paragraphs() if parts is None else parts:
        if len(ids) >= length:
            break
        tokens = tokenizer.encode(f"{part}\n\n").ids
        ids, scored = ids + tokens, scored + [True] * len(tokens)
        if len(keys) < len(NAMES) and len(ids) >= (len(keys) + 0.5) * spacing:
            name, digits = NAMES[len(keys)], "".join(rng.choices("0123456789", k=DIGITS))
            tokens = tokenizer.encode(f"{HIDDEN.format(name=name, digits=digits)}\n\n").ids
            question = tokenizer.encode(QUESTION.format(name=name)).ids
            keys.append(Key(len(ids), len(ids) + len(tokens), question, [tokenizer.encode(digit).ids[0] for digit in digits]))
            ids, scored = ids + tokens, scored + [False] * len(tokens)
    if len(ids) < length:
        raise ValueError(f"make: length must be at most the {len(ids)} tokens of the text, got {length}.")
    return Text(ids[:length], scored[:length], [key for key in keys if key.end <= length])
