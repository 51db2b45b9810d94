"""``make lab``: train small transformers with each encoding, let them read longer texts, write tables and a picture."""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastpe._tools.machine import machine

from . import report
from .budget import Costs, choose, makespan, seconds, step_seconds
from .encodings import ENCODINGS
from .files import claim, read_json, write_json
from .jobs import Job, Plan, Settings, jobs
from .orderings import ORDERINGS, REDUCED, REDUCED_LENGTHS, check
from .pool import cores, run_all
from .sources import LabError, cache
from .tasks import FACTORS, TASKS, task_class

__all__ = ["main"]

FACTORS_TEXT = ",".join(map(str, FACTORS))
FEWEST_STEPS = 40  # below, the schedule of the learning rate has no rise
OUT = "bench/results/lab"
RULES = (
    "sliding,none,linear,ntk,dynamic_ntk,llama3,yarn,self_extend,rerope"  # of stretch; importing them here takes transformers
)
STRETCH = "stretch"  # a task of its own: nothing is trained, and rules are read with instead of encodings


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = __doc__.replace("``", "")
    epilog = f"""As in: make lab OPTIONS='--task all --seed 1'. --task {STRETCH} reads with a language model and trains nothing: its
    encodings are rules ({RULES}), its lengths 2,4, its processes threads; --reduced takes a minute."""
    options = argparse.ArgumentParser("make lab", description=about, epilog=epilog)
    add = options.add_argument
    add(
        "--task",
        default="text",
        metavar="NAMES",
        help=f"all, or some of {','.join(TASKS)}; or {STRETCH}: a language model (default: text)",
    )
    add("--encodings", default="all", metavar="NAMES", help=f"some of {','.join(ENCODINGS)} (default: all)")
    add("--lengths", metavar="LIST", help=f"times the trained one (default: {FACTORS_TEXT})")
    add("--budget", metavar="TIME", help="take the largest subset that fits in 90s, 15m, 1h, and say which")
    add("--seed", type=int, default=0, metavar="N", help="of weights and training texts (default: 0)")
    add("--steps", type=int, metavar="N", help="of each training (default: what the task needs)")
    add("--out", metavar="FOLDER", help=f"for all results; a run that was stopped goes on there (default: {OUT}/seedN)")
    add("--processes", type=int, default=cores(), metavar="N", help="of one thread each (default: the cores, %(default)s)")
    add(
        "--reduced",
        action="store_true",
        help="only what the robust orderings need, 5 minutes on two cores; exit code 1 where one fails",
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the lab; return 1 where a robust ordering does not hold, 2 where the lab cannot be run."""
    try:
        return _run(parser().parse_args(arguments))
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace) -> int:
    _check(chosen)
    if chosen.task == STRETCH:
        from .stretch import command  # needs more packages than the other tasks

        return command.run(chosen)
    began = time.monotonic()
    tasks = ["text"] if chosen.reduced else _names("--task", chosen.task, list(TASKS))
    encodings = REDUCED if chosen.reduced else _names("--encodings", chosen.encodings, list(ENCODINGS))
    lengths = REDUCED_LENGTHS if chosen.reduced else _lengths(chosen.lengths)
    limit = None if chosen.budget is None else seconds(chosen.budget)
    if chosen.steps is not None and chosen.steps < FEWEST_STEPS:
        raise LabError(f"lab: --steps must be at least {FEWEST_STEPS}, got {chosen.steps}.")
    out = Path(chosen.out or f"{OUT}/{'reduced' if chosen.reduced else 'seed'}{chosen.seed}").resolve()
    plan = Plan(cache(), out, Settings(chosen.seed, chosen.steps, texts=50 if chosen.reduced else 100), lengths)
    _claim(plan)
    for task in tasks:
        print(f"preparing {task}", flush=True)
        task_class(task).prepare(plan.data / task)
    step = step_seconds(plan.settings.size)
    sets = dict.fromkeys(tasks, encodings)
    worth_it: Callable[[Job], bool] = lambda job: True  # noqa: E731
    costs = None
    if limit is not None:
        costs = Costs(plan, step)
        sets = choose(tasks, encodings, costs, chosen.processes, limit - (time.monotonic() - began))
        if not any(sets.values()):
            least = min(makespan(jobs([task], [name]), costs, chosen.processes) for task in tasks for name in encodings)
            raise LabError(f"lab: --budget must be at least {math.ceil(least / 54)}m for one encoding, got {chosen.budget}.")
        worth_it = lambda job: time.monotonic() - began + costs(job) < limit  # noqa: E731
        _say_sets(sets, encodings, chosen.budget)
    todo = [job for task, names in sets.items() for job in jobs([task], names)]
    left = _do(todo, plan, chosen.processes, worth_it, costs)
    results = _collect(plan, sets, step, chosen)
    for job in left:
        print(f"left out, there was no time left: {job}")
    report.write(plan.out, [results])
    wrong = report.say(results)
    print(f"\n{time.monotonic() - began:.0f} s; results.json, table.md and the pictures are in {plan.out}")
    return 1 if chosen.reduced and (wrong or len(check(results)) < len(ORDERINGS)) else 0


# ---- arguments ----------------------------------------------------------------------------------------------------------------


def _check(chosen: argparse.Namespace) -> None:
    """What holds for all tasks."""
    own = (chosen.task in ("text", STRETCH), chosen.encodings, chosen.lengths, chosen.budget)
    if chosen.reduced and own != (True, "all", None, None):
        raise LabError("lab: --reduced must come without --task, --encodings, --lengths and --budget: it has its own.")
    if chosen.processes < 1:
        raise LabError(f"lab: --processes must be at least 1, got {chosen.processes}.")
    if chosen.seed < 0:
        raise LabError(f"lab: --seed must be 0 or more, got {chosen.seed}.")


def _names(option: str, text: str, known: list[str]) -> list[str]:
    """The names of a list, in the order of the known ones."""
    names = known if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise LabError(f"lab: {option} must be all or some of {', '.join(known)}, got {name!r}.")
    return [name for name in known if name in names]


def _lengths(text: str | None) -> tuple[int, ...]:
    """Multiples of the trained length, in order."""
    if text is None:
        return FACTORS
    try:
        factors = sorted({int(word) for word in text.split(",")})
    except ValueError:
        factors = []
    if not factors or not set(factors) <= set(FACTORS):
        raise LabError(f"lab: --lengths must be some of {FACTORS_TEXT}, got {text!r}.")
    return tuple(factors)


def _claim(plan: Plan) -> None:
    """Make the folder this run's own: results already there must have the same settings."""
    settings = plan.settings
    versions = machine(1, "")["versions"]
    asked = {
        "seed": settings.seed,
        "steps": settings.steps,
        "texts": settings.texts,
        "length": settings.size.length,
        "python": platform.python_version(),
    }
    asked |= {name: versions[name] for name in ("torch", "NumPy", "fastpe")}
    claim(plan.out, asked)


def _say_sets(sets: dict[str, list[str]], encodings: list[str], budget: str) -> None:
    for task, names in sets.items():
        print(f"{task}: {len(names)} of {len(encodings)} encodings fit in {budget}: {', '.join(names) or 'none'}")


# ---- the work ----------------------------------------------------------------------------------------------------------------


def _do(todo: list[Job], plan: Plan, processes: int, worth_it: Callable[[Job], bool], costs: Costs | None) -> list[Job]:
    """Run the jobs whose results are missing, with a bar; return those left out."""
    open_ones = [job for job in todo if not job.is_done(plan)]
    record = plan.out / "jobs.json"
    took: dict[str, Any] = read_json(record) if record.exists() else {}

    def done(job: Job, spent: float) -> None:
        took[str(job)] = {"seconds": round(spent, 2), "units": job.units(plan)}
        write_json(record, took)
        if costs is not None:
            costs.learn(job, spent)

    total = sum(job.units(plan) for job in todo)
    with tqdm(
        total=total, initial=total - sum(job.units(plan) for job in open_ones), unit="step", smoothing=0.05, mininterval=1
    ) as bar:
        return run_all(open_ones, plan, processes, bar, worth_it, done)


def _collect(plan: Plan, sets: dict[str, list[str]], step: float, chosen: argparse.Namespace) -> dict[str, Any]:
    """All results of these encodings, as in results.json."""
    took = read_json(plan.out / "jobs.json") if (plan.out / "jobs.json").exists() else {}
    results: dict[str, Any] = {
        "seed": plan.settings.seed,
        "steps": plan.settings.steps,
        "texts": plan.settings.texts,
        "length": plan.settings.size.length,
        "processes": chosen.processes,
        "step_seconds": step,
        "machine": machine(1, "make lab"),
        "tasks": {},
    }
    for task, names in sets.items():
        there = {name: read_json(path) for name in names if (path := plan.result(task, name)).exists()}
        kept = {key.removeprefix(f"{task}: "): value for key, value in took.items() if key.startswith(f"{task}: ")}
        kind = task_class(task)
        results["tasks"][task] = {"title": kind.title, "metrics": kind.metrics, "encodings": there, "jobs": kept}
    write_json(plan.out / "results.json", results)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
