"""What calls leave behind has a bound: each cache is filled past it and stays."""

from __future__ import annotations

import ast
import gc
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastpe
from fastpe._arrays import dispatch
from fastpe._arrays import numpy as numpy_arrays
from fastpe._backends.host import prepared, row_cache
from fastpe._core import bias_tables, call_cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _cleared():
    fastpe.clear_caches()
    yield
    fastpe.clear_caches()


def test_prepared_calls():
    for rows in range(1, call_cache.MOST_ENTRIES + 50):
        for _ in range(2):
            fastpe.add_encoding(np.zeros((1, rows, 8), np.float32))
        assert len(call_cache.entries) <= call_cache.MOST_ENTRIES
    assert call_cache.entries, "nothing was kept: this tests nothing"


def test_tables_of_biases(monkeypatch):
    monkeypatch.setattr(bias_tables, "KEPT_BYTES", 1 << 14)
    kept = []
    for turn in range(60):
        fastpe.add_bias(np.zeros((1, 2, 4, 64 + turn), np.float32), fastpe.Kerple((0.5, 0.6), (1.0 + turn, 2.0)))
        kept.append(sum(table.nbytes for table in bias_tables._tables.values()))
    assert 0 < max(kept) <= 1 << 14
    assert len(bias_tables._tables) < 60


def test_rows_of_encodings(monkeypatch):
    monkeypatch.setattr(row_cache, "MOST_BYTES_OF_ALL", 1 << 18)
    held = []
    for turn in range(40):
        for _ in range(3):
            fastpe.add_encoding(np.zeros((1, 64, 256), np.float32), fastpe.Sinusoidal(base=100.0 + turn))
        held.append(sum(cache.nbytes for cache in row_cache._filled))
    assert 0 < max(held) <= 1 << 18
    row_cache.of.cache_clear()


def test_scratch_memory(monkeypatch):
    """As when many threads give back what they borrowed at once, some of it large."""
    monkeypatch.setattr(prepared, "_kept", [])
    borrow, sizes = prepared._borrow, [*range(3), prepared.MOST_KEPT_BYTES + 1, *range(20)]
    monkeypatch.setattr(prepared, "_borrow", lambda nbytes: borrow(nbytes + sizes.pop())._replace(nbytes=sizes[-1] + nbytes))
    x = np.zeros((4, 2048, 512), np.float16)
    while len(sizes) > 1:
        fastpe.add_encoding(x)
        assert len(prepared._kept) <= prepared.MOST_KEPT
        assert all(piece.nbytes <= prepared.MOST_KEPT_BYTES for piece in prepared._kept)


def test_types_and_dtypes(monkeypatch):
    monkeypatch.setattr(dispatch, "_libraries", {})
    monkeypatch.setattr(numpy_arrays, "_names", {})
    for number in range(dispatch.MOST_TYPES + 20):
        kind = type(f"Array{number}", (np.ndarray,), {})
        fastpe.add_encoding(np.zeros((1, 2, 8), np.float32).view(kind))
        assert 0 < len(dispatch._libraries) <= dispatch.MOST_TYPES
        with pytest.raises(TypeError):
            fastpe.add_encoding(np.zeros((1, 2), [(f"field{number}", "f4")]))
    assert len(numpy_arrays._names) == numpy_arrays.MOST_NAMES


def test_every_function_that_remembers_has_a_bound():
    """``functools.cache`` has none."""
    bounds = {}
    for path in [*(ROOT / "fastpe").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", []):
                text = ast.unparse(decorator)
                if "_tools" not in path.parts and re.search(r"\b(lru_cache|functools\.cache|cache)\b", text):
                    bounds[f"{path.name}:{node.lineno}"] = re.fullmatch(r"functools\.lru_cache\(maxsize=(\d+)\)", text)
    assert len(bounds) > 15
    assert {place for place, bound in bounds.items() if bound is None or int(bound[1]) > 256} == set()


def test_changing_calls_hold_no_memory():
    """Ever new encodings, shapes and positions, once the caches are full."""

    def calls(first: int) -> None:
        for turn in range(first, first + 300):
            x = np.zeros((1, 1 + turn % 7, 32), np.float32)
            fastpe.add_encoding(x, fastpe.Sinusoidal(base=2.0 + turn), offset=turn)
            fastpe.add_encoding(x, positions=np.arange(turn, turn + x.shape[1]))
            fastpe.apply_rotary(x, None, fastpe.Rotary(base=2.0 + turn), offset=turn)
            fastpe.add_bias(np.zeros((1, 2, 3, 8), np.float32), fastpe.ALiBi(2, 1.0 + turn / 64))
        fastpe.clear_caches()  # how full they are at the moment does not matter
        gc.collect()

    calls(0)
    tracemalloc.start()
    calls(1000)
    before = tracemalloc.get_traced_memory()[0]
    calls(2000)
    calls(3000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 400 << 10, f"600 changing calls left {grown} bytes"
