"""The lab's numbers in words: they are num2words', longer ones have no other words, and metrics count what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
num2words = pytest.importorskip("num2words").num2words
pytest.importorskip("rapidfuzz")
from bench.extrapolation.tasks import IGNORED, translation  # noqa: E402
from bench.extrapolation.tasks.translation import END, ENGLISH, GERMAN, TO_ENGLISH, TO_GERMAN, Translation  # noqa: E402


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Translation:
    folder = tmp_path_factory.mktemp("translation")
    Translation.prepare(folder)
    before = (folder / "numbers-1.npz").stat().st_mtime_ns
    Translation.prepare(folder)  # finds it
    assert (folder / "numbers-1.npz").stat().st_mtime_ns == before
    return Translation(folder, 64)


def rows(task: Translation, name: str) -> Any:
    return task.arrays[name].astype(np.int64)


def test_a_number_is_what_num2words_says_of_the_whole() -> None:
    numbers = translation.Numbers(np.random.default_rng(1))
    for groups in (1, 2, 5, 12, 60):
        number = numbers._number(groups)
        whole = sum(digits * 1000**place for place, digits in number)
        assert translation.words(number, GERMAN) == num2words(whole, lang="de")
        assert translation.words(number, ENGLISH) == " ".join(re.sub(r",|-|\band\b", " ", num2words(whole, lang="en")).split())


def test_longer_numbers_have_no_words_that_training_lacks(task: Translation) -> None:
    shown = set(np.unique(rows(task, "training_1")))
    for factor in translation.FACTORS:
        for direction in range(2):
            assert set(np.unique(rows(task, f"held_out_{factor}_{direction}"))) <= shown


def test_no_held_out_number_is_trained_on(task: Translation) -> None:
    trained = {
        tuple(row[row != END])
        for name in ("training_1", "training_8")
        for row in rows(task, name).reshape(-1, 64 * int(name[9:]))
    }
    for factor in translation.FACTORS:
        for direction in range(2):
            held_out = [tuple(row[row != END]) for row in rows(task, f"held_out_{factor}_{direction}")]
            assert len(held_out) == translation.HELD_OUT[factor]
            assert trained.isdisjoint(held_out)


@pytest.mark.parametrize("factor", translation.FACTORS)
def test_long_numbers_are_long_and_given_in_one_length(factor: int, task: Translation) -> None:
    for direction, symbol in enumerate((TO_GERMAN, TO_ENGLISH)):
        found = rows(task, f"held_out_{factor}_{direction}")
        assert len(set((found == symbol).argmax(1))) == 1
        lengths = (found != END).sum(1) + 1
        assert lengths.max() <= 64 * factor
        assert lengths.mean() > 0.8 * 64 * factor


def test_only_translations_are_asked_for(task: Translation) -> None:
    texts = task.batch(np.random.default_rng(0), 16)
    again = task.batch(np.random.default_rng(0), 16)
    assert torch.equal(texts.ids, again.ids)
    for ids, targets in zip(texts.ids.tolist(), texts.targets.tolist(), strict=True):
        start = next(at for at, token in enumerate(ids) if token in (TO_GERMAN, TO_ENGLISH))
        end = ids.index(END) if END in ids else len(ids)
        assert targets[:start] == [IGNORED] * start
        assert targets[start : end - 1] == ids[start + 1 : end]
        assert targets[end - 1] == END
        assert set(targets[end:]) <= {IGNORED}
    assert {TO_GERMAN, TO_ENGLISH} <= set(texts.ids.unique().tolist())
    assert task.batch(np.random.default_rng(0), 8, 8).ids.shape[1] > 128


class Knowing:
    """Writes the truth, less what ``spoil`` takes away."""

    def __init__(self, task: Translation, spoil: int = 0) -> None:
        names = [name for name in task.arrays if name.startswith("held_out")]
        self.known = {tuple(row[:at]): row for name in names for row in rows(task, name) for at in [_given(row)]}
        self.spoil = spoil

    def write(self, ids: Any, length: int) -> Any:
        found = np.stack([self.known[tuple(row)][:length] for row in ids.tolist()])
        for row in found:
            end = (row != END).sum()
            row[end - self.spoil : end] = END
        return torch.from_numpy(found)


def _given(row: Any) -> int:
    return int(((row == TO_GERMAN) | (row == TO_ENGLISH)).argmax()) + 1


@pytest.mark.parametrize("factor", [1, 4])
def test_metrics_count_characters_and_whole_translations(factor: int, task: Translation) -> None:
    assert task.evaluate(Knowing(task), factor, 20) == {"character error": 0.0, "exact match": 1.0}
    spoilt = task.evaluate(Knowing(task, 1), factor, 20)
    assert spoilt["exact match"] == 0
    assert 0 < spoilt["character error"] < 0.5 / factor
    assert task.sample(Knowing(task), factor).splitlines()[1][2:] == task.sample(Knowing(task), factor).splitlines()[2][2:]


def test_distances_are_levenshteins() -> None:
    assert [translation.distance(*pair) for pair in (("", ""), ("eins", ""), ("kitten", "sitting"), ("ab", "ba"))] == [
        0,
        4,
        3,
        2,
    ]


def test_other_lengths_are_refused(task: Translation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64"):
        Translation(tmp_path, 32)
