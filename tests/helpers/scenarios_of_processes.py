"""Scenarios of forked children and of worker processes."""

from __future__ import annotations

import functools
import random
import threading
import time
from typing import Any

import numpy as np
from scenario_tools import (
    CHILD_SECONDS,
    SMALL,
    THREADS,
    Background,
    fork,
    helpers,
    in_threads,
    prepare,
    same,
    scenario,
    wait_for,
    work,
)

import fastpe

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
