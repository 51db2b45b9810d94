"""How the wheel is built: by setuptools, and with kernels that Numba has translated, so that a first call need not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
from setuptools.command.build_py import build_py

NUMBA = "numba>=0.62,<0.64; python_version < '3.15'"  # the oldest LLVM (20) that can: newer ones read what it writes


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), NUMBA]


class WithKernels(build_py):
    """Put translated kernels beside the sources, unless FASTPE_TRANSLATE=0 says not to, or Numba is not there."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or os.environ.get("FASTPE_TRANSLATE") == "0":
            return
        if importlib.util.find_spec("numba") is None:
            print("fastpe: Numba is not there, so the wheel has no translated kernels; first calls will take longer.")
            return
        built = Path(self.build_lib).resolve()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(built), *filter(None, [os.environ.get("PYTHONPATH")])])}
        archive = built / "fastpe" / "kernels" / "translations.zip"
        subprocess.run([sys.executable, "-m", "fastpe._tools.translate", archive], env=environment, check=True)
