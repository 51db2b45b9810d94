"""The mutants of `tests/mutants`: each is one small change of the source, and those that cannot matter are not made."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import coverage_map
import cuda_mutations
import mutations
import named_tests
import pytest
from sampling import all_mutants, sample

ROOT = Path(__file__).resolve().parents[2]


def mutated(source: str, of_source=mutations.of_source) -> set[str]:
    return {one.apply(source.encode()).decode() for one in of_source(source.encode())}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"(a <= b)"}),
        ("a < b <= c", {"(a <= b <= c)", "(a < b < c)"}),
        ("a + b", {"(a - b)"}),
        ("a or b", {"(a and b)"}),
        ("not a", {"(a)"}),
        ("a = 3", {"a = 4", "a = 2"}),
        ("a = True", {"a = False"}),
        ("a = b if c else d", {"a = (b)", "a = (d)"}),
        ("f(a, b)", {"f(b, a)", "pass"}),
        ("a.b = c", {"pass"}),
        ("raise a", {"pass"}),
        ("if a: b", {"if True: b", "if False: b"}),
        ("with a: b", {"if True: b"}),
        ("def f(): return a", {"def f(): return None"}),
        ("def f(a=False): b", {"def f(a=True): b"}),
        # What is read by people and type checkers alone.
        ('"""1 < 2"""', set()),
        ("a: int | None", set()),
        ("def f(a: 3 | 4) -> 5 | 6: b", set()),
        ("f'{a + 1}'", set()),
        ("if TYPE_CHECKING: a", set()),
        ("A = Callable[[int | None], 3]", set()),
        ("A = B | C | D", set()),
    ],
)
def test_python(source, expected):
    assert mutated(source) == expected


def test_cuda():
    source = "#define N 3\nf<4>(a < b, x[1] + 2); // 5 < 6\n"
    expected = {("a < b", "a <= b"), ("[1]", "[2]"), (" + ", " - "), ("2)", "3)"), ("<4>", "<5>")}
    assert mutated(source, cuda_mutations.of_source) == {source.replace(*pair, 1) for pair in expected}


@pytest.mark.parametrize("place", ["fastpe/_core", "fastpe/_backends", "fastpe/_arrays", "kernels"])
def test_every_mutant_of_the_library(place):
    """Each changes the file, within the lines that it names, and Python can still read it; no two have one name."""
    mutants = list(all_mutants(ROOT, place))
    assert len(mutants) > 300
    assert len({one.name for one in mutants}) == len(mutants)
    sources = {one.file: (ROOT / one.file).read_bytes() for one in mutants}
    for file, mutation, _, line in sample(mutants, 200, 0):
        changed = mutation.apply(sources[file])
        assert changed != sources[file]
        assert mutation.lines[0] <= line <= mutation.lines[1]
        if file.endswith(".py"):
            ast.parse(changed)


def test_samples_depend_on_the_seed_and_little_on_other_mutants():
    mutants = list(all_mutants(ROOT, "fastpe/_arrays"))
    first = sample(mutants, 20, 1)
    assert first == sample(mutants[::-1], 20, 1) != sample(mutants, 20, 2)
    fewer = [one for one in mutants if one != first[3]]
    assert sample(fewer, 19, 1) == [one for one in first if one != first[3]]


def test_every_pattern_is_of_something():
    assert all(list(ROOT.glob(pattern)) for pattern in (*named_tests.LEFT_OUT, *named_tests.NAMED))
    tests = [file for tests in named_tests.NAMED.values() for pattern in tests for file in [re.split("[*:]", pattern)[0]]]
    assert all((ROOT / file).is_file() for file in tests)
    kernels = [f"kernels/{path.name}" for path in (ROOT / "kernels").iterdir() if path.is_file()]
    assert all(list(named_tests.patterns_of(kernel)) for kernel in kernels)


def test_the_quickest_tests_of_the_statement_come_first(tmp_path):
    tests = '[[2.0, "tests/core/test_a.py::one"], [1.0, "tests/core/test_a.py::two"], [0.1, "tests/core/test_a.py::three"]]'
    lines = '{"fastpe/_core/a.py": {"1": [0, 1], "2": [2], "9": [0]}}'
    (tmp_path / "a.json").write_text(f'{{"tests": {tests}, "lines": {lines}}}')
    found = coverage_map.Map(tmp_path)

    def names(*lines):
        mutation = mutations.Mutation(0, 0, "", "", *lines)
        return [test.node.rpartition(":")[2] for test in found.tests_of("fastpe/_core/a.py", mutation)]

    assert names((1, 1), (1, 9)) == ["two", "one"]
    assert names((5, 5), (2, 5)) == ["three"]  # of the function, as no test runs the line
    assert names((5, 5), (5, 6)) == ["three", "two", "one"]  # of the file
