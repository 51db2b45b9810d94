"""The extrapolation lab: its encodings are fastpe's, its runs go on where they stopped, its choices and tables are right."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpe

torch = pytest.importorskip("torch")
from lab_models import SIZE  # noqa: E402

from bench.extrapolation import __main__ as command  # noqa: E402
from bench.extrapolation import budget, jobs, orderings, pictures, pool, report, training  # noqa: E402
from bench.extrapolation.encodings import ENCODINGS, TRAININGS  # noqa: E402
from bench.extrapolation.model import Decoder  # noqa: E402
from bench.extrapolation.tasks import TASKS, Batch, Task, text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "extrapolation"
SEEDS = [RESULTS / "seed0.json", RESULTS / "seed1.json"]


# ---- training ----------------------------------------------------------------------------------------------------------------


class Counting(Task):
    """Tells the token that comes next in a row that counts up."""

    title = "Counting"
    metrics = {"nats": "lower"}  # noqa: RUF012
    steps, tokens, outputs = 60, 11, 11

    @classmethod
    def prepare(cls, folder: Path) -> None: ...

    def __init__(self) -> None:
        self.length = SIZE.length

    def evaluate(self, model: Decoder, factor: int, count: int) -> dict[str, float]:
        return {"nats": 0.0}

    def batch(self, rng: np.random.Generator, count: int, factor: int = 1) -> Batch:
        start = torch.from_numpy(rng.integers(0, 11, (count, 1)))
        row = (start + torch.arange(factor * self.length + 1)) % 11
        return Batch(row[:, :-1], row[:, 1:])


def _weights(path: Path) -> dict[str, Any]:
    return torch.load(path)


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["rotary", "rotary_randomized", "kerple", "learned"])
def test_training_is_the_same_for_a_seed_and_after_a_stop(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 10)
    task, told = Counting(), list[int]()

    def train(path: str, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        training.train(task, TRAININGS[name], SIZE, seed, 30, tmp_path / path, None, tell)
        return _weights(tmp_path / path)

    def stop_at_25(done: int) -> None:
        told.append(done)
        if sum(told) == 25:
            raise KeyboardInterrupt

    whole = train("whole.pt", 0, lambda done: None)
    assert _same(whole, train("again.pt", 0, lambda done: None))
    assert not _same(whole, train("other.pt", 1, lambda done: None))
    with pytest.raises(KeyboardInterrupt):
        train("stopped.pt", 0, stop_at_25)
    assert not (tmp_path / "stopped.pt").exists()
    told.clear()
    assert _same(whole, train("stopped.pt", 0, told.append))
    assert told[0] == 20
    assert sum(told) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pt", "other.pt", "stopped.pt", "whole.pt"]


def test_training_learns_and_fine_tuning_starts_from_it(tmp_path: Path) -> None:
    task, nothing = Counting(), lambda done: None
    training.train(task, TRAININGS["rotary"], SIZE, 0, 60, tmp_path / "rotary.pt", None, nothing)
    training.train(task, TRAININGS["rotary_yarn_tuned"], SIZE, 0, 40, tmp_path / "tuned.pt", tmp_path / "rotary.pt", nothing)

    def loss(path: str, name: str, factor: int) -> float:
        found = training.build(task, TRAININGS[name], SIZE, 0)
        found.load_state_dict(_weights(tmp_path / path))
        texts = task.batch(np.random.default_rng(1), 16, factor)
        with torch.inference_mode():
            return torch.nn.functional.cross_entropy(found(texts.ids).flatten(0, 1), texts.targets.flatten()).item()

    assert loss("rotary.pt", "rotary", 1) < 0.5
    assert loss("tuned.pt", "rotary_yarn_tuned", 8) < loss("rotary.pt", "rotary_yarn_tuned", 8)


# ---- jobs and budget ---------------------------------------------------------------------------------------------------------


def test_jobs_come_after_what_they_need() -> None:
    todo = jobs.jobs(["text", "sentiment"], list(ENCODINGS))
    assert len(todo) == len(set(todo)) == 2 * (len(TRAININGS) + len(ENCODINGS))
    for index, job in enumerate(todo):
        assert job.needs is None or job.needs in todo[:index]


def test_one_fine_tuned_encoding_needs_two_trainings() -> None:
    assert [str(job) for job in jobs.jobs(["text"], ["rotary_yarn_tuned"])] == [
        "text: train rotary",
        "text: train rotary_yarn_tuned",
        "text: read rotary_yarn_tuned",
    ]


def test_what_a_training_left_out_would_have_served_is_left_out(tmp_path: Path) -> None:
    todo = jobs.jobs(["text"], ["rotary", "rotary_yarn_tuned"])
    plan = jobs.Plan(tmp_path, tmp_path / "out", jobs.Settings(), (1,))

    class Bar:
        def update(self, units: int) -> None: ...
        def set_postfix_str(self, text: str) -> None: ...

    assert pool.run_all(todo, plan, 2, Bar(), worth_it=lambda job: job.name != "rotary") == todo


class Prices:
    """Made-up seconds of each job."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        every = jobs.jobs(["text"], list(ENCODINGS))
        self.seconds = {job: float(rng.integers(20, 100) if job.trains else rng.integers(1, 20)) for job in every}

    def __call__(self, job: jobs.Job) -> float:
        return self.seconds[job]


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_buys_as_many_encodings_as_can_be(seed: int) -> None:
    names = ["none", "alibi", "rotary", "rotary_ntk", "rotary_yarn_tuned", "t5", "learned_clipped", "learned_resampled"]
    prices = Prices(seed)
    for limit in (10, 60, 150, 300, 1000):
        chosen = budget.choose(["text"], names, prices, 1, limit)["text"]
        todo = jobs.jobs(["text"], chosen)
        assert sum(map(prices, todo)) <= limit
        most = max(
            len(some)
            for count in range(len(names) + 1)
            for some in itertools.combinations(names, count)
            if sum(map(prices, jobs.jobs(["text"], list(some)))) <= limit * budget.MARGIN
        )
        assert len(chosen) == most


def test_two_processes_do_more_and_end_in_time() -> None:
    prices, names = Prices(0), list(ENCODINGS)
    one, two = (budget.choose(["text"], names, prices, processes, 400)["text"] for processes in (1, 2))
    assert len(two) > len(one) > 0
    assert budget.makespan(jobs.jobs(["text"], two), prices, 2) <= 400


def test_costs_follow_the_speed_of_this_machine(tmp_path: Path) -> None:
    entry = {"train alibi": {"seconds": 100.0, "units": 1200}, "read alibi": {"seconds": 10.0, "units": 100}}
    (tmp_path / "there.json").write_text(json.dumps({"step_seconds": 0.1, "tasks": {"text": {"jobs": entry}}}))
    plan = jobs.Plan(tmp_path, tmp_path / "out", jobs.Settings(steps=600), (1, 2))
    costs = budget.Costs(plan, 0.2, tmp_path / "there.json")
    train, read = jobs.jobs(["text"], ["alibi"])
    assert costs(train) == pytest.approx(100 * 0.5 * 2)
    costs.learn(train, 150.0)  # half as much again as expected
    assert costs(read) == pytest.approx(10 * read.units(plan) / 100 * 2 * 1.5)
    plan.model("text", "alibi").parent.mkdir(parents=True)
    plan.model("text", "alibi").touch()
    assert costs(train) == 0


@pytest.mark.parametrize(("given", "expected"), [("90s", 90), ("15m", 900), ("1.5h", 5400)])
def test_times(given: str, expected: float) -> None:
    assert budget.seconds(given) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "speech"], "lab: --task must be all or some of text, sentiment, translation, got 'speech'."),
        (["--encodings", "rotary,rope"], "lab: --encodings must be all or some of none, "),
        (["--lengths", "1,32"], "lab: --lengths must be some of 1,2,4,8,16, got '1,32'."),
        (["--lengths", ""], "lab: --lengths must be some of 1,2,4,8,16, got ''."),
        (["--budget", "15"], "lab: --budget must be a time such as 90s, 15m or 1h, got '15'."),
        (["--budget=-1m"], "lab: --budget must be a time such as 90s, 15m or 1h, got '-1m'."),
        (["--processes", "0"], "lab: --processes must be at least 1, got 0."),
        (["--seed", "-1"], "lab: --seed must be 0 or more, got -1."),
        (["--reduced", "--lengths", "1,2"], "lab: --reduced must come without --task, --encodings, --lengths and --budget"),
        (["--steps", "3"], "lab: --steps must be at least 40, got 3."),
    ],
)
def test_options_that_are_wrong(options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_for_nothing_says_how_much_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--budget", "2s", "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"lab: --budget must be at least \d+m for one encoding, got 2s\.", capsys.readouterr().err)


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 7}))
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "seed 7, not 0" in capsys.readouterr().err


# ---- results -----------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_ends_with_a_table(tmp_path: Path) -> None:
    """Two encodings in two processes, killed once the first model is there; what was done is not done again."""
    out = tmp_path / "out"
    options = [
        "--encodings",
        "none,rotary,rotary_ntk",
        "--lengths",
        "1,2",
        "--steps",
        "40",
        "--processes",
        "1",
        "--out",
        str(out),
    ]
    start = [sys.executable, "-m", "bench.extrapolation", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(start, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        model, deadline = out / "text" / "rotary.pt", time.monotonic() + 200
        while not model.exists() and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    assert model.exists()
    assert not (out / "results.json").exists()
    before = model.stat().st_mtime_ns
    again = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert model.stat().st_mtime_ns == before
    results = json.loads((out / "results.json").read_text())
    assert set(results["tasks"]["text"]["encodings"]) == {"none", "rotary", "rotary_ntk"}
    assert results["machine"]["versions"]["fastpe"] == fastpe.__version__
    assert "| rotary, NTK-aware |" in (out / "table.md").read_text()
    assert (out / "lengths_text.png").stat().st_size > 10_000
    assert not list(out.rglob(".*")) + list(out.rglob("*.unfinished"))


def _results(**values: dict[int, float]) -> dict[str, Any]:
    entries = {
        name: {
            "label": ENCODINGS[name].label,
            "lengths": {str(factor): {"nats per character": value} for factor, value in row.items()},
        }
        for name, row in values.items()
    }
    found = {"title": "Text generation", "metrics": {"nats per character": "lower"}, "encodings": entries}
    known = {"cpu": "a", "cores": 2, "threads": 1, "versions": {}}
    return {"seed": 0, "length": 64, "processes": 2, "machine": known, "tasks": {"text": found}}


def test_orderings_hold_or_fail_by_their_bounds() -> None:
    good = _results(rotary={1: 1.3, 2: 1.8, 4: 3.0}, rotary_rerope={8: 1.35}, alibi={1: 1.4, 8: 1.5})
    found = {ordering.says: ordering.holds(difference) for ordering, difference in orderings.check(good)}
    assert found == {
        "rotary fails by 4x": True,
        "ALiBi stays flat to 8x": False,
        "ReRoPE at 8x is within 0.1 of rotary at 1x": True,
    }


def test_the_reduced_form_is_what_the_orderings_need() -> None:
    assert orderings.REDUCED == ["alibi", "rotary", "rotary_ntk", "rotary_rerope", "rotary_yarn", "sinusoidal"]
    assert set(orderings.REDUCED) <= ENCODINGS.keys()
    assert orderings.REDUCED_LENGTHS == (1, 2, 4, 8)


def test_tables_have_a_line_an_encoding_and_a_column_a_length() -> None:
    first, second = _results(alibi={1: 1.4, 8: 1.5}, none={1: 1.9}), _results(alibi={1: 1.25, 8: 1.75})
    assert report.table("text", [first, second]).splitlines() == [
        "| nats per character (lower is better) | 1x | 8x |",
        "|---|--:|--:|",
        "| none | 1.90 / - | - / - |",
        "| ALiBi | 1.40 / 1.25 | 1.50 / 1.75 |",
    ]


def test_every_encoding_is_drawn_in_one_family() -> None:
    members = [name for family in pictures.FAMILIES for name in family.members]
    assert sorted(members) == sorted(ENCODINGS)
    assert all(len({*family.members.values()}) == len(family.members) <= len(pictures.MARKS) for family in pictures.FAMILIES)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_best_of_each_family_is_the_best_past_the_trained_length(better: str) -> None:
    near, far = (1.0, 9.0) if better == "lower" else (9.0, 1.0)
    values = {"alibi": (far, near, near), "fire": (near, far, near), "rotary_yarn_tuned": (near, far, far)}
    curves = {name: pictures.Curve([1, 2, 4], [*given]) for name, given in values.items()}
    families = [family for family in pictures.FAMILIES if family.members.keys() & curves.keys()]
    assert pictures._best(families, curves, better).members == {"rotary_yarn_tuned": "YaRN, tuned", "alibi": "ALiBi"}


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    heights = [0.5, 0.5, 0.51, 0.9, 0.1, 0.5]
    placed = pictures.spread(heights, 0.04)
    ordered = sorted(placed)
    assert all(after - before > 0.0399 for before, after in itertools.pairwise(ordered))
    assert placed[3] == pytest.approx(0.9)
    assert placed[4] == pytest.approx(0.1)
    assert np.mean([placed[i] for i in (0, 1, 2, 5)]) == pytest.approx(np.mean([heights[i] for i in (0, 1, 2, 5)]))


@pytest.mark.parametrize("height", [0.0, 0.98, 1.0])
def test_names_stay_beside_their_panel(height: float) -> None:
    placed = pictures.spread([height] * 25, 0.04)
    assert min(placed) >= 0
    assert max(placed) <= 1
    assert all(after - before > 0.0399 for before, after in itertools.pairwise(sorted(placed)))


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_the_published_results_have_every_ordering(path: Path) -> None:
    found = orderings.check(json.loads(path.read_text("utf-8")))
    assert len(found) == len(orderings.ORDERINGS)
    assert [ordering.says for ordering, difference in found if not ordering.holds(difference)] == []


def test_the_documentation_shows_the_published_results() -> None:
    page = (ROOT / "docs" / "extrapolation.md").read_text("utf-8")
    shown = page.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert shown == report.page([json.loads(path.read_text("utf-8")) for path in SEEDS], "pictures/lab/")
    assert set(json.loads(SEEDS[0].read_text("utf-8"))["tasks"]) == set(TASKS)


# ---- texts -------------------------------------------------------------------------------------------------------------------


def test_characters_become_numbers_and_back() -> None:
    codes = text.encode("A line,\nand ä\t~")
    assert codes.max() < text.Text.tokens
    assert text.decode(torch.from_numpy(codes)) == "A line,\nand ? ~"


def test_the_same_characters_are_judged_at_every_length(tmp_path: Path) -> None:
    np.savez(text._file(tmp_path), training=np.zeros(2000, np.uint8), held_out=(np.arange(3000) % 90).astype(np.uint8))
    task, judged = text.Text(tmp_path, 64), {1: list[Any](), 4: list[Any]()}

    for factor, ends in judged.items():

        def reader(windows: Any, ends: list[Any] = ends) -> Any:
            ends.append(windows[:, -text.READ :])
            return torch.zeros(*windows.shape, text.Text.outputs)

        nats = task.evaluate(reader, factor, 10)["nats per character"]
        assert nats == pytest.approx(np.log(text.Text.outputs), rel=1e-5)
    assert torch.equal(torch.cat(judged[1]), torch.cat(judged[4]))
