"""Sentiment analysis: positive or negative, of snippets that people rated; what is longer has more snippets of the same sign.

So a longer text gives more evidence: who reads it well tells its sign better than that of a short one. Order matters little.
"""

from __future__ import annotations

import html
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..files import write_arrays
from ..sources import fetch
from . import IGNORED, Batch, Task

if TYPE_CHECKING:
    from ..model import Decoder

__all__ = ["Sentiment"]

Integers = npt.NDArray[np.int64]

# Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014; MIT licence
ARCHIVE = ("vaderSentiment==0.5", "vaderSentiment-0.5.zip", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a")
MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "tweets")

NEUTRAL = 0.5  # ratings are means from -4 to 4; people disagree on the sign of those nearer to 0
HELD_OUT = 0.15  # of the snippets of each source and sign
VOCABULARY = 2000  # accuracy of rotary after 400 steps: 0.71 with 800 pieces, 0.77 with 1500, 0.78 with 2000, 0.79 with 3000
END, HIDDEN = range(2)  # END follows each snippet, and pads; HIDDEN replaces the tokens that training hides
HIDE = 0.3  # of the tokens, drawn anew for each text: 14 000 snippets are soon known by heart
SHORT = 64  # tokens that a snippet has at most with its END, so that it fits in a short text
CHUNK = 8192  # tokens that are evaluated at a time
SIGNS = ("negative", "positive")


class Sentiment(Task):
    """Texts whose sign a model tells, and the nats that it gives to the true one."""

    title = "Sentiment analysis"
    metrics: ClassVar[dict[str, str]] = {"accuracy": "higher", "nats": "lower"}
    steps = 600
    tokens = VOCABULARY
    outputs = len(SIGNS)

    @classmethod
    def prepare(cls, folder: Path) -> None:
        path = _file(folder)
        if not path.exists():
            write_arrays(path, **make(read(fetch(*ARCHIVE))))

    def __init__(self, folder: Path, length: int) -> None:
        if length < SHORT:
            raise ValueError(f"Sentiment: length must be at least {SHORT}, that of the longest snippet, got {length}.")
        with np.load(_file(folder)) as arrays:
            self.training = [Snippets.load(arrays, f"training_{sign}") for sign in SIGNS]
            self.held_out = [Snippets.load(arrays, f"held_out_{sign}") for sign in SIGNS]
        self.length = length

    def batch(self, rng: np.random.Generator, count: int, factor: int = 1) -> Batch:
        """The sign is asked at the end of each snippet, so that a model learns it of shorter texts as well."""
        ids, signs = self._draw(self.training, rng, count, factor)
        ends = (ids == END) & (np.roll(ids, 1, axis=1) != END)
        hidden = (rng.random(ids.shape) < HIDE) & (ids != END)
        targets = np.where(ends, signs[:, None], IGNORED)
        return Batch(torch.from_numpy(np.where(hidden, HIDDEN, ids)), torch.from_numpy(targets))

    def evaluate(self, model: Decoder, factor: int, count: int) -> dict[str, float]:
        """The metrics on ``4 * count`` texts, fewer of the longest, on ``count`` at 16 times the length: a text has one sign to tell."""
        texts = max(count, min(4, 16 // factor) * count)
        ids, signs = self._draw(self.held_out, np.random.default_rng(factor), texts, factor)
        ends, truth = (ids != END).cumsum(1).argmax(1) + 1, torch.from_numpy(signs)
        parts = []
        for some in np.array_split(np.arange(texts), -(-ids.size // CHUNK)):
            parts.append(model(torch.from_numpy(ids[some]))[torch.arange(len(some)), torch.from_numpy(ends[some])])
        scores = torch.cat(parts)
        return {
            "accuracy": (scores.argmax(-1) == truth).double().mean().item(),
            "nats": torch.nn.functional.cross_entropy(scores, truth).item(),
        }

    def _draw(
        self, snippets: Sequence[Snippets], rng: np.random.Generator, count: int, factor: int
    ) -> tuple[Integers, Integers]:
        """Texts of either sign, padded with END to ``factor`` times the length, and the number of each sign."""
        signs = rng.permutation(np.arange(count) % len(SIGNS))
        return np.stack([snippets[sign].join(rng, factor * self.length) for sign in signs]), signs


class Snippets:
    """Snippets of one sign as tokens, each with its END."""

    def __init__(self, tokens: Integers, starts: Integers) -> None:
        self.tokens, self.starts = tokens, starts
        self.lengths = np.diff(starts)

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Snippets:
        return cls(arrays[name].astype(np.int64), arrays[f"{name}_starts"])

    def join(self, rng: np.random.Generator, length: int) -> Integers:
        """Some at random until the next one does not fit, and END up to the length; none twice before all have come."""
        text, at = np.full(length, END, np.int64), 0
        while True:
            for n in rng.choice(len(self.lengths), min(length, len(self.lengths)), replace=False):
                if at + self.lengths[n] > length:
                    return text
                text[at : at + self.lengths[n]] = self.tokens[self.starts[n] : self.starts[n + 1]]
                at += self.lengths[n]


# ---- the data ----------------------------------------------------------------------------------------------------------------


def _file(folder: Path) -> Path:
    return folder / f"snippets-{VOCABULARY}.npz"


def read(archive: Path) -> list[dict[str, float]]:
    """For each source its snippets and their mean ratings."""
    sources = []
    with zipfile.ZipFile(archive) as package, tarfile.open(fileobj=io.BytesIO(package.read(MEMBER))) as data:
        texts = {Path(member.name).stem: data.extractfile(member) for member in data if member.isfile()}
        for source in SOURCES:
            file = texts[f"{source}_GroundTruth"]
            lines = file.read().decode("utf-8").splitlines() if file is not None else []
            rows = [line.split("\t") for line in lines]
            sources.append({html.unescape(text).strip(): float(rating) for _, rating, text in rows})
    return sources


def make(sources: Iterable[Mapping[str, float]], vocabulary: int = VOCABULARY) -> dict[str, npt.NDArray[Any]]:
    """Everything a worker loads: for either sign the tokens of its snippets, one after the other, and where each starts.

    Of each source there are as many of one sign as of the other, so that nothing but a text tells its sign: those held out are cut to
    the fewer, and of those to train on the fewer come more than once.
    """
    rng, known = np.random.default_rng(0), list[str]()
    kept: dict[str, list[str]] = {f"{part}_{sign}": [] for part in ("training", "held_out") for sign in SIGNS}
    for rated in sources:
        both = [[text for text, rating in rated.items() if way * rating >= NEUTRAL] for way in (-1, 1)]
        both = [rng.permutation(texts).tolist() for texts in both]
        cuts = [int(HELD_OUT * len(texts)) for texts in both]
        most = max(len(texts) - cut for texts, cut in zip(both, cuts, strict=True))
        for sign, texts, cut in zip(SIGNS, both, cuts, strict=True):
            kept[f"held_out_{sign}"] += texts[: min(cuts)]
            kept[f"training_{sign}"] += islice(cycle(texts[cut:]), most)
            known += texts[cut:]
    tokenizer = _tokenizer(known, vocabulary)
    return {name: array for part, texts in kept.items() for name, array in _flat(part, texts, tokenizer).items()}


def _flat(name: str, texts: list[str], tokenizer: Any) -> dict[str, npt.NDArray[Any]]:
    """Texts as tokens, each with END after it, without those that are empty or too long."""
    rows = [[*encoded.ids, END] for encoded in tokenizer.encode_batch(texts)]
    rows = [row for row in rows if 1 < len(row) <= SHORT]
    return {name: np.concatenate(rows).astype(np.uint16), f"{name}_starts": np.cumsum([0, *map(len, rows)])}


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Pieces of lower-case words and of bytes, so that there is nothing they cannot write: byte pair encoding."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>", "<hidden>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
