"""The lab's encodings are those that it says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpe

torch = pytest.importorskip("torch")
from lab_models import SIZE, model  # noqa: E402

from bench.extrapolation.encodings import ENCODINGS, TRAININGS  # noqa: E402
from bench.extrapolation.model import Decoder  # noqa: E402
from fastpe.torch import functional  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "bench" / "extrapolation"


def ids(length: int, batch: int = 3) -> Any:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 11, (batch, length)))


MATHEMATICS = {
    *(
        "sin",
        "cos",
        "tan",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "logspace",
        "geomspace",
        "pow",
        "power",
        "polar",
    ),
    *("outer", "einsum", "view_as_complex", "complex", "Embedding", "interpolate", "tril", "bucketize"),
}


def _mathematics(source: str) -> set[str]:
    """What a source uses of what encodings are made of: functions, powers of computed numbers, bases."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "attr", getattr(node, "id", getattr(node, "name", None)))
        if name in MATHEMATICS:
            found.add(name)
        if isinstance(node, ast.Constant) and node.value in (1e4, 5e5, 1e6) and not isinstance(node.value, bool):
            found.add(str(node.value))
    return found


@pytest.mark.parametrize("path", sorted(LAB.rglob("*.py")), ids=lambda path: str(path.relative_to(LAB)))
def test_no_source_of_the_lab_has_an_encoding_of_its_own(path: Path) -> None:
    assert _mathematics(path.read_text("utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "angles = positions / 10_000 ** (i / d)",
        "x = torch.sin(angles)",
        "from torch.nn import Embedding",
        "import torch\nw = torch.outer(p, f).cos()",
        "bias = -torch.log1p(n)",
    ],
)
def test_an_encoding_of_ones_own_is_noticed(source: str) -> None:
    assert _mathematics(source)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_asks_fastpe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def noting(module: Any, verb: str) -> None:
        real = getattr(module, verb)

        def call(*arguments: Any, **named: Any) -> Any:
            encoding = [one for one in (*arguments, *named.values()) if type(one).__module__.startswith("fastpe.")]
            called.append((verb, *(type(one).__name__ for one in encoding)))
            return real(*arguments, **named)

        monkeypatch.setattr(module, verb, call)

    noting(functional, "embed")
    noting(functional, "apply_rotary")
    noting(fastpe, "add_bias")
    model(name, 2)(ids(64))
    expected = {
        "none": ("embed",),
        "learned": ("embed", "Learned"),
        "sinusoidal": ("embed", "Sinusoidal"),
        "rotary": ("apply_rotary", "Rotary"),
        "xpos": ("apply_rotary", "Rotary"),
        "t5": ("add_bias", "T5Bias"),
        "fire": ("add_bias", "FIRE"),
        "kerple": ("add_bias", "Kerple"),
        "alibi": ("add_bias", "ALiBi"),
    }
    assert expected[name.split("_")[0]] in called


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_ahead_is_not_seen(name: str, factor: int) -> None:
    found, length = model(name, factor), factor * SIZE.length
    seen = ids(length)
    changed = seen.clone()
    changed[:, length // 2 :] = (changed[:, length // 2 :] + 1) % 11
    with torch.inference_mode():
        first, second = found(seen), found(changed)
    torch.testing.assert_close(first[:, : length // 2], second[:, : length // 2])
    assert (first[:, length // 2 :] - second[:, length // 2 :]).abs().amin() > 1e-6


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("name", ENCODINGS)
def test_writing_with_kept_keys_is_reading_the_whole(name: str, factor: int) -> None:
    found, length = model(name, factor), factor * SIZE.length
    written = found.write(ids(length // 2), length)
    assert written.shape == (3, length)
    assert (written[:, : length // 2] == ids(length // 2)).all()
    with torch.inference_mode():
        likeliest = found(written)[:, length // 2 - 1 : -1].argmax(-1)
    assert (likeliest == written[:, length // 2 :]).all()


@pytest.mark.parametrize("name", ["rotary_rerope", "rotary_self_extend"])
def test_remapped_distances_stay_within_those_trained(name: str) -> None:
    encoding = model(name, 16).encoding
    assert encoding.remap(16 * SIZE.length).distance().max() < SIZE.length


def test_a_remap_that_changes_no_distance_is_plain_rotary() -> None:
    plain, remapped = model("rotary"), model("rotary_rerope", 2)
    remapped.encoding.remap = lambda queries, keys: fastpe.positions.rerope(queries, keys, window=1000)
    with torch.inference_mode():
        torch.testing.assert_close(remapped(ids(64)), plain(ids(64)))


@pytest.mark.parametrize("name", TRAININGS)
def test_everything_learned_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    found = Decoder(11, 11, TRAININGS[name].make(SIZE), SIZE, layers=2)
    found(ids(SIZE.length)).square().mean().backward()
    missing = [part for part, value in found.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert [part for part in missing if "encoding" in part] == []


def test_at_the_trained_length_nothing_changes() -> None:
    for entry in ENCODINGS.values():
        trained = TRAININGS[entry.training].make(SIZE)
        assert entry.at(trained, 1, SIZE) is trained
