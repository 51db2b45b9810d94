"""``python -m fastpe info``: what is installed and usable here."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ... import __version__
from ..._backends import cuda, disk_cache
from ..._backends.host import pool, tuning
from ..machine import cpu_name
from .cache import NO_CACHE

PACKAGES = ("numpy", "numba", "llvmlite", "cupy", "torch", "jax", "dask", "keras", "ml_dtypes", "matplotlib", "psutil", "tqdm")
# What works once packages are there, and what to install; names without "fastpe[...]" are packages themselves.
ON_THE_CPU = {"PyTorch tensors": "torch", "JAX arrays": "jax", "Dask arrays": "dask", "Keras layers": "keras"}
OPTIONAL = {
    "PyTorch tensors": (("torch",), "fastpe[torch]"),
    "JAX arrays": (("jax",), "fastpe[jax]"),
    "Dask arrays": (("dask",), "fastpe[dask]"),
    "Keras layers": (("keras",), "fastpe[keras]"),
    "bfloat16 in NumPy": (("ml_dtypes",), "ml_dtypes"),
    "pictures": (("matplotlib",), "fastpe[plot]"),
    "bars, and what else runs during bench": (("psutil", "tqdm"), "fastpe[bench]"),
}
CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("info", help="say what is installed and usable here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print what is installed and usable."""
    known = information()
    print(json.dumps(known) if arguments.json else _lines(known))
    return 0


def information() -> dict[str, Any]:
    """What is installed and usable here. Never fails: what cannot be determined is None, or says why."""
    versions = {name: _version(*(CUPY_DISTRIBUTIONS if name == "cupy" else (name,))) for name in PACKAGES}
    gpu = _cuda()
    folder = _try(disk_cache.root)
    backends = {"numba": _numba(versions["numba"]), "cuda": gpu}
    writable = folder is not None and _writable(folder)
    missing = _missing(versions, backends, writable)
    return {
        "fast": _fast(versions, backends),
        "missing": missing,
        "install": _install(missing),
        "versions": {"fastpe": __version__, "python": platform.python_version(), **versions},
        "platform": {"system": platform.platform(), "cpu": cpu_name(), "cores": os.cpu_count()},
        "backends": backends,
        "array_module": "cupy" if gpu["usable"] else "numpy",
        "caches": tuning.caches()._asdict(),
        "tuning": tuning.here()._asdict(),
        "cache": {"folder": None if folder is None else str(folder), "writable": writable},
    }


def _fast(versions: dict[str, str | None], backends: dict[str, Any]) -> list[str]:
    """What runs at the memory's speed here."""
    cpu, gpu = backends["numba"]["usable"], backends["cuda"]["usable"]
    kinds = {
        "NumPy arrays": cpu,
        **{what: cpu and versions[package] for what, package in ON_THE_CPU.items()},
        "CuPy arrays": gpu,
        "PyTorch tensors on the GPU": gpu and versions["torch"],
    }
    return [name for name, usable in kinds.items() if usable]


def _missing(versions: dict[str, str | None], backends: dict[str, Any], writable: bool) -> dict[str, str]:
    """What does not work here, and the command that installs it."""
    problems = {"NumPy arrays": backends["numba"]["problem"], "CuPy arrays": backends["cuda"]["problem"]}
    missing = {what: problem for what, problem in problems.items() if problem}
    for what, (packages, requirement) in OPTIONAL.items():
        if any(versions[package] is None for package in packages):
            missing[what] = _pip([requirement])
    if not writable:
        missing["compiled kernels that are kept"] = NO_CACHE
    return missing


def _install(missing: dict[str, str]) -> str | None:
    """One command for all that pip installs without asking which GPU there is."""
    wanted = [requirement for what, (_, requirement) in OPTIONAL.items() if what in missing]
    return _pip(wanted) if wanted else None


def _pip(requirements: list[str]) -> str:
    extras = [one.removeprefix("fastpe[").rstrip("]") for one in requirements if one.startswith("fastpe[")]
    ours = [f"'fastpe[{','.join(extras)}]'"] if extras else []
    return " ".join(["pip install", *ours, *(one for one in requirements if not one.startswith("fastpe["))])


def _try(question: Callable[[], Any]) -> Any:
    """The answer, or None: a broken driver or package may raise anything, and this command is there to say so."""
    try:
        return question()
    except Exception:
        return None


def _version(*distributions: str) -> str | None:
    versions = (_try(functools.partial(importlib.metadata.version, name)) for name in distributions)
    return next((version for version in versions if version), None)


def _writable(folder: os.PathLike[str]) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fastpe")
    except OSError:
        return False
    return True


def _numba(version: str | None) -> dict[str, Any]:
    problem = None
    try:
        importlib.import_module("numba")
    except ImportError as error:
        problem = f"Numba cannot be imported ({error}): pip install --force-reinstall numba"
    except Exception as error:
        problem = f"Numba cannot be imported ({type(error).__name__}: {error})"
    threads, source = _threads()
    return {"usable": problem is None, "problem": problem, "version": version, "threads": threads, "threads_from": source}


def _threads() -> tuple[int | None, str]:
    """The number of threads, and which of the rules in `pool.get_num_threads` decided it."""
    threads: int | None = _try(pool.get_num_threads)
    if pool._chosen is not None:
        return threads, "set_num_threads"
    if pool._positive(os.environ.get("FASTPE_NUM_THREADS")) is not None:
        return threads, "FASTPE_NUM_THREADS"
    if hasattr(sys.modules.get("torch"), "get_num_threads"):
        return threads, "torch"
    limits = [
        ("OMP_NUM_THREADS", pool._positive(os.environ.get("OMP_NUM_THREADS"))),
        ("the container's CPU quota", _try(pool._quota)),
        ("the cores this process may use", _try(pool._cores)),
    ]
    return threads, next((name for name, limit in limits if limit == threads), "fastpe's upper limit")


def _cuda() -> dict[str, Any]:
    try:
        problem = cuda.problem()
    except Exception as error:
        problem = f"CUDA cannot be examined ({type(error).__name__}: {error}): reinstall CuPy and the NVIDIA driver"
    known: dict[str, Any] = {"usable": problem is None, "problem": problem, "devices": []}
    if problem is not None:
        return {**known, "driver": None, "runtime": None, "nvrtc": None}
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    known["driver"] = _try(lambda: _dotted(runtime.driverGetVersion()))
    known["runtime"] = _try(lambda: _dotted(runtime.runtimeGetVersion()))
    known["nvrtc"] = _try(lambda: ".".join(str(part) for part in cupy.cuda.nvrtc.getVersion()))
    for number in range(_try(runtime.getDeviceCount) or 0):
        device = _try(functools.partial(_device, runtime, number))
        known["devices"].append({"number": number, **(device or _NO_DEVICE)})
    return known


_NO_DEVICE = dict.fromkeys(("name", "memory", "compute_capability", "compiled_for"))


def _device(runtime: Any, number: int) -> dict[str, Any]:
    properties = runtime.getDeviceProperties(number)
    return {
        "name": properties["name"].decode(errors="replace"),
        "memory": int(properties["totalGlobalMem"]),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "compiled_for": _try(lambda: cuda.architecture(10 * properties["major"] + properties["minor"])),
    }


def _dotted(version: int) -> str:
    """12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _missing_rows(known: dict[str, Any]) -> list[tuple[str, str]]:
    """One block: what is missing with its own command, and last the command that installs several at once."""
    said = [f"{what}: {remedy}" for what, remedy in known["missing"].items()]
    if sum(what in OPTIONAL for what in known["missing"]) > 1:
        said.append(f"all that pip can add to this: {known['install']}")
    return [("" if number else "missing", text) for number, text in enumerate(said)]


def _tuning(known: dict[str, Any]) -> str:
    """The caches, and what they decide or FASTPE_TUNING does."""
    levels, sizes = (", ".join(f"{name} {_short(size)}" for name, size in known[key].items()) for key in ("caches", "tuning"))
    return f"caches: {levels}; FASTPE_TUNING: {sizes}"


def _short(nbytes: int) -> str:
    return f"{nbytes >> 20}M" if nbytes and not nbytes % (1 << 20) else f"{nbytes >> 10}K" if not nbytes % 1024 else str(nbytes)


def _lines(known: dict[str, Any]) -> str:
    versions, machine, backends, cache = known["versions"], known["platform"], known["backends"], known["cache"]
    numba, gpu = backends["numba"], backends["cuda"]
    rows = [
        ("fast here", ", ".join(known["fast"]) or "nothing"),
        *_missing_rows(known),
        ("fastpe", f"{versions['fastpe']}, Python {versions['python']}"),
        ("platform", machine["system"]),
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores"),
        ("numba", numba["problem"] or f"usable, {numba['threads']} threads (from {numba['threads_from']})"),
    ]
    rows.append(("tuning", _tuning(known)))
    if gpu["usable"]:
        rows.append(("cuda", f"usable; driver for CUDA {gpu['driver']}, runtime {gpu['runtime']}, NVRTC {gpu['nvrtc']}"))
    else:
        rows.append(("cuda", f"not usable: {gpu['problem']}"))
    for device in gpu["devices"]:
        memory = f"{(device['memory'] or 0) / 2**30:.1f} GiB"
        text = f"{device['name']}, {memory}, compute capability {device['compute_capability']}"
        if (device["compiled_for"] or "").startswith("compute_"):
            text += f"; NVRTC does not know it yet: kernels are PTX for {device['compiled_for']}, which the driver translates"
        rows.append((f"  device {device['number']}", text))
    rows.append(("array_module()", known["array_module"]))
    if cache["folder"] is None:
        rows.append(("cache", NO_CACHE))
    else:
        rows.append(("cache", f"{cache['folder']} ({'can' if cache['writable'] else 'cannot'} be written)"))
    rows += [(name, versions[name] or "not installed") for name in PACKAGES]
    return "\n".join(f"{label:<16}{' '.join(str(value).split())}" for label, value in rows)
