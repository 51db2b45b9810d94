"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import kept


def python(code, *flags, **environment):
    """Run code in a fresh interpreter and return what it printed."""
    run = subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        cwd=kept.ROOT / "tests" / "data",  # where nothing can be imported from
        env={**os.environ, **environment},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
