"""Calls from threads, forked children, dying interpreters and interrupted ones. One process runs the scenarios it is told to:

    python concurrency_scenarios.py NAME [NAME ...]

Prints ``ok NAME`` after each and leaves with 0; a wrong value raises, and a hang ends with the stacks of all threads and 1. Values
are compared bit for bit with those that one thread makes. What a scenario alone needs is imported by it: the order in which modules
register what they do before a fork is a part of what is tested, and torch takes seconds.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe._backends.host import pool

SECONDS = 100  # for all scenarios of a process
CHILD_SECONDS = 50  # for a forked child
THREADS = 4  # more than the cores of a small machine: helpers run late
SMALL = (3, 5, 64)  # 4 KB: the caller alone
LARGE = (4, 1024, 512)  # 8 MB, 64 chunks: three helpers
HUGE = (8, 2048, 512)  # 32 MB: long enough to be interrupted

SCENARIOS: dict[str, Callable[[], None]] = {}


def scenario(function: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS[function.__name__] = function
    return function


# ---- what the scenarios share ------------------------------------------------------------------------------------------------


@functools.lru_cache
def pair(shape: tuple[int, ...], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """An array and what a single thread makes of it."""
    before = pool._chosen
    given = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    fastpe.set_num_threads(1)
    expected = fastpe.add_encoding(given.copy())
    fastpe.set_num_threads(before)
    return given, expected


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def work(rounds: int = 5, shapes: tuple[tuple[int, ...], ...] = (SMALL, LARGE)) -> bool:
    """Add to fresh copies and compare."""
    for _ in range(rounds):
        for shape in shapes:
            given, expected = pair(shape)
            x = given.copy()
            assert fastpe.add_encoding(x) is x
            assert same(x, expected), f"{np.count_nonzero(x != expected)} of {x.size} elements differ for {shape}"
    return True


def prepare() -> None:
    """Compile, compute what is expected, and let calls use helpers."""
    for shape in (SMALL, LARGE):
        pair(shape)
    fastpe.set_num_threads(THREADS)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastpe-")]


def in_threads(functions: list[Callable[[], Any]]) -> None:
    """Run functions at once, one thread each; raise what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> None:
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def fork(function: Callable[[], Any]) -> int:
    """Run a function in a forked child; return the child's process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait_for(child: int, seconds: float = CHILD_SECONDS) -> None:
    """Raise unless the child ends by itself, and well."""
    limit = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() > limit:
            os.kill(child, signal.SIGUSR1)  # shows its stacks
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("a forked child hangs")
        time.sleep(0.002)
    assert status == 0, f"a forked child ended with status {status}"


class Background:
    """Threads that repeat a function until the block ends."""

    def __init__(self, function: Callable[[], Any], count: int) -> None:
        self._function, self._stop, self._errors = function, threading.Event(), []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._function()
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


# ---- threads -----------------------------------------------------------------------------------------------------------------


@scenario
def eight_threads() -> None:
    prepare()
    in_threads([functools.partial(work, 15)] * 8)
    assert len(helpers()) == THREADS - 1, "no helpers were started"
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


def renew_pool() -> None:
    """A pool without threads, when the helpers of the one before have left their spin slots: a call would go on finding them there."""
    limit = time.monotonic() + 30
    while any(slots.waiting() for slots in pool._spin_slots.values()) and time.monotonic() < limit:
        time.sleep(0.01)
    pool._pool = pool.Pool()


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
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(300):
        fastpe.add_encoding(x)
    wait_until_served()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 64 << 10, f"300 calls left {grown} bytes"


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


# ---- forks -------------------------------------------------------------------------------------------------------------------


@scenario
def fork_after_a_call() -> None:
    prepare()
    work()
    assert helpers()
    for _ in range(3):
        wait_for(fork(_child_works))
    work()


def _child_works() -> None:
    assert not helpers(), "the parent's helpers do not exist here"
    work()
    assert len(helpers()) == THREADS - 1


@scenario
def fork_of_a_fork() -> None:
    """The child does not call, the grandchild does."""
    prepare()
    work()
    wait_for(fork(lambda: wait_for(fork(_child_works))), CHILD_SECONDS + 20)
    work()


@scenario
def fork_while_threads_call() -> None:
    prepare()
    with Background(functools.partial(work, 1), 3):
        time.sleep(0.05)
        for _ in range(12):
            wait_for(fork(_child_works))
    work()


@scenario
def fork_in_a_thread_while_threads_call() -> None:
    prepare()
    with Background(functools.partial(work, 1), 2):
        in_threads([lambda: wait_for(fork(_child_works))] * 4)
    work()


@scenario
def fork_while_a_thread_plans() -> None:
    """New encodings need tables; a child forked meanwhile makes its own."""
    prepare()
    bases = iter(range(10_000, 10**9))
    small = np.zeros((1, 2, 2048), np.float32)

    def child() -> None:
        fastpe.add_encoding(np.zeros((1, 2, 96), np.float32), fastpe.Sinusoidal(base=777.0))
        work(1)

    with Background(lambda: fastpe.add_encoding(small.copy(), fastpe.Sinusoidal(base=next(bases))), 1):
        for turn in range(25):
            time.sleep(0.0007 * (turn % 7))
            wait_for(fork(child))


@scenario
def fork_while_a_thread_compiles() -> None:
    """The child must compile too: it neither finds a lock held by a thread it does not have nor shares half a kernel."""
    from fastpe._backends.host import compile as numba

    prepare()
    moments = random.Random(1)

    def child(dtype: str) -> None:
        known = len(numba._kernels)
        fastpe.add_encoding(np.zeros(SMALL, dtype), out=np.empty(SMALL, dtype))
        assert len(numba._kernels) == known + 1, "nothing was compiled: this tests nothing"

    for dtype, other in (("float16", "float64"), ("float64", "float32")):
        x = np.zeros(SMALL, dtype)
        thread = threading.Thread(target=fastpe.add_encoding, args=(x,))
        thread.start()
        time.sleep(moments.uniform(0, 0.3))
        pid = fork(functools.partial(child, other))
        work(2)
        thread.join()
        wait_for(pid)
        assert same(x, fastpe.add_encoding(np.zeros(SMALL, dtype)))


@scenario
def fork_during_the_first_call() -> None:
    """The first call of all, which imports and compiles, is under way in a thread; the child makes its own first call."""

    def life(moment: float) -> None:
        x = np.zeros(SMALL, np.float32)
        thread = threading.Thread(target=fastpe.add_encoding, args=(x,))
        thread.start()
        time.sleep(moment)
        child = fork(lambda: fastpe.add_encoding(np.zeros(SMALL, np.float32)))
        thread.join()
        wait_for(child)
        assert same(x, fastpe.add_encoding(np.zeros(SMALL, np.float32)))

    for moment in (0, 0.004, 0.15):
        wait_for(fork(lambda moment=moment: life(moment)), CHILD_SECONDS + 20)


# ---- worker processes --------------------------------------------------------------------------------------------------------


def _worker(rounds: int) -> bool:
    fastpe.set_num_threads(THREADS)
    return work(rounds)


@scenario
def process_pools() -> None:
    """Every start method that the system has, after the parent has called."""
    import multiprocessing

    prepare()
    work()
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as workers:
            assert workers.map_async(_worker, [2] * 4).get(timeout=CHILD_SECONDS) == [True] * 4, method
        work(2)


class Samples:
    """A data set for torch: item i is what fastpe makes of an array of i."""

    shape = (2, 512, 512)  # 2 MB: one helper

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        import torch

        assert fastpe.get_num_threads() == torch.get_num_threads() == 1, "torch gives a worker one thread"
        alone = fastpe.add_encoding(np.full(self.shape, i, np.float32))
        fastpe.set_num_threads(THREADS)
        shared = fastpe.add_encoding(np.full(self.shape, i, np.float32))
        fastpe.set_num_threads(None)
        assert same(alone, shared)
        return torch.from_numpy(shared)


@scenario
def torch_workers() -> None:
    """Workers of a DataLoader, before the parent has called fastpe and after."""
    import torch

    results = []
    for _ in range(2):
        loader = torch.utils.data.DataLoader(Samples(), batch_size=2, num_workers=2, timeout=CHILD_SECONDS)
        results.append(np.concatenate([batch.numpy() for batch in loader]))
        prepare()
        work()
        expected = np.stack([fastpe.add_encoding(np.full(Samples.shape, i, np.float32)) for i in range(len(Samples()))])
        fastpe.set_num_threads(None)
    assert all(same(result, expected) for result in results)


@scenario
def torch_threads() -> None:
    """torch's own threads work at the same time; its number is ours unless somebody has chosen another."""
    import torch

    prepare()

    def torch_work() -> None:
        a = torch.zeros(1 << 20)
        for _ in range(100):
            a.add_(1)
        assert bool((a == 100).all())

    in_threads([torch_work, functools.partial(work, 8)] * 4)
    fastpe.set_num_threads(None)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert fastpe.get_num_threads() == count
        work(1)


# ---- the end of the interpreter ----------------------------------------------------------------------------------------------


class CallsWhenDestroyed:
    """Calls in ``__del__``; says so on the standard output, whose Python object may be gone by then."""

    def __init__(self, name: str) -> None:
        self.name, self.given, self.expected = name, *pair(LARGE)
        self.add_encoding, self.same, self.write = fastpe.add_encoding, same, os.write

    def __del__(self) -> None:
        x = self.given.copy()
        self.add_encoding(x)
        self.write(1, f"{self.name} {'ok' if self.same(x, self.expected) else 'wrong'}\n".encode())


def _calls_at_exit() -> None:
    work(1)
    os.write(1, b"atexit ok\n")


@scenario
def calls_at_exit() -> None:
    """An exit handler makes the first call that wants helpers; an object destroyed still later calls when they are gone."""
    prepare()
    atexit.register(_calls_at_exit)
    cycle = CallsWhenDestroyed("cycle")
    cycle.itself = cycle


@scenario
def first_helpers_wanted_at_the_end() -> None:
    """No thread can be started any more when an object is destroyed by the last collection."""
    prepare()
    cycle = CallsWhenDestroyed("cycle")
    cycle.itself = cycle


@scenario
def destroyed_with_its_module() -> None:
    """So late that nothing can be imported any more: the call may fail (Python reports it) but it must not hang."""
    prepare()
    global _kept
    _kept = CallsWhenDestroyed("module")


@scenario
def exit_while_daemon_threads_call() -> None:
    """Neither idle nor working helpers keep the process alive."""
    prepare()
    work()
    assert helpers()
    for _ in range(2):
        threading.Thread(target=lambda: [work(1) for _ in range(10**9)], daemon=True).start()
    time.sleep(0.1)


# ---- interruption ------------------------------------------------------------------------------------------------------------


def interrupt() -> None:
    """Ctrl-C, as if typed."""
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()


@scenario
def interrupted_calls() -> None:
    """Ctrl-C at random moments: once the caller has the exception, nothing writes to x any more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    x = np.zeros(HUGE, np.float32)
    fastpe.add_encoding(x)
    armed, moments = threading.Semaphore(0), random.Random(2)

    def press() -> None:
        while True:
            armed.acquire()
            time.sleep(moments.uniform(0, 0.02))
            interrupt()

    threading.Thread(target=press, daemon=True).start()
    for _ in range(40):
        try:
            armed.release()
            while True:
                fastpe.add_encoding(x)
        except KeyboardInterrupt:
            after = x.copy()
        time.sleep(0.02)
        assert same(x, after), "x changed after KeyboardInterrupt"
    work()


@scenario
def interrupted_while_helpers_are_called() -> None:
    """Ctrl-C after a job was queued and before the caller has begun its own part."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    renew_pool()
    jobs, taken = pool._pool._jobs, threading.Event()

    class Interrupting:
        """A queue that lets a helper begin and then interrupts whoever offered the job."""

        get = staticmethod(jobs.get)

        @staticmethod
        def put(job: list[Any]) -> None:
            jobs.put(job)
            assert taken.wait(30)
            signal.raise_signal(signal.SIGINT)

    lock, left, writes = threading.Lock(), list(range(20)), []

    def kernel(number: int) -> None:
        """The protocol of a real kernel, slowly: claim chunks, and as the caller wait until all are finished."""
        while True:
            with lock:
                if not left:
                    break
                chunk = left.pop()
            taken.set()
            time.sleep(0.02)
            writes.append(chunk)
        while number == 0 and len(writes) < 20:
            time.sleep(0.001)

    pool._pool._jobs = Interrupting
    try:
        pool.run(kernel, (), 1, None)
    except KeyboardInterrupt:
        seen = len(writes)
    else:
        raise AssertionError("not interrupted")
    time.sleep(0.5)
    assert len(writes) == seen, f"{len(writes) - seen} chunks were written after KeyboardInterrupt"


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1)
    for _name in sys.argv[1:]:
        SCENARIOS[_name]()
        print("ok", _name, flush=True)
