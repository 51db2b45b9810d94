"""Marks of files whose tests compile or trace models."""

from __future__ import annotations

import pytest

# Of PyTorch's compiler, as it traces and lowers
_QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")
COMPILES = [_QUIET, pytest.mark.usefixtures("fresh_compiler")]
PATCHES = [_QUIET, pytest.mark.usefixtures("nothing_left")]
