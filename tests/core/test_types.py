"""Types carry through the verbs: an array of NumPy's comes out as one, a tensor as a tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = ROOT / "tests" / "helpers" / "typed_calls.py"


def checked(path: Path, cache: Path) -> str:
    """What mypy says of a file."""
    api = pytest.importorskip("mypy.api")
    pytest.importorskip("torch")
    said, errors, _ = api.run(["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(path)])
    return said + errors


def test_types_carry_through_and_mistakes_are_found(tmp_path: Path) -> None:
    cache = ROOT / ".mypy_cache"
    assert "Success" in checked(CALLS, cache)
    wrong = tmp_path / "wrong.py"
    lines = [
        "fastpe.add_encoding(x, ofset=3)",
        "fastpe.apply_rotary(t, inverse='yes')",
        "fastpe.convert_layout(x, 'halves', 'half', 4)",
    ]
    wrong.write_text("\n".join([CALLS.read_text(), *lines, "y: torch.Tensor = fastpe.add_encoding(x)"]))
    said = checked(wrong, cache)
    assert "Found 4 errors" in said, said
