"""Translation: numbers in words, from English to German and back; what is longer has more groups of digits, not other words."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..encodings import FINE_TUNED
from ..files import write_arrays
from . import FACTORS, IGNORED, Batch, Task

if TYPE_CHECKING:
    from ..model import Decoder

__all__ = ["Translation"]

Tokens = npt.NDArray[np.uint16]
Number = tuple[
    tuple[int, int], ...
]  # (exponent of 1000, digits) of each group that is not zero: 5_000_300 is ((2, 5), (0, 300))

ENGLISH, GERMAN = "en", "de"
END, TO_GERMAN, TO_ENGLISH = range(3)  # END pads as well; the others separate a number from its translation
SYMBOLS = ["<end>", "<to German>", "<to English>"]
SHORT = 64  # tokens that a number, its translation and two symbols have at most
GROUPS = 102  # of three digits: up to the centillions, where English ends
WRITTEN = 11.4  # tokens of a group in both languages: 10.8 on average, and a little more so that most numbers fit
UNITS = 0.5  # of all numbers have a last group, which no word follows, whatever their length
TRAINING = {1: 20_000, FINE_TUNED: 500}  # numbers up to so many times the short length
HELD_OUT = {1: 50, 2: 50, 4: 32, 8: 16, 16: 8}  # examples of each length and direction; long ones have more characters to judge


class Pair(NamedTuple):
    """A number's tokens in both languages."""

    english: list[int]
    german: list[int]

    def example(self, direction: int) -> list[int]:
        """A number and its translation, to German for 0 and to English for 1."""
        source, translation = (self.english, self.german) if direction == 0 else (self.german, self.english)
        return [*source, TO_GERMAN + direction, *translation, END]

    @property
    def length(self) -> int:
        return len(self.english) + len(self.german) + 2


class Translation(Task):
    """Characters of translations that are wrong, and translations that are right as a whole.

    A number has some of its groups of three digits, up to the centillions, and zeros in the others: up to six of them where it is short,
    and 89 of 102 at sixteen times the length. So training shows every word, and nothing but length is new in a longer number.
    """

    title = "Translation of numbers"
    metrics: ClassVar[dict[str, str]] = {"character error": "lower", "exact match": "higher"}
    sampled = (1, 2)
    steps = 1400

    @classmethod
    def prepare(cls, folder: Path) -> None:
        path = _file(folder)
        if not path.exists():
            write_arrays(path, **_make(np.random.default_rng(0)))

    def __init__(self, folder: Path, length: int) -> None:
        if length != SHORT:
            raise ValueError(f"Translation: length must be {SHORT}, that of the numbers in {folder}, got {length}.")
        with np.load(_file(folder)) as arrays:
            self.arrays = dict(arrays)
        self.pieces = [*SYMBOLS, *self.arrays["pieces"].tolist()]
        self.tokens = self.outputs = len(self.pieces)

    def batch(self, rng: np.random.Generator, count: int, factor: int = 1) -> Batch:
        examples = self.arrays[f"training_{max(known for known in TRAINING if known <= factor)}"]
        rows = examples[rng.integers(0, len(examples), count), rng.integers(0, 2, count)].astype(np.int64)
        chosen = torch.from_numpy(rows[:, : (rows != END).any(0).sum() + 1])
        ids, targets = chosen[:, :-1], chosen[:, 1:]
        translated = ((ids == TO_GERMAN) | (ids == TO_ENGLISH)).cumsum(1) > 0
        return Batch(ids, targets.masked_fill(~translated | (ids == END), IGNORED))

    def evaluate(self, model: Decoder, factor: int, count: int) -> dict[str, float]:
        """The metrics on at most ``count``: there are fewer of the longer numbers, which take long to write."""
        both = [pair for direction in range(2) for pair in self._translate(model, factor, direction, -(-count // 2))]
        wrong = sum(distance(output, truth) for output, truth in both)
        right = sum(output == truth for output, truth in both)
        return {"character error": wrong / sum(len(truth) for _, truth in both), "exact match": right / len(both)}

    def sample(self, model: Decoder, factor: int) -> str:
        """A number, what the model writes, and the truth."""
        [(output, truth)] = self._translate(model, factor, 0, 1)
        source = self._text(self.arrays[f"held_out_{factor}_0"][0])
        return f"{source}\n> {output}\n= {truth}"

    def _translate(self, model: Decoder, factor: int, direction: int, count: int) -> list[tuple[str, str]]:
        """What a model writes for some held-out numbers, and what it should; all of these numbers have the same length."""
        examples = self.arrays[f"held_out_{factor}_{direction}"][:count].astype(np.int64)
        given = int((examples[0] == TO_GERMAN + direction).argmax()) + 1
        output = model.write(torch.from_numpy(examples[:, :given]), examples.shape[1])[:, given:].numpy()
        return [(self._text(mine), self._text(true)) for mine, true in zip(output, examples[:, given:], strict=True)]

    def _text(self, tokens: npt.NDArray[Any]) -> str:
        """The characters up to the first symbol that ends a text."""
        pieces = []
        for token in tokens.tolist():
            if token < len(SYMBOLS):
                break
            pieces.append(self.pieces[token])
        return "".join(pieces).strip()


def distance(first: str, second: str) -> int:
    """Characters to insert, delete or replace to make one text of another (Levenshtein)."""
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(first, second))


# ---- numbers in words ----------------------------------------------------------------------------------------------------------


def _file(folder: Path) -> Path:
    return folder / "numbers-1.npz"


@cache
def spoken(number: int, language: str) -> str:
    """A number as num2words has it; in English without commas, hyphens and "and"."""
    from num2words import num2words

    text = num2words(number, lang=language)
    return " ".join(re.sub(r",|-|\band\b", " ", text).split()) if language == ENGLISH else text


def words(number: Number, language: str) -> str:
    """A number, put together of what num2words has for each group; for a whole long one it takes 10 ms."""
    parts = []
    for exponent, digits in number:
        if exponent < 2 or digits == 1:
            parts.append(spoken(digits * 1000**exponent, language))
        else:
            parts += [spoken(digits, language), spoken(2 * 1000**exponent, language).split()[1]]
    return " ".join(parts).replace("tausend ", "tausend")


class Splitter:
    """Texts as pieces: words of English, and of German the words that its long ones are made of; blanks belong to what follows."""

    def __init__(self) -> None:
        parts = {spoken(number, GERMAN) for number in [*range(1, 21), *range(30, 100, 10)]} | {"hundert", "tausend", "und"}
        parts |= {spoken(1000**exponent, GERMAN).removeprefix("eine ") for exponent in range(2, GROUPS)} | {
            "ein",
            "eine",
            "en",
            "n",
        }
        self.german = re.compile(f" ?(?:{'|'.join(sorted(parts, key=len, reverse=True))})")
        self.ids: dict[str, int] = {}  # of the pieces so far

    def split(self, number: Number) -> Pair:
        english = re.findall(" [^ ]+", f" {words(number, ENGLISH)}")
        german = self.german.findall(f" {words(number, GERMAN)}")
        return Pair([self._id(piece) for piece in english], [self._id(piece) for piece in german])

    def _id(self, piece: str) -> int:
        return self.ids.setdefault(piece, len(SYMBOLS) + len(self.ids))


class Numbers:
    """Numbers at random, none of them twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.splitter, self.drawn = rng, Splitter(), set[Number]()

    def draw(self, groups: int, factor: int) -> Pair:
        """A number that has so many groups and fits."""
        while True:
            number = self._number(groups)
            pair = self.splitter.split(number)
            if number not in self.drawn and pair.length <= factor * SHORT:
                self.drawn.add(number)
                return pair

    def equally_long(self, groups: int, factor: int) -> list[list[list[int]]]:
        """For each direction, the first examples of which there are enough that give a model the same number of tokens."""
        examples: list[defaultdict[int, list[list[int]]]] = [defaultdict(list), defaultdict(list)]
        while any(max(map(len, some.values()), default=0) < HELD_OUT[factor] for some in examples):
            pair = self.draw(groups, factor)
            for direction, some in enumerate(examples):
                some[len(pair[direction])].append(pair.example(direction))
        return [max(some.values(), key=len)[: HELD_OUT[factor]] for some in examples]

    def _number(self, groups: int) -> Number:
        exponents = self.rng.choice(GROUPS - 1, groups, replace=False) + 1
        if self.rng.random() < UNITS:
            exponents[0] = 0
        return tuple(sorted(zip(exponents.tolist(), self.rng.integers(1, 1000, groups).tolist(), strict=True), reverse=True))


def _make(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Everything a worker loads: the pieces, examples to train on, and those held out, each with END to the end of its row."""
    numbers, arrays = Numbers(rng), dict[str, npt.NDArray[Any]]()
    for factor in FACTORS:
        for direction, examples in enumerate(numbers.equally_long(_groups(factor), factor)):
            arrays[f"held_out_{factor}_{direction}"] = _rows(examples, factor)
    for factor, count in TRAINING.items():
        pairs = [numbers.draw(int(rng.integers(1, _groups(factor) + 2, 2).max()), factor) for _ in range(count)]
        arrays[f"training_{factor}"] = np.stack([_rows([pair.example(d) for pair in pairs], factor) for d in range(2)], 1)
    return {**arrays, "pieces": np.array(list(numbers.splitter.ids))}


def _groups(factor: int) -> int:
    return int(factor * SHORT / WRITTEN)


def _rows(examples: list[list[int]], factor: int) -> Tokens:
    return np.array([example + [END] * (factor * SHORT - len(example)) for example in examples], np.uint16)
