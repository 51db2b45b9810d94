"""Fixtures that several tests of the core share."""

from __future__ import annotations

import pytest

from fastpe._backends.host import row_cache
from fastpe._core import call_cache


@pytest.fixture
def nothing_known() -> None:
    """Start without known calls and cached rows."""
    call_cache.clear()
    row_cache.of.cache_clear()
