"""What ``python -m fastpe bench`` makes of figures that vary: ratios, their spreads, and runs that are compared; with planted noise."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastpe._tools.benchmark import results, running, spread
from fastpe._tools.benchmark.workload import CACHED, FASTPE


def planted(seconds: float, noise: float, seed: int, count: int = 40, bursts: float = 0.0) -> dict[int, float]:
    """Rounds with lognormal noise; ``bursts`` is the share of rounds in which other work has the machine, ten times as long."""
    random = np.random.default_rng(seed)
    slow = np.where(random.random(count) < bursts, 10.0, 1.0)
    return dict(enumerate((seconds * slow * np.exp(noise * random.standard_normal(count))).tolist()))


def line(ours: dict[int, float], cached: dict[int, float], one: dict[int, float]) -> dict[str, Any]:
    """A result as of these rounds."""
    found = {FASTPE: ours, CACHED: cached, "add_one_numpy": one}
    case = {"operation": "embed", "shape": [2, 3], "dtype": "float32", "device": "cpu", "failures": {}}
    return {**case, **running.figures(found, 1 << 20)}


def ratio_of(result: dict[str, Any]) -> str:
    return results.table([result]).splitlines()[2].split("float32")[1].split("%")[2].strip()


def test_figures_fit_together() -> None:
    result = line(planted(1e-3, 0.01, 0), planted(2e-3, 0.01, 1), planted(5e-4, 0.01, 2))
    assert result["seconds"][FASTPE] == pytest.approx(1e-3, rel=0.01)
    assert result["speedups"][CACHED] == pytest.approx(2, rel=0.01)
    assert result["roofline_bandwidth"] == pytest.approx((1 << 20) / 5e-4, rel=0.01)
    assert result["share_of_roofline"] == pytest.approx(0.5, rel=0.01)
    low, middle, high = result["spreads"][FASTPE]
    assert low < middle < high
    assert (high - low) / 2 / middle == pytest.approx(
        0.0067, abs=0.003
    )  # the quartiles of a normal distribution, in its deviations


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("ratio", "noise", "bursts"), [(1.0, 0.02, 0.0), (1.0, 0.5, 0.0), (1.0, 0.02, 0.3), (1.2, 0.3, 0.0)])
def test_no_ratio_is_found_where_the_spread_is_wider_than_the_effect(
    ratio: float, noise: float, bursts: float, seed: int
) -> None:
    result = line(
        planted(1e-3, noise, 3 * seed, bursts=bursts),
        planted(ratio * 1e-3, noise, 3 * seed + 1, bursts=bursts),
        planted(5e-4, noise, 3 * seed + 2, bursts=bursts),
    )
    assert ratio_of(result).startswith(("same ±", "? ±"))


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_is_found_where_it_is_wider_than_the_spread(seed: int) -> None:
    result = line(planted(1e-3, 0.02, 2 * seed), planted(1.2e-3, 0.02, 2 * seed + 1), planted(5e-4, 0.02, seed))
    assert re.fullmatch(r"1\.(18|19|20|21|22)x ±[1-4]", ratio_of(result))


def test_what_slows_both_down_is_not_in_a_ratio() -> None:
    slow = 1 + np.arange(40) / 4  # a machine that gets ten times slower
    ours, cached = ({i: seconds * slow[i] for i in range(40)} for seconds in (1e-3, 2e-3))
    result = line(ours, cached, planted(5e-4, 0.0, 0))
    assert ratio_of(result) == "2.00x ±0"
    assert results.noisy([result]) == 0
    assert results.noisy([line(ours, cached, cached)]) == 1


def test_few_rounds_count_as_a_whole() -> None:
    assert spread.span([1.0, 2.0, 9.0]) == (1.0, 2.0, 9.0)
    assert spread.span([*range(1, 10)]) == (3.0, 5.0, 7.0)


def test_contenders_of_other_rounds_have_the_ratio_of_their_medians() -> None:
    assert spread.paired({0: 4.0, 1: 6.0}, {2: 1.0, 3: 2.0}) == (2.0, 5.0 / 1.5, 6.0)


def test_runs_without_a_line_in_common() -> None:
    one = {"operation": "embed", "shape": [1], "dtype": "float32", "device": "cpu"}
    assert results.compare([], [one]) == ("The runs have no line in common.", [])


def verdict(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, list[str]]:
    """What the comparison says of the only line, and what is slower."""
    lines, slower = results.compare([before], [now])
    return re.split(r"%\s*", lines.splitlines()[1])[-1], slower


@pytest.mark.parametrize("seed", range(20))
def test_runs_that_differ_by_their_noise_are_the_same(seed: int) -> None:
    one, other = (
        line(*(planted(seconds, 0.2, 100 * seed + 10 * run + i) for i, seconds in enumerate((1e-3, 2e-3, 5e-4))))
        for run in (0, 1)
    )
    assert verdict(one, other) == ("", [])
    busy = line(*(planted(seconds, 0.2, seed + i, bursts=0.6) for i, seconds in enumerate((1e-3, 2e-3, 5e-4))))
    assert verdict(one, busy)[1] == []
    assert verdict(busy, one)[1] == []


def test_a_machine_that_is_slower_is_not_fastpe() -> None:
    quiet = line(*(planted(seconds, 0.02, i) for i, seconds in enumerate((1e-3, 2e-3, 5e-4))))
    slow = line(*(planted(7.6 * seconds, 0.02, i) for i, seconds in enumerate((1e-3, 2e-3, 5e-4))))
    assert verdict(quiet, slow) == ("slower, as the machine", [])
    assert verdict(slow, quiet) == ("faster, as the machine", [])


@pytest.mark.parametrize("seed", range(10))
def test_slower_is_more_than_a_tenth_and_the_spreads(seed: int) -> None:
    def run(seconds: float, noise: float, salt: int) -> dict[str, Any]:
        return line(*(planted(value, noise, 10 * seed + 3 * salt + i) for i, value in enumerate((seconds, 2e-3, 5e-4))))

    before = run(1e-3, 0.02, 0)
    assert verdict(before, run(1.05e-3, 0.0, 1)) == ("", [])
    said, slower = verdict(before, run(1.3e-3, 0.02, 2))
    assert said == "slower"
    assert re.fullmatch(
        r"embed 2 x 3 float32 takes 1\.(2[789]|3[0123]) times as long, x \+= 1 (0\.9|1\.0)\d times; beside it 1\.[23]\d times",
        slower[0],
    )
    assert verdict(run(1.3e-3, 0.02, 2), before) == ("faster", [])
