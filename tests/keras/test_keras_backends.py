"""The layers on every backend of Keras that is installed, each in a process of its own: Keras chooses at its import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("backend", ["jax", "numpy", "tensorflow"])
def test_the_layers_on(backend: str) -> None:
    needed = "scipy" if backend == "numpy" else backend
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    files = [str(HERE / f"test_keras_{subject}.py") for subject in ("layers", "models", "hub")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_a_model_is_loaded_by_another_backend(tmp_path: Path) -> None:
    """Weights and encodings of one saved on PyTorch give the same numbers on NumPy's, which has no kernels."""
    pytest.importorskip("torch")
    pytest.importorskip("scipy")  # of Keras on NumPy
    code = """if True:
        import sys, numpy, keras, fastpe.keras
        ids = numpy.arange(12).reshape(2, 6) % 9
        if keras.backend.backend() == "torch":
            keras.Sequential([keras.Input((None,), dtype="int32"), fastpe.keras.TokenAndPositionEmbedding(9, 6, 8),
                fastpe.keras.SinusoidalEncoding(encoding=fastpe.Sinusoidal(500.0))]).save("model.keras")
        made = keras.saving.load_model("model.keras").predict(ids, verbose=0)
        if keras.backend.backend() == "torch":
            numpy.save("made.npy", made)
        else:
            numpy.testing.assert_allclose(made, numpy.load("made.npy"), atol=1e-6)
    """
    for backend in ("torch", "numpy"):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
