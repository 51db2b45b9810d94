"""``python -m fastpe``: what is installed and usable, a demonstration on real text, pictures of encodings, benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from .._backends import cuda
from .._backends import disk_cache as cache
from .._backends.host import pool
from .._core.checks import FLOATS
from . import cli_bench, cli_plot

CHECK_FAILED, BAD_ARGUMENT, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
DEFAULT_PLOT = "heatmap.png"
PACKAGES = ("numpy", "numba", "llvmlite", "cupy", "torch", "ml_dtypes", "matplotlib")
CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")


NO_CACHE = "none: every process compiles the kernels anew; set FASTPE_CACHE_DIR to a folder that only you can write"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (the demo's check failed), 2 (a bad argument), 130 (Ctrl-C)."""
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse has printed help or an error
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left. What Python still holds for it must go somewhere, or flushing at exit complains.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastpe", description="Positional encodings at memory speed, in place.")
    parser.add_argument("--version", action="version", version=f"fastpe {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="say what is installed and usable here")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(command=_info)

    demo = commands.add_parser("demo", help="encode a text in place, check the result, time it")
    demo.add_argument(
        "file", nargs="?", metavar="FILE", help="a text, or - for standard input (default: sonnets of Shakespeare)"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object")
    demo.add_argument("--dim", type=int, default=512, metavar="D", help="width (default: 512)")
    demo.add_argument("--dtype", choices=FLOATS, default="float32", help="element type (default: float32)")
    picture = demo.add_mutually_exclusive_group()
    picture.add_argument("--plot", metavar="PATH", help=f"where to save the heat map (default: {DEFAULT_PLOT})")
    picture.add_argument("--no-plot", action="store_true", help="save no heat map")
    demo.set_defaults(command=_demo)

    cli_plot.add_parser(commands).set_defaults(command=functools.partial(_refusing, cli_plot.run))

    cli_bench.add_parser(commands).set_defaults(command=functools.partial(_refusing, cli_bench.run))

    listed = commands.add_parser("recipes", help="list what published models use")
    listed.add_argument("--markdown", action="store_true", help="as a table with fields and sources")
    listed.set_defaults(command=_recipes)

    kept = commands.add_parser("cache", help="say what compiled kernels are kept, or delete them")
    what = kept.add_mutually_exclusive_group()
    what.add_argument("--info", action="store_true", help="say what is kept and where (the default)")
    what.add_argument("--clear", action="store_true", help="delete every compiled kernel")
    kept.set_defaults(command=_cache)
    return parser


def _refuse(text: object) -> int:
    print(" ".join(str(text).split()), file=sys.stderr)
    return BAD_ARGUMENT


def _refusing(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command whose errors are those of its arguments."""
    try:
        return command(arguments)
    except OSError as error:
        return _refuse(f"fastpe: {error.filename!r} cannot be used: {error.strerror or error}.")
    except (ImportError, TypeError, ValueError) as error:
        return _refuse(error)


# ---- demo and cache ----------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo, plot

    if not 1 <= arguments.dim <= demo.MOST_DIM:
        return _refuse(f"demo: --dim must be between 1 and {demo.MOST_DIM}, got {arguments.dim}.")
    asked = arguments.plot is not None
    try:
        if asked:  # say now what would be missing later
            plot.require(arguments.plot)
            _require_folder(arguments.plot)
    except (ImportError, ValueError) as error:
        return _refuse(error)
    try:
        with demo.Progress(sys.stderr) as progress:
            report = demo.run(arguments.file, arguments.dim, arguments.dtype, progress)
    except (demo.BadArgument, ImportError) as error:
        return _refuse(error)
    if not arguments.no_plot:
        report.plot, report.plot_note = _picture(arguments.plot if asked else DEFAULT_PLOT, arguments.dim)
    print(json.dumps(dataclasses.asdict(report)) if arguments.json else demo.table(report))
    if not report.ok:
        print("demo: the result differs from the formula by more than fastpe promises.", file=sys.stderr)
        return CHECK_FAILED
    return _refuse(f"demo: heat map {report.plot_note}.") if asked and report.plot is None else 0


def _require_folder(path: str) -> None:
    folder, name = os.path.split(path)
    if not name or os.path.isdir(path) or not os.path.isdir(folder or "."):
        raise ValueError(f"demo: --plot must name a file in a folder that exists, got {path!r}.")


def _picture(path: str, dim: int) -> tuple[str | None, str | None]:
    """Where the heat map was saved, or why it was not."""
    from . import plot

    try:
        plot.save(plot.heatmap(dim=dim), path)
    except ImportError:
        return None, f"not drawn: {plot.INSTALL}"
    except OSError as error:
        return None, f"not saved: {path}: {error.strerror or error}"
    return os.path.abspath(path), None


def _recipes(arguments: argparse.Namespace) -> int:
    from ..encodings import recipes as catalog

    if arguments.markdown:
        print(catalog.table(), end="")
    else:
        width = max(map(len, catalog.CATALOGUE))
        for name, entry in catalog.CATALOGUE.items():
            print(f"{name:<{width}}  {entry.kind.__name__:<10}  {entry.summary}")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    place = cache.root()
    if place is None:
        print(NO_CACHE)
    elif arguments.clear:
        print(f"deleted {cache.clear()} compiled kernels in {place}")
    else:
        found = cache.files()
        print(f"{len(found)} compiled kernels, {sum(path.stat().st_size for path in found) / 2**20:.1f} MiB, in {place}")
    return 0


# ---- info --------------------------------------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> int:
    found = information()
    print(json.dumps(found) if arguments.json else _lines(found))
    return 0


def information() -> dict[str, Any]:
    """What is installed and usable here. Never fails: what cannot be found out is None, or says why."""
    versions = {name: _version(*(CUPY_DISTRIBUTIONS if name == "cupy" else (name,))) for name in PACKAGES}
    gpu = _cuda()
    folder = _try(cache.root)
    return {
        "versions": {"fastpe": __version__, "python": platform.python_version(), **versions},
        "platform": {"system": platform.platform(), "cpu": cpu_name(), "cores": os.cpu_count()},
        "backends": {"numba": _numba(versions["numba"]), "cuda": gpu},
        "array_module": "cupy" if gpu["usable"] else "numpy",
        "cache": {"folder": None if folder is None else str(folder), "writable": folder is not None and _writable(folder)},
    }


def _try(question: Callable[[], Any]) -> Any:
    """The answer, or None: a broken driver or package may raise anything, and this command is there to say so."""
    try:
        return question()
    except Exception:
        return None


def _version(*distributions: str) -> str | None:
    found = (_try(functools.partial(importlib.metadata.version, name)) for name in distributions)
    return next((version for version in found if version), None)


def _writable(folder: os.PathLike[str]) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fastpe")
    except OSError:
        return False
    return True


def cpu_name() -> str | None:
    """The processor as the system calls it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


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
    found: dict[str, Any] = {"usable": problem is None, "problem": problem, "devices": []}
    if problem is not None:
        return {**found, "driver": None, "runtime": None, "nvrtc": None}
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    found["driver"] = _try(lambda: _dotted(runtime.driverGetVersion()))
    found["runtime"] = _try(lambda: _dotted(runtime.runtimeGetVersion()))
    found["nvrtc"] = _try(lambda: ".".join(str(part) for part in cupy.cuda.nvrtc.getVersion()))
    for number in range(_try(runtime.getDeviceCount) or 0):
        device = _try(functools.partial(_device, runtime, number))
        found["devices"].append({"number": number, **(device or {"name": None, "memory": None, "compute_capability": None})})
    return found


def _device(runtime: Any, number: int) -> dict[str, Any]:
    properties = runtime.getDeviceProperties(number)
    return {
        "name": properties["name"].decode(errors="replace"),
        "memory": int(properties["totalGlobalMem"]),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
    }


def _dotted(version: int) -> str:
    """12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _lines(found: dict[str, Any]) -> str:
    versions, machine, backends, place = found["versions"], found["platform"], found["backends"], found["cache"]
    numba, gpu = backends["numba"], backends["cuda"]
    rows = [
        ("fastpe", f"{versions['fastpe']}, Python {versions['python']}"),
        ("platform", machine["system"]),
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores"),
        ("numba", numba["problem"] or f"usable, {numba['threads']} threads (from {numba['threads_from']})"),
    ]
    if gpu["usable"]:
        rows.append(("cuda", f"usable; driver for CUDA {gpu['driver']}, runtime {gpu['runtime']}, NVRTC {gpu['nvrtc']}"))
    else:
        rows.append(("cuda", f"not usable: {gpu['problem']}"))
    for device in gpu["devices"]:
        memory = f"{(device['memory'] or 0) / 2**30:.1f} GiB"
        text = f"{device['name']}, {memory}, compute capability {device['compute_capability']}"
        rows.append((f"  device {device['number']}", text))
    rows.append(("array_module()", found["array_module"]))
    if place["folder"] is None:
        rows.append(("cache", NO_CACHE))
    else:
        rows.append(("cache", f"{place['folder']} ({'can' if place['writable'] else 'cannot'} be written)"))
    rows += [(name, versions[name] or "not installed") for name in PACKAGES]
    return "\n".join(f"{label:<16}{' '.join(str(value).split())}" for label, value in rows)
