"""The lab's readings of a real model, with a tiny one: blocks over a cache are one pass, and a run goes on where it stopped."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bench.extrapolation import __main__ as command  # noqa: E402
from bench.extrapolation.stretch import reading, report, run, texts  # noqa: E402
from bench.extrapolation.stretch.rules import DYNAMIC, RULES, dynamic, pieces  # noqa: E402
from fastpe import Rotary, scaling  # noqa: E402
from fastpe._tools import smollm  # noqa: E402
from fastpe.torch import patch_transformers  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "extrapolation" / "stretch.json"
SHORT = 1024  # the "trained" length of the tests: a block


class Characters:
    """A tokenizer of characters."""

    class Encoded:
        def __init__(self, text: str) -> None:
            self.ids = [ord(letter) % 128 for letter in text]

    def encode(self, text: str) -> Encoded:
        return self.Encoded(text)


@pytest.fixture(scope="module")
def language() -> Any:
    """A Llama of two layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    return smollm.Model(LlamaForCausalLM(config).eval().requires_grad_(False), Characters())


# ---- the text ----------------------------------------------------------------------------------------------------------------


def test_keys_are_where_they_are_said_to_be() -> None:
    text = texts.make(Characters(), 4 * 1024, 0)
    assert len(text.ids) == len(text.scored) == 4096
    assert len(text.keys) == 4
    for name, key in zip(texts.NAMES, text.keys, strict=False):
        digits = "".join(map(chr, key.digits))
        assert digits.isdecimal()
        assert len(digits) == texts.DIGITS
        assert "".join(map(chr, text.ids[key.begin : key.end])) == f"The pass key of the {name} is {digits}.\n\n"
        assert not any(text.scored[key.begin : key.end])
        assert name in "".join(map(chr, key.question))
    plain = "".join(chr(one) for one, scored in zip(text.ids, text.scored, strict=True) if scored)
    assert "\n\n".join(texts.paragraphs()).startswith(plain.encode("ascii", "replace").decode()[:500])


def test_a_longer_text_goes_on_and_a_seed_changes_the_digits_alone() -> None:
    short, long, other = (texts.make(Characters(), length, seed) for length, seed in ((2048, 0), (4096, 0), (4096, 1)))
    assert long.ids[:2048] == short.ids
    assert long.keys[: len(short.keys)] == short.keys
    assert [key.begin for key in other.keys] == [key.begin for key in long.keys]
    assert other.keys[0].digits != long.keys[0].digits


def test_keys_asked_for_are_evenly_spread() -> None:
    text = texts.make(Characters(), 32 * 1024, 0)
    assert len(text.keys) == 32
    assert text.asked(4 * 1024) == text.keys[:4]
    assert text.asked(32 * 1024, 16) == text.keys[1::2]
    assert len(text.asked(24 * 1024, 16)) == 16


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="make: length must be at most the "):
        texts.make(Characters(), 5000, 0, ["a short one"])


# ---- reading -----------------------------------------------------------------------------------------------------------------


def whole(model: Any, ids: list[int]) -> Any:
    """The scores of one pass over all tokens, without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].sliding])
def test_blocks_and_answers_are_those_of_one_pass(name: str, language: Any) -> None:
    text, told = texts.make(language.tokenizer, 3 * 1024, 0), list[float]()
    with torch.inference_mode(), patch_transformers(language.model, **RULES[name].options(2)):
        found = reading.read(language.model, text, (2048,), told.append)
        scores = whole(language.model, text.ids)
        key = text.keys[1]
        answered = whole(language.model, text.ids[:2048] + key.question + key.digits)[-6:-1]
    for number, block in enumerate(found["blocks"]):
        at = [i for i in range(number * 1024, min((number + 1) * 1024, 3071)) if text.scored[i + 1]]
        targets = torch.tensor([text.ids[i + 1] for i in at])
        assert block["tokens"] == len(at)
        assert block["loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores[at], targets).item(), abs=2e-4)
        assert block["accuracy"] == pytest.approx((scores[at].argmax(-1) == targets).float().mean().item(), abs=2e-3)
    assert [answer["begin"] for answer in found["answers"]] == [key.begin for key in text.keys[:2]]
    digits = torch.tensor(key.digits)
    assert found["answers"][1]["nats"] == pytest.approx(torch.nn.functional.cross_entropy(answered, digits).item(), abs=1e-3)
    assert found["answers"][1]["right"] == (answered.argmax(-1) == digits).tolist()
    assert len(told) == 3 + 2


def test_a_window_that_slides_forgets_what_is_before_it(language: Any) -> None:
    text = texts.make(language.tokenizer, 4 * 1024, 0)
    with torch.inference_mode():
        found = reading.slide(language.model, text, 2048, lambda done: None)
        scores = whole(language.model, text.ids[1024:3072])[1024:]
    assert len(found["blocks"]) == 4
    targets = torch.tensor(text.ids[2049:3073])
    chosen = torch.tensor(text.scored[2049:3073])
    loss = torch.nn.functional.cross_entropy(scores[chosen], targets[chosen]).item()
    assert found["blocks"][2]["loss"] == pytest.approx(loss, abs=2e-4)


def test_costs_are_counted_right(language: Any) -> None:
    """Half of the operations that torch counts: one multiplication for each addition."""
    model, kept = copy.deepcopy(language.model), reading.cache(language.model, 2048)
    model.set_attn_implementation("eager")  # torch does not count what is fused
    with torch.inference_mode():
        for begin in (0, 1024):
            with FlopCounterMode(display=False) as counter:
                model(torch.randint(0, 128, (1, 1024)), past_key_values=kept)
            assert reading.cost(model, begin, 1024) == pytest.approx(counter.get_total_flops() / 2e9, rel=0.01)


def test_dynamic_ntk_is_that_of_a_length_known_beforehand() -> None:
    for factor in (2, 4):
        fixed = Rotary(100000.0, scaling=dynamic(factor)).frequencies(64)[0]
        rule = Rotary(100000.0, scaling=scaling.DynamicNTK(DYNAMIC, smollm.LENGTH))
        assert np.array_equal(fixed, rule.frequencies(64, seq_len=factor * smollm.LENGTH)[0])


# ---- runs --------------------------------------------------------------------------------------------------------------------


def test_short_readings_come_first_and_a_rule_of_no_factor_is_read_once() -> None:
    assert list(map(str, pieces(["none", "ntk", "yarn"], (2, 4)))) == ["ntk-2x", "yarn-2x", "none-4x", "ntk-4x", "yarn-4x"]
    assert list(map(str, pieces(["none", "ntk"], (2,)))) == ["ntk-2x", "none-2x"]


def test_a_stopped_run_goes_on(language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = pieces(["none", "linear", "yarn"], (2,))
    once = run.Run(language, tmp_path, 0, (2,), SHORT)
    once.claim()
    real, begun = reading.read, list[Any]()

    def stopped(*given: Any) -> Any:
        begun.append(given)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(reading, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        once.do(todo)
    first = once.path(todo[0])
    kept = first.stat().st_mtime_ns
    assert sorted(path.name for path in first.parent.iterdir()) == ["linear-2x.json"]
    again = run.Run(language, tmp_path, 0, (2,), SHORT)
    again.claim()
    assert again.do(todo) == []
    assert len(begun) == 4
    assert first.stat().st_mtime_ns == kept
    results = again.results()
    assert list(results["readings"]) == ["none-2x", "linear-2x", "yarn-2x"]
    assert results["readings"]["none-2x"]["encoding"] == "Rotary(base=100000.0)"
    assert results["readings"]["yarn-2x"]["encoding"].startswith("Rotary(base=100000.0, scaling=YaRN(factor=2")
    assert {answer["length"] for answer in results["readings"]["none-2x"]["answers"]} == {1024, 2048}


def test_a_budget_leaves_out_what_would_end_too_late(language: Any, tmp_path: Path) -> None:
    readings = run.Run(language, tmp_path, 0, (2,), SHORT)
    todo = pieces(["none", "yarn"], (2,))
    assert readings.do(todo, limit=0.0) == todo
    assert readings.do(todo, limit=1000.0) == []


def test_a_budget_for_nothing_says_how_much_is_needed(
    language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.extrapolation.stretch.command.language", lambda: language)
    options = ["--task", "stretch", "--encodings", "none", "--lengths", "2", "--budget", "0.001s", "--out", str(tmp_path)]
    assert command.main([*options, "--processes", "1"]) == 2
    assert "lab: --budget must be about 1m or more for one reading, got 0.001s." in capsys.readouterr().err


def test_a_check_that_fails_says_so(language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("bench.extrapolation.stretch.command.language", lambda: language)
    monkeypatch.setattr("bench.extrapolation.stretch.command.SHORT", SHORT)
    assert command.main(["--task", "stretch", "--reduced", "--processes", "1", "--out", str(tmp_path)]) == 1  # it knows nothing
    assert capsys.readouterr().out.count("FAILS") == 3


def test_a_run_writes_its_tables_and_pictures(
    language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("bench.extrapolation.stretch.command.language", lambda: language)
    monkeypatch.setattr("bench.extrapolation.stretch.command.Run", functools.partial(run.Run, trained=2 * SHORT))
    options = ["--task", "stretch", "--encodings", "none,yarn", "--lengths", "2", "--budget", "10m", "--processes", "1"]
    assert command.main([*options, "--out", str(tmp_path)]) == 0
    assert "| YaRN, 2x |" in capsys.readouterr().out
    assert "| YaRN, 2x |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "stretch_losses.png").stat().st_size > 10_000
    assert not (tmp_path / "stretch_keys.png").exists()  # four keys are not one at every depth


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--encodings", "none,rope"], "lab: --encodings must be all or some of sliding, none, linear"),
        (["--lengths", "1,2"], "lab: --lengths must be some of 2,4 with --task stretch, got '1,2'."),
        (["--lengths", "long"], "lab: --lengths must be some of 2,4 with --task stretch, got 'long'."),
        (["--steps", "100"], "lab: --steps must not be given with --task stretch"),
        (["--budget", "15"], "lab: --budget must be a time such as 90s, 15m or 1h, got '15'."),
        (["--reduced", "--lengths", "2"], "lab: --reduced must come without"),
    ],
)
def test_options_that_are_wrong(options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--task", "stretch", *options, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(smollm, "PACKAGES", ("a_package_that_is_not_there",))
    assert command.main(["--task", "stretch", "--out", str(tmp_path / "out")]) == 2
    assert (
        f"lab: --task stretch needs its model: a_package_that_is_not_there is not installed: {smollm.INSTALL}."
        in capsys.readouterr().err
    )


def test_the_help_names_the_rules() -> None:
    assert ",".join(RULES) == command.RULES


# ---- results -----------------------------------------------------------------------------------------------------------------


def _reading(name: str, factor: int, losses: list[float], right: bool) -> dict[str, Any]:
    blocks = [{"loss": loss, "accuracy": 0.5, "tokens": 1000} for loss in losses]
    answers = [{"length": 8192, "begin": 1024 * i, "nats": 1.25, "right": [right] * 4 + [True]} for i in range(8)]
    about = {"label": RULES[name].label, "factor": factor, "length": 1024 * len(losses), "block": 1024, "minutes": 1.0}
    return {**about, "threads": 1, "peak_gib": 3.0, "blocks": blocks, "answers": answers if name != "sliding" else []}


def test_tables_have_a_line_a_reading(tmp_path: Path) -> None:
    found = {
        "none-2x": _reading("none", 2, [2.0] * 8 + [4.0] * 8, False),
        "yarn-2x": _reading("yarn", 2, [2.0] * 15 + [3.0], True),
        "sliding-2x": _reading("sliding", 2, [2.0] * 16, True),
    }
    known = {"cpu": "a", "cores": 2, "threads": 1, "versions": {}}
    results = {"seed": 0, "trained": 8192, "machine": known, "readings": found}
    assert report.losses(results).splitlines()[:5] == [
        "| nats per token, lower is better | to 4 096 | to 8 192 | to 12 288 | to 16 384 |",
        "|---|--:|--:|--:|--:|",
        "| none, but only the last 4096 to 8192 tokens | 2.00 | 2.00 | 2.00 | 2.00 |",
        "| none | 2.00 | 2.00 | 4.00 | 4.00 |",
        "| YaRN, 2x | 2.00 | 2.00 | 2.00 | 2.25 |",
    ]
    assert report.answers(results).splitlines()[2:] == ["| none | 0.20, 1.2 |", "| YaRN, 2x | 1.00, 1.2 |"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "page.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main([str(tmp_path / "results.json"), "--into", str(tmp_path / "page.md"), "--pictures", str(tmp_path / "drawn")])
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(f"before\n{report.BEGIN}\n\nSeed 0; a, 2 cores, 1 thread")
    assert page.endswith(f"{report.END}\nafter\n")
    for name in ("stretch_losses.png", "stretch_keys.png"):
        assert f"](drawn/{name})" in page
        assert (tmp_path / "drawn" / name).stat().st_size > 8_000
    assert "old" not in page
    assert "Not read: position interpolation to 2x; NTK-aware to 2x; " in page


def test_the_documentation_shows_the_published_results() -> None:
    page = (ROOT / "docs" / "extrapolation.md").read_text("utf-8")
    shown = page.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert shown == report.page(json.loads(RESULTS.read_text("utf-8")), "pictures/lab/")
