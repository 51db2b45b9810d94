"""Install the wheel of a folder into an empty environment, and use it from an empty folder: python use_installed.py DIST.

The examples of the README and the first steps that need no other library run, then commands. Of the clone only these texts are read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (("info",), ("recipes",), ("demo", "--no-plot", "--dim", "64"))
WHERE = "import sys, fastpe; sys.exit(fastpe.__file__.startswith(sys.prefix) is False and f'not the installed one: {fastpe.__file__}')"

# The wheel brings kernels: nothing was compiled on this machine yet, and Numba is not needed.
FIRST_CALLS = """
import sys, numpy as np, ml_dtypes, fastpe
for dtype in ("float16", "bfloat16", "float32", "float64"):
    x = np.zeros((2, 3, 4, 16), dtype)
    fastpe.add_encoding(x[0])
    fastpe.apply_rotary(x, x.copy())
    fastpe.embed([[1, 0]], x[0, 0], fastpe.Sinusoidal())
    fastpe.add_bias(x, fastpe.ALiBi(3))
sys.exit("numba" in sys.modules and "the wheel's kernels were not used")
"""


def examples() -> list[str]:
    """The blocks of Python that need NumPy alone and nothing before them."""
    text = "".join(path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "first-steps.md"))
    return [code for code in re.findall(r"(?<!-->\n)```python\n(.*?)```", text, re.S) if "import fastpe\n" in code]


def use(python: Path, folder: Path) -> None:
    """Run the examples and commands in a folder; nothing from the environment says where fastpe is."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["FASTPE_CACHE_DIR"] = str(folder)
    codes = [
        ["-c", WHERE],
        ["-c", FIRST_CALLS],
        *(["-c", code] for code in examples()),
        *(["-m", "fastpe", *command] for command in COMMANDS),
    ]
    for code in codes:
        subprocess.run([python, *code], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def main(dist: Path) -> None:
    (wheel,) = dist.resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        environment, empty = Path(folder, "environment"), Path(folder, "empty")
        empty.mkdir()
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        install = (
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--constraint",
            str(ROOT / "constraints.txt"),
        )
        subprocess.run([python, *install, "ml_dtypes", str(wheel)], cwd=empty, check=True)
        use(python, empty)
    print(f"{wheel.name} works from an empty folder.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
