"""
An array on the disk, chunk by chunk
====================================

Padded documents lie in a zarr array, larger each time. Dask encodes them where they lie: it reads a chunk, encodes it, and writes it back.
A mask keeps padding out of the count, over all chunks. What you will see: that the memory it takes stays the same, while that of reading
the array whole grows with it, and that both make the same bits.
"""

import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import dask
import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import zarr

import fastpe

ROWS, WIDTH, CHUNK = 512, 128, (8, 512, 128)  # of a document, in float32; a chunk of 2 MiB
COUNTS = (32, 64, 128, 256, 512)  # of documents
rng = np.random.default_rng(0)
folder = tempfile.TemporaryDirectory()


# %%
# Documents and their padding
# ---------------------------
def documents(count):
    z = zarr.create_array(Path(folder.name, f"{count}.zarr"), shape=(count, ROWS, WIDTH), chunks=CHUNK, dtype="f4")
    for first in range(0, count, CHUNK[0]):
        z[first : first + CHUNK[0]] = rng.standard_normal(CHUNK, np.float32)
    lengths = rng.integers(1, ROWS + 1, (count, 1))
    return z, np.arange(ROWS) >= ROWS - lengths  # padded on the left, as generators of text are


def most_memory(function):
    """What a function returns, and the most MiB of arrays that it holds at a time."""
    tracemalloc.start()
    result = function()
    most = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, most


# %%
# Whole, and chunk by chunk
# -------------------------
# ``add_encoding`` on a Dask array is lazy. ``da.store`` runs it, here back into the array that it is read from. Rows of padding are left
# as they are, and a document's first row stands at position 0, whatever lies before it.
dask.config.set(scheduler="threads", num_workers=2)
z, mask = documents(CHUNK[0])  # what is needed is loaded once
fastpe.add_encoding(z[:], mask=mask)
da.store(fastpe.add_encoding(da.from_zarr(z), mask=mask), z, lock=False)
sizes, whole, chunked = [], [], []
for count in COUNTS:
    z, mask = documents(count)
    expected, most = most_memory(lambda z=z, mask=mask: fastpe.add_encoding(z[:], mask=mask))
    whole.append(most)
    began = time.perf_counter()
    encoded = fastpe.add_encoding(da.from_zarr(z), mask=mask)
    _, most = most_memory(lambda encoded=encoded, z=z: da.store(encoded, z, lock=False))
    chunked.append(most)
    seconds = time.perf_counter() - began
    sizes.append(expected.nbytes / 2**20)
    assert all((z[one] == expected[one]).all() for one in range(0, count, 8))
    print(
        f"{sizes[-1]:4.0f} MiB in {seconds:.2f} s: {chunked[-1]:5.1f} MiB of memory in chunks, {whole[-1]:5.1f} whole; same bits"
    )
assert chunked[-1] < whole[-1] / 4
folder.cleanup()

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
axes.plot(sizes, whole, "o--", color="#D55E00", label="read whole")
axes.plot(sizes, chunked, "s-", color="#0072B2", label="in chunks, by Dask")
axes.set(
    title="How much memory does it take?", xlabel="MiB on the disk", ylabel="MiB of arrays", xlim=(0, None), ylim=(0, None)
)
axes.grid(color="0.9")
axes.legend(frameon=False, loc="upper left")
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
