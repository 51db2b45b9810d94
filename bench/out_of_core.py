"""Encode arrays on a disk in little memory: ``python -m bench.out_of_core [--gigabytes N] [--folder DIR] [--json FILE]``.

Each way reads all of a file and writes it back encoded, in a process of its own, whose peak of resident memory counts pages of files, too.
Beside it the disk copies the file. Files are written to the disk, and forgotten by the system, before the next way begins; bits are checked
on samples. Ends with 1 if a bit differs or a process needs MOST_MEMORY. The folder needs room for three times the gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastpe

ROWS, WIDTH, OFFSET = 4096, 1024, 7  # of a chunk, 16 MB of float32; and the position of the first row
MOST_MEMORY = 500e6


class OnDisk:
    """A file of NumPy as Dask takes arrays that lie elsewhere: only slices are mapped, each by itself."""

    def __init__(self, path: str) -> None:
        whole = np.load(path, mmap_mode="r")
        self.path, self.shape, self.dtype, self.ndim = path, whole.shape, whole.dtype, whole.ndim

    def __getitem__(self, index: Any) -> Any:
        return np.array(np.load(self.path, mmap_mode="r")[index])

    def __setitem__(self, index: Any, values: Any) -> None:
        np.load(self.path, mmap_mode="r+")[index] = values


def numbers(start: int) -> Any:
    """The chunk that begins at this row."""
    return np.random.default_rng(start).standard_normal((ROWS, WIDTH), np.float32)


# ---- the ways ----------------------------------------------------------------------------------------------------------------


def copy(folder: Path) -> None:
    """The disk's own: from one file into another, 16 MB at a time."""
    with (folder / "x.npy").open("rb") as source, (folder / "copy.npy").open("wb") as target:
        while data := source.read(ROWS * WIDTH * 4):
            target.write(data)


def memmap(folder: Path) -> None:
    """In place through ``np.memmap``, slice by slice."""
    for start in range(0, len(np.load(folder / "x.npy", mmap_mode="r")), ROWS):
        fastpe.add_encoding(np.load(folder / "x.npy", mmap_mode="r+")[start : start + ROWS], offset=OFFSET + start)


def dask_file(folder: Path) -> None:
    """In place through Dask, slice by slice."""
    import dask.array as da

    x = OnDisk(str(folder / "x.npy"))
    da.store(fastpe.add_encoding(da.from_array(x, chunks=(ROWS, WIDTH)), offset=OFFSET), x, lock=False)


def dask_zarr(folder: Path) -> None:
    """In place through Dask, chunk by chunk of zarr."""
    import dask.array as da
    import zarr

    z = zarr.open_array(folder / "x.zarr", mode="r+")
    da.store(fastpe.add_encoding(da.from_zarr(z), offset=OFFSET), z, lock=False)


def zarr_plus_one(folder: Path) -> None:
    """The same with ``da.map_blocks(np.add, ...)`` in place of the encoding."""
    import dask.array as da
    import zarr

    z = zarr.open_array(folder / "x.zarr", mode="r+")
    da.store(da.map_blocks(np.add, da.from_zarr(z), np.float32(1)), z, lock=False)


WAYS: dict[str, tuple[Callable[[Path], None], str, int]] = {  # the file that it writes, how often that is encoded by then
    "copy": (copy, "copy.npy", 0),
    "np.memmap": (memmap, "x.npy", 1),
    "Dask, a file": (dask_file, "x.npy", 2),
    "Dask, zarr": (dask_zarr, "x.zarr", 1),
    "Dask, zarr, x + 1": (zarr_plus_one, "x.zarr", -1),
}

# ---- measured ----------------------------------------------------------------------------------------------------------------


def peak_memory() -> float:
    """The most resident memory of this process so far. Linux's own counter begins anew with each program; ``getrusage``'s does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def forget(folder: Path) -> None:
    """Write all to the disk, and have the system keep none of it in memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(way: str, folder: Path) -> None:
    """What the process of a way does."""
    fastpe.add_encoding(np.zeros((8, WIDTH), np.float32))  # loads the kernel
    before, began = peak_memory(), time.perf_counter()
    WAYS[way][0](folder)
    os.sync()
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_memory(), "before": before}))


def make(folder: Path, chunks: int) -> None:
    """The source, once as a file of NumPy and once as zarr's, uncompressed."""
    import zarr

    shape = chunks * ROWS, WIDTH
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, shape)
    z = zarr.create_array(folder / "x.zarr", shape=shape, chunks=(ROWS, WIDTH), dtype="f4", compressors=None)
    for start in range(0, chunks * ROWS, ROWS):
        x[start : start + ROWS] = z[start : start + ROWS] = numbers(start)


def has_right_bits(path: Path, times: int, chunks: int) -> bool:
    """Whether eight chunks, the first and the last among them, have been encoded so often."""
    if path.suffix == ".npy":
        x: Any = np.load(path, mmap_mode="r")
    else:
        import zarr

        x = zarr.open_array(path, mode="r")
    for start in np.unique(np.linspace(0, chunks - 1, 8).astype(int)) * ROWS:
        expected = numbers(start)
        for _ in range(times):
            fastpe.add_encoding(expected, offset=OFFSET + start)
        if x[start : start + ROWS].tobytes() != expected.tobytes():
            return False
    return True


def measured(folder: Path, gigabytes: float) -> dict[str, dict[str, Any]]:
    """Seconds, memory and bits of every way, printed as they come."""
    chunks, found = max(2, round(gigabytes * 1e9 / (ROWS * WIDTH * 4))), {}
    nbytes = chunks * ROWS * WIDTH * 4
    make(folder, chunks)
    print(f"{nbytes / 1e9:.2f} GB of float32, ({chunks * ROWS}, {WIDTH}), read and written back in chunks of {ROWS} rows")
    for way, (_, written, times) in WAYS.items():
        forget(folder)
        command = [sys.executable, "-m", "bench.out_of_core", "--way", way, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout)
        result["right"] = times < 0 or has_right_bits(folder / written, times, chunks)
        found[way] = result
        share = found["copy"]["seconds"] / result["seconds"]
        what = f"{way:<20}{result['seconds']:6.1f} s {nbytes / result['seconds'] / 1e9:6.2f} GB/s, {share:4.2f} of the copy's speed"
        bits = "" if times < 0 else ", right bits" if result["right"] else ", WRONG BITS"
        print(f"{what}; at most {result['peak'] / 1e6:.0f} MB, {result['before'] / 1e6:.0f} before{bits}", flush=True)
        (folder / "copy.npy").unlink(missing_ok=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.out_of_core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the array (8)")
    parser.add_argument("--folder", type=Path, help="where the files lie, which are deleted; else a folder for temporary files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        run(given.way, given.folder)
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if shutil.disk_usage(folder).free < 3.1e9 * given.gigabytes:
            parser.error(f"{folder} has no room for {3 * given.gigabytes:g} GB; name another --folder")
        found = measured(Path(folder), given.gigabytes)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(not all(one["right"] and one["peak"] < MOST_MEMORY for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
