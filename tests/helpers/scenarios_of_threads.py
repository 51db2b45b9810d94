"""Scenarios of threads in one process."""

from __future__ import annotations

import faulthandler
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from typing import Any

import numpy as np
from scenario_tools import LARGE, SECONDS, THREADS, helpers, in_threads, pair, prepare, renew_pool, same, scenario, work

import fastpe
from fastpe._backends.host import pool


@scenario
def eight_threads() -> None:
    prepare()
    work(1)
    assert len(helpers()) == THREADS - 1, "no helpers were started"
    in_threads([functools.partial(work, 15)] * 8)  # which share the threads
    assert len(helpers()) == THREADS - 1
    assert all(thread.daemon for thread in helpers())


@scenario
def executor() -> None:
    import concurrent.futures

    prepare()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: work(4), range(24)))


@scenario
def nested_threads() -> None:
    """A task of a thread pool starts threads that call while it calls itself."""
    import concurrent.futures

    prepare()

    def task(_: int) -> bool:
        in_threads([functools.partial(work, 2), functools.partial(work, 2)])
        return work(2)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert all(threads.map(task, range(8)))


@scenario
def first_call_from_eight_threads() -> None:
    """The kernel is compiled once and everybody gets it."""
    from fastpe._backends.host import compile as numba

    compiled, compile_kernel = [], numba._compile

    def count(*variant: Any) -> Any:
        compiled.append(variant)
        return compile_kernel(*variant)

    numba._compile = count
    fastpe.set_num_threads(THREADS)
    results: list[np.ndarray] = []
    given = np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)
    in_threads([lambda: results.append(fastpe.add_encoding(given.copy()))] * 8)
    assert len(compiled) == 1, compiled
    assert len(results) == 8
    assert all(same(x, pair(LARGE)[1]) for x in results)


@scenario
def threads_cannot_start() -> None:
    """Without helpers the caller works alone; once threads can be started again, they are."""
    prepare()
    start = threading.Thread.start
    renew_pool()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse
    try:
        work()
        assert len(pool._pool._threads) == 0
    finally:
        threading.Thread.start = start
    work()
    assert len(pool._pool._threads) == THREADS - 1


@scenario
def helpers_get_jobs() -> None:
    """A helper enters the kernel while the caller is in it, with the same addresses."""
    renew_pool()
    seen, entered = [], threading.Event()

    def kernel(call: int, control: int, number: int) -> None:
        seen.append((call, control, number, threading.current_thread().name))
        if number == 0:
            assert entered.wait(30), "no helper came"
        else:
            entered.set()

    pool.run(kernel, (3, 4), 1, None)
    assert sorted(seen) == [(3, 4, 0, threading.current_thread().name), (3, 4, 1, "fastpe-1")]


def wait_until_served() -> None:
    """Until the helpers have taken up every job; on a busy machine they lag behind."""
    limit = time.monotonic() + 30
    while not pool._pool._jobs.empty() and time.monotonic() < limit:
        time.sleep(0.01)
    assert pool._pool._jobs.empty(), "helpers stopped serving"


@scenario
def stale_jobs_hold_nothing() -> None:
    """While every helper is busy elsewhere, a call ends, and what it used is freed at once."""
    prepare()
    renew_pool()
    busy, release = threading.Barrier(THREADS), threading.Event()

    def blocked(number: int) -> None:
        if number > 0:
            busy.wait(30)
        release.wait(30)

    blocking = threading.Thread(target=pool.run, args=(blocked, (), THREADS - 1, None))
    blocking.start()
    busy.wait(30)

    references: list[weakref.ref] = []
    run = pool.run

    def remember(kernel: Any, addresses: Any, count: int, keepalive: Any, slots: Any) -> None:
        assert count == THREADS - 1
        references.append(weakref.ref(keepalive))
        run(kernel, addresses, count, keepalive, slots)

    pool.run = remember
    try:
        for _ in range(3):
            given, expected = pair(LARGE)
            x = given.copy()
            references.append(weakref.ref(x))
            assert same(fastpe.add_encoding(x), expected)
            del x
    finally:
        pool.run = run
    gc.collect()
    assert [reference() for reference in references] == [None] * 6, "a queued job keeps memory alive"
    release.set()
    blocking.join()
    work()
    wait_until_served()


@scenario
def memory_does_not_grow() -> None:
    prepare()
    given = pair(LARGE)[0]
    x = given.copy()
    for _ in range(50):
        fastpe.add_encoding(x)
    wait_until_served()
    gc.collect()
    tracemalloc.start()
    grown = []
    for _ in range(3):  # a block of arguments more is kept where helpers are late, once; a leak is in every round
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            fastpe.add_encoding(x)
        wait_until_served()
        gc.collect()
        grown.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    assert min(grown) < 16 << 10, f"300 calls left {grown} bytes"


@scenario
def collector_in_helpers() -> None:
    """A collection that runs other threads while a helper takes up a job does not end the helper."""
    prepare()
    work()
    dead, started = [], helpers()
    threading.excepthook = dead.append

    def pause(phase: str, info: dict[str, int]) -> None:
        if threading.current_thread().name.startswith("fastpe-"):
            time.sleep(0.0005)

    gc.callbacks.append(pause)
    before = gc.get_threshold()
    gc.set_threshold(1, 10_000, 10_000)
    try:
        work(150, (LARGE,))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(pause)
    assert not dead, dead[0].exc_value
    assert helpers() == started


@scenario
def busy_neighbour() -> None:
    """A process that spins on a core: the caller waits for a helper there no longer than the helper's last chunk takes."""
    prepare()
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, set(cores))
    x = np.zeros((1, 16_384, 1024), np.float32)

    def median(threads: int) -> float:
        fastpe.set_num_threads(threads)
        found = []
        for _ in range(31):
            begin = time.perf_counter()
            fastpe.add_encoding(x)
            found.append(time.perf_counter() - begin)
        return sorted(found)[15]

    median(2)
    alone = median(1)
    code = "import os, sys\nif len(sys.argv) > 1: os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    spinning = subprocess.Popen([sys.executable, "-c", code, *(str(core) for core in cores[1:])])
    try:
        time.sleep(0.2)
        shared = median(2)
    finally:
        spinning.kill()
        spinning.wait()
    # Half a core less: at worst the caller's core and a helper that comes and goes.
    assert shared < 2 * alone, f"{shared * 1e3:.2f} ms beside a busy process, {alone * 1e3:.2f} ms on one thread without"


def _float64_encoding(positions: np.ndarray, width: int, encoding: fastpe.Sinusoidal) -> np.ndarray:
    """The usual formula: good to 1e-9 up to position 2^20. (The tests' reference sets a precision for the whole process.)"""
    frequencies, _ = encoding.frequencies(width)
    angles = positions[..., None] * frequencies
    sine, cosine, pairs = np.sin(angles), np.cos(angles), width // 2
    out = np.zeros((*positions.shape, width))
    half = pairs if encoding.frequency_shift else (width + 1) // 2
    left, right = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if encoding.layout == "interleaved"
        else (
            slice(0, pairs),
            slice(half, half + pairs),
        )
    )
    out[..., left], out[..., right] = sine[..., :pairs], cosine[..., :pairs]
    if width % 2 and not encoding.frequency_shift:
        out[..., width - 1 if encoding.layout == "interleaved" else half - 1] = sine[..., -1]
    return out


def _random_calls(seed: int, seconds: float) -> int:
    """Random calls until the time is over; AssertionError at a wrong element."""
    rng = np.random.default_rng(seed)
    dtypes = [np.float32, np.float64, np.float16]
    sides = [fastpe.Sinusoidal(), fastpe.Sinusoidal(layout="concatenated"), fastpe.Sinusoidal(base=77.0, frequency_shift=1)]
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        kind = rng.integers(4)
        if kind < 2:
            (_random_rotation, _random_embedding)[kind](rng)
            count += 1
            continue
        rows, width, batch = int(rng.choice([1, 7, 64, 700])), int(rng.choice([1, 8, 65, 512])), int(rng.choice([1, 2, 5]))
        encoding = sides[rng.integers(3)]
        if encoding.frequency_shift and width < 2:
            continue
        x = rng.standard_normal((batch, rows, width)).astype(dtypes[rng.integers(3)])
        form, offset = rng.integers(6), int(rng.integers(-(1 << 20), 1 << 20)) if rng.random() < 0.5 else 0
        where = np.broadcast_to(offset + np.arange(rows), (batch, rows))
        kept = np.ones((batch, rows), bool)
        given: dict[str, Any] = {"offset": offset}
        if form == 1:
            where = rng.integers(0, 1 << 20, (batch, rows))
            given = {"positions": where}
        elif form == 2:
            offsets = rng.integers(0, 1 << 20, batch)
            where, given = offsets[:, None] + np.arange(rows), {"offset": offsets}
        elif form == 3:
            kept = rng.random((batch, rows)) < 0.7
            where, given = offset + np.cumsum(kept, 1) - 1, {"mask": kept, "offset": offset}
        elif form == 4:
            cut = int(rng.integers(0, rows + 1))
            where = np.broadcast_to(np.concatenate([np.arange(cut), np.arange(rows - cut)]), (batch, rows))
            given = {"cu_seqlens": [0, cut, rows]}
        out = np.empty_like(x) if form == 5 else None
        result = fastpe.add_encoding(x.copy(), encoding, out=out, **given)
        chosen = np.unique(rng.integers(0, rows, 4))
        expected = _float64_encoding(where[:, chosen], width, encoding)
        expected = np.where(kept[:, chosen, None], expected, 0) + x[:, chosen].astype(np.float64)
        slack = {np.float32: 1e-6, np.float64: 1e-8, np.float16: 4e-3}[x.dtype.type]
        wrong = np.abs(result[:, chosen].astype(np.float64) - expected) > slack
        assert not wrong.any(), f"seed {seed}, call {count}: {x.dtype} {x.shape}, {encoding}, {sorted(given)}"
        count += 1
    return count


def _random_rotation(rng: np.random.Generator) -> None:
    """q and k of any size: keeps norms, and turning back restores them."""
    batch, rows, heads, width = (int(rng.choice(sizes)) for sizes in ([1, 3], [1, 9, 600], [1, 8], [8, 64]))
    q, k = (rng.standard_normal((batch, many, rows, width)).astype(np.float32) for many in (heads, 2))
    before = q.copy(), k.copy()
    offset: Any = int(rng.integers(0, 1 << 20)) if rng.random() < 0.5 else rng.integers(0, 1 << 20, batch)
    encoding = (fastpe.Rotary(), fastpe.Rotary(interleaved=True, base=500.0))[rng.integers(2)]
    fastpe.apply_rotary(q, k, encoding, offset=offset)
    chosen = np.unique(rng.integers(0, rows, 3))
    alone = fastpe.apply_rotary(
        before[0][:, :, chosen].copy(), None, encoding, positions=np.add.outer(np.broadcast_to(offset, batch), chosen)
    )
    assert (q[:, :, chosen] == alone).all(), f"rotation {q.shape}, {encoding}"
    fastpe.apply_rotary(q, k, encoding, offset=offset, inverse=True)
    for x, was in zip((q, k), before, strict=True):
        assert np.abs(x - was).max() < 3e-6, f"rotation back {x.shape}, {encoding}"


def _random_embedding(rng: np.random.Generator) -> None:
    """Rows of a table, with positions that add_encoding adds too."""
    batch, rows, width = (int(rng.choice(sizes)) for sizes in ([1, 5], [1, 30, 900], [8, 65, 512]))
    table = rng.standard_normal((300, width)).astype((np.float32, np.float64)[rng.integers(2)])
    ids, offset = rng.integers(0, 300, (batch, rows)), int(rng.integers(0, 1 << 20))
    found = fastpe.embed(ids, table, fastpe.Sinusoidal(), scale=1.5, offset=offset)
    assert (found == fastpe.add_encoding(table[ids], input_scale=1.5, offset=offset)).all(), (
        f"embedding {ids.shape}, {table.dtype}"
    )
    learned = fastpe.Learned(table, "clip")
    assert (fastpe.embed(ids, table, learned) == table[ids] + table[np.minimum(np.arange(rows), 299)]).all()


def _resident_bytes() -> int:
    gc.collect()
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # only Linux says so
        return 0


def _random_calls_in_a_process(seed: int, seconds: float) -> None:
    for threads in (1, 2):
        fastpe.set_num_threads(threads)
        _random_calls(seed + threads, seconds / 2)


@scenario
def stress() -> None:
    """Random calls from 8 threads and 4 forked processes at once: no wrong element, no hang, no growing memory.

    Six seconds; FASTPE_STRESS_SECONDS for longer.
    """
    import multiprocessing

    seconds = float(os.environ.get("FASTPE_STRESS_SECONDS", "6"))
    faulthandler.dump_traceback_later(seconds + SECONDS, exit=True)
    prepare()
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    _random_calls(99, 1.0)
    processes = [context.Process(target=_random_calls_in_a_process, args=(1000 * n, seconds)) for n in range(4)]
    for process in processes:
        process.start()
    counts: list[int] = []
    resident = []
    for turn in range(4):
        in_threads([lambda seed=100 * turn + n: counts.append(_random_calls(seed, seconds / 4)) for n in range(8)])
        resident.append(_resident_bytes())
    for process in processes:
        process.join(seconds + 60)
        assert process.exitcode == 0, f"a process ended with {process.exitcode}"
    assert len(counts) == 32, "a thread ended early"
    assert sum(counts) > 50 * seconds, f"only {sum(counts)} calls"
    # The allocator keeps what threads have freed, more or less of it; a call that kept its array would show in every turn.
    assert resident[3] - resident[1] < 200 << 20, f"resident memory after each quarter: {resident}"
