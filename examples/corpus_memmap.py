"""
A corpus larger than the memory
===============================

The sources of Python's own library, tokenised by byte, are looked up in a table, encoded, and written to a file that no array in
memory holds. A chunk may begin and end in the middle of a document; each document still counts its positions from 0. What you will
see: how the file grows and the memory does not, and that chunks give the same bits as a document read at once.
"""

import sys
import sysconfig
import tempfile
import time
import tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fastpe

WIDTH, CHUNK, MOST = 128, 16_384, 1_500_000  # of the encoded rows; bytes read at once, and in all

# %%
# The documents
# -------------
documents, total = [], 0
for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
    size = path.stat().st_size
    if size and total + size <= MOST:
        documents.append(path)
        total += size
folder = tempfile.TemporaryDirectory()
corpus, encoded_file = Path(folder.name, "corpus.bin"), Path(folder.name, "encoded.bin")
with corpus.open("wb") as file:
    sizes = [file.write(path.read_bytes()) for path in documents]
bounds = np.concatenate(([0], np.cumsum(sizes)))  # where documents begin
total = int(bounds[-1])
table = np.random.default_rng(0).standard_normal((256, WIDTH)).astype(np.float16)  # in earnest: np.load("table.npy")

# %%
# Chunk by chunk
# --------------
# Within a chunk ``cu_seqlens`` says where documents begin, and ``offset`` at which position each of them goes on, which is 0 for all
# but the first. ``embed`` looks up, scales and encodes in one pass, straight into the pages of the file.
fastpe.embed(np.zeros(8, np.uint8), table, "sinusoidal", scale=WIDTH**0.5, cu_seqlens=[0, 4, 8], offset=[1, 0])  # compiles
tracemalloc.start()
began, read, written, allocated = time.perf_counter(), [], [], []
for start in range(0, total, CHUNK):
    stop = min(start + CHUNK, total)
    ids = np.fromfile(corpus, np.uint8, stop - start, offset=start)
    first = int(np.searchsorted(bounds, start, side="right")) - 1  # the document of the first row
    inside = bounds[first + 1 : np.searchsorted(bounds, stop)] - start
    offset = np.zeros(len(inside) + 1, np.int64)
    offset[0] = start - bounds[first]
    mode = "r+" if start else "w+"
    rows = np.memmap(encoded_file, np.float16, mode, start * WIDTH * 2, (stop - start, WIDTH))
    cu_seqlens = [0, *inside.tolist(), stop - start]
    fastpe.embed(ids, table, "sinusoidal", scale=WIDTH**0.5, cu_seqlens=cu_seqlens, offset=offset, out=rows)
    del rows  # unmapped: the system writes the pages when it likes
    read.append(stop / 1e6)
    written.append(stop * WIDTH * 2 / 2**20)
    allocated.append(tracemalloc.get_traced_memory()[1] / 2**20)
tracemalloc.stop()
seconds = time.perf_counter() - began
print(f"{len(documents)} documents, {total:,} tokens: {written[-1]:.0f} MiB of encoded rows in {seconds:.1f} s")
print(f"{written[-1] / seconds:.0f} MiB/s, and never more than {allocated[-1]:.2f} MiB of new arrays")
assert allocated[-1] < written[-1] / 100

# %%
# The same bits as a document at once
# -----------------------------------
longest = int(np.argmax(sizes))
begin, end = int(bounds[longest]), int(bounds[longest + 1])
whole = fastpe.embed(np.fromfile(corpus, np.uint8, end - begin, offset=begin), table, "sinusoidal", scale=WIDTH**0.5)
found = np.memmap(encoded_file, np.float16, "r", begin * WIDTH * 2, whole.shape)
assert (found == whole).all()
chunks = (end - 1) // CHUNK - begin // CHUNK + 1
print(f"{documents[longest].name}: {end - begin:,} rows from {chunks} chunks, bit for bit those of one call")
del found
folder.cleanup()

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
axes.plot(read, written, color="#0072B2", label="encoded rows on the disk")
axes.plot(read, allocated, "--", color="#D55E00", label="most memory of arrays")
axes.set_yscale("log")
axes.yaxis.set_major_formatter("{x:g}")
axes.set(title="Does the memory grow with the corpus?", xlabel="tokens read, in millions", ylabel="MiB", xlim=(0, None))
axes.grid(color="0.9")
axes.legend(frameon=False, loc="center right")
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
