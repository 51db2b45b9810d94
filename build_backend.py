"""How the wheel is built: by setuptools, and with kernels that Numba has translated, so that a first call need not.

``FASTPE_TRANSLATE=0`` builds a wheel without them, which compiles its kernels as a clone does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
from setuptools.command.build_py import build_py

NUMBA = ["numba>=0.62,<0.64; python_version < '3.15'", "numba>=0.62; python_version >= '3.15'"]  # LLVM 20: newer ones read it
TRANSLATES = os.environ.get("FASTPE_TRANSLATE") != "0"


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *(NUMBA if TRANSLATES else [])]


class WithKernels(build_py):
    """Put translated kernels beside the sources."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or not TRANSLATES:
            return
        built = Path(self.build_lib).resolve()
        paths = filter(None, [str(built), os.environ.get("PYTHONPATH")])
        archive = built / "fastpe" / "kernels" / "translations.zip"
        command = [sys.executable, "-m", "fastpe._tools.translate", str(archive)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=True)
