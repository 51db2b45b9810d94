"""Threads, forks, worker processes, interruptions and the end of the interpreter; and how many threads a call uses.

What may hang or end a process runs in one of its own, from ``concurrency_scenarios.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cases
import concurrency_scenarios
import numpy as np
import pytest
from scenario_processes import check, run

import fastpe
from fastpe._backends.host import chunking, pool

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this system")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def test_every_scenario_is_run():
    text = Path(__file__).read_text() + Path(__file__).with_name("test_costs.py").read_text()
    missing = [name for name in concurrency_scenarios.SCENARIOS if f'"{name}"' not in text]
    assert not missing


# ---- threads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads():
    check(
        "eight_threads",
        "executor",
        "nested_threads",
        "threads_cannot_start",
        "helpers_get_jobs",
        "stale_jobs_hold_nothing",
        "memory_does_not_grow",
        "collector_in_helpers",
    )


@pytest.mark.slow
def test_first_call_from_eight_threads():
    check("first_call_from_eight_threads")


@pytest.fixture
def recorded(monkeypatch):
    """The numbers of helpers that calls ask for."""
    found, original = [], pool.run

    def record(kernel, addresses, helpers, keepalive, slots):
        found.append(helpers)
        original(kernel, addresses, helpers, keepalive, slots)

    monkeypatch.setattr(pool, "run", record)
    monkeypatch.setattr(pool.SpinSlots, "waiting", lambda self: 0)  # as if none waited in a spin slot
    return found


ODD_SHAPES = (
    (1, 20_011, 129),
    (3, 1021, 701),
    (7, 333, 1001),
    (613, 17, 257),
    (1_250_003, 3),
    (5, 1, 500_009),
    (2, 1025, 3, 341),
)


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(restored, recorded, shape):
    given = cases.random(shape, "float32")
    axis = 1 if len(shape) == 4 else -2
    rows = shape[0] if len(shape) == 2 else shape[1]
    mask = np.arange(rows) % 5 != 2
    for arguments in ({"offset": 1_000_003}, {"mask": mask}):
        fastpe.set_num_threads(1)
        expected = fastpe.add_encoding(given.copy(), seq_axis=axis, **arguments)
        assert not recorded
        for threads in (2, 3, 8):
            fastpe.set_num_threads(threads)
            got = fastpe.add_encoding(given.copy(), seq_axis=axis, **arguments)
            assert len(recorded) == 1
            assert 1 <= recorded.pop() <= threads - 1
            cases.assert_same_bits(got, expected)


def test_small_arrays_wake_nobody(restored, recorded):
    fastpe.set_num_threads(8)
    fastpe.add_encoding(np.zeros((8, 23, 1024), np.float32))
    assert not recorded


@pytest.mark.parametrize(("others", "helpers"), [(0, 7), (1, 3), (2, 1), (3, 1), (4, 0), (99, 0)])
def test_callers_share_the_threads(restored, recorded, monkeypatch, others, helpers):
    """Eight threads, of which so many others call now, or did a moment ago; no caller is left behind, whatever becomes of its call."""
    now, past = time.perf_counter(), {-1 - other: 1.0 for other in range(3)}
    monkeypatch.setattr(pool.time, "perf_counter", lambda: now)
    monkeypatch.setattr(pool, "_callers", past | {other: (now, np.inf)[other % 2] for other in range(others)})
    fastpe.set_num_threads(8)
    x = np.zeros((8, 1024, 1024), np.float32)
    fastpe.add_encoding(x)
    assert (recorded or [0]) == [helpers]
    assert not past.keys() & pool._callers.keys()
    monkeypatch.setattr(pool.SpinSlots, "keep", lambda self, blocks: 1 / 0)
    with contextlib.nullcontext() if helpers == 0 else pytest.raises(ZeroDivisionError):
        fastpe.add_encoding(x)
    assert pool._callers[threading.get_ident()] == now + pool.SECONDS_BETWEEN_CALLS


@needs_fork
def test_a_forked_child_has_no_callers():
    pool.enter(0, 0)
    if (child := os.fork()) == 0:
        os._exit(len(pool._callers))
    pool.leave()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_random_calls_from_threads_and_processes():
    check("stress")


# ---- forks and worker processes ----------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("fork_after_a_call", "fork_of_a_fork"),
        ("fork_while_threads_call", "fork_in_a_thread_while_threads_call"),
        ("fork_while_a_thread_plans",),
        ("fork_while_a_thread_compiles",),
        ("fork_during_the_first_call",),
    ],
    ids="-".join,
)
def test_fork(names):
    check(*names)


@pytest.mark.slow
def test_process_pools():
    check("process_pools")


@needs_torch
@pytest.mark.slow
def test_torch():
    check("torch_workers", "torch_threads")


# ---- the end of the interpreter, and interruption ----------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_at_exit():
    check("calls_at_exit", later=("atexit ok", "cycle ok"))


@pytest.mark.slow
def test_first_helpers_wanted_at_the_end():
    check("first_helpers_wanted_at_the_end", later=("cycle ok",))


@pytest.mark.slow
def test_destroyed_with_its_module():
    """A call after Python has taken its modules down may fail, as imports do then, but neither hang nor write wrong values."""
    result = run("destroyed_with_its_module")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() in (["ok destroyed_with_its_module"], ["ok destroyed_with_its_module", "module ok"])


@pytest.mark.slow
def test_exit_while_daemon_threads_call():
    check("exit_while_daemon_threads_call")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interrupted_calls", "interrupted_while_helpers_are_called"])
def test_interruption(name):
    check(name)


# ---- calls inside calls, and what is not to be had ---------------------------------------------------------------------------

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how much memory is mapped")


@pytest.mark.slow
def test_calls_inside_calls():
    check("finalizers_call")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="timers that signal are POSIX's")
def test_signal_handlers_that_call():
    check("signal_handlers_call")


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("name", ["low_memory", "no_threads_to_be_had"])
def test_what_is_not_to_be_had(name):
    check(name)


# ---- how many threads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def restored():
    before = pool._chosen
    yield
    fastpe.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch, restored):
    """64 cores without quota, torch or environment, and nothing chosen."""
    fastpe.set_num_threads(None)
    for name in ("FASTPE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(pool, "_cores", lambda: 64)
    monkeypatch.setattr(pool, "_quota", lambda: None)
    return monkeypatch


def test_order_of_precedence(machine):
    assert fastpe.get_num_threads() == 16
    machine.setattr(pool, "_cores", lambda: 12)
    assert fastpe.get_num_threads() == 12
    machine.setattr(pool, "_quota", lambda: 7)
    assert fastpe.get_num_threads() == 7
    machine.setenv("OMP_NUM_THREADS", "5")
    assert fastpe.get_num_threads() == 5
    machine.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 13))
    assert fastpe.get_num_threads() == 13
    machine.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 64))
    assert fastpe.get_num_threads() == 16
    machine.setenv("FASTPE_NUM_THREADS", "20")
    assert fastpe.get_num_threads() == 20
    fastpe.set_num_threads(3)
    assert fastpe.get_num_threads() == 3
    fastpe.set_num_threads(None)
    assert fastpe.get_num_threads() == 20


def test_smallest_limit_counts(machine):
    machine.setenv("OMP_NUM_THREADS", "15")
    machine.setattr(pool, "_cores", lambda: 9)
    machine.setattr(pool, "_quota", lambda: 11)
    assert fastpe.get_num_threads() == 9
    machine.setattr(pool, "_cores", lambda: 64)
    assert fastpe.get_num_threads() == 11


def test_torch_while_it_is_being_imported(machine):
    machine.setitem(sys.modules, "torch", SimpleNamespace())
    assert fastpe.get_num_threads() == 16


@pytest.mark.parametrize(
    ("text", "expected"), [("4", 4), (" 4 ", 4), ("4,3,2", 4), ("0", 16), ("-2", 16), ("", 16), ("many", 16), ("2.5", 16)]
)
@pytest.mark.parametrize("variable", ["FASTPE_NUM_THREADS", "OMP_NUM_THREADS"])
def test_environment(machine, variable, text, expected):
    """What is no number is ignored; of fastpe's own variable with one warning."""
    machine.setenv(variable, text)
    machine.setattr(pool, "_ignored", set())
    wrong = variable == "FASTPE_NUM_THREADS" and text and expected == 16
    said = r"FASTPE_NUM_THREADS must be an integer of at least 1, got '.*'\. It is ignored\."
    with pytest.warns(RuntimeWarning, match=said) if wrong else contextlib.nullcontext():
        assert fastpe.get_num_threads() == expected
    assert fastpe.get_num_threads() == expected  # and no second warning


@pytest.mark.parametrize("count", [2, np.int64(2), np.array(2, np.uint8)], ids=repr)
def test_numbers_that_are_taken(restored, count):
    fastpe.set_num_threads(count)
    assert fastpe.get_num_threads() == 2
    assert type(fastpe.get_num_threads()) is int


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1.0, TypeError),
        ("2", TypeError),
        (True, TypeError),
        ([2], TypeError),
        (np.array([2, 3]), TypeError),
    ],
    ids=repr,
)
def test_numbers_that_are_refused(restored, count, error):
    fastpe.set_num_threads(5)
    with pytest.raises(error, match=r"^set_num_threads: count must be .*, got "):
        fastpe.set_num_threads(count)
    assert fastpe.get_num_threads() == 5


def test_no_call_has_more_than_64_threads(restored):
    """However many are allowed, and however large the array."""
    fastpe.set_num_threads(1000)
    assert fastpe.get_num_threads() == 1000
    assert chunking._divided(1 << 30, 8, 64, 1, 1 << 40, 0)["helpers"] == 63


def test_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 7}, raising=False)
    assert pool._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert pool._cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert pool._cores() == 1


V2 = "cpu.max"
V1_QUOTA, V1_PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
CGROUPS = {
    "no files": ({}, None),
    "v2 without limit": ({V2: b"max 100000\n"}, None),
    "v2 one and a half": ({V2: b"150000 100000\n"}, 1),
    "v2 four": ({V2: b"400000 100000\n"}, 4),
    "v2 less than one": ({V2: b"25000 100000\n"}, 1),
    "v2 before v1": ({V2: b"300000 100000\n", V1_QUOTA: b"800000\n", V1_PERIOD: b"100000\n"}, 3),
    "v1 two and a half": ({V1_QUOTA: b"250000\n", V1_PERIOD: b"100000\n"}, 2),
    "v1 without limit": ({V1_QUOTA: b"-1\n", V1_PERIOD: b"100000\n"}, None),
    "v1 zero": ({V1_QUOTA: b"0\n", V1_PERIOD: b"100000\n"}, None),
    "v1 without period": ({V1_QUOTA: b"250000\n"}, None),
    "v2 empty": ({V2: b""}, None),
    "v2 one word": ({V2: b"100000\n"}, None),
    "v2 words": ({V2: b"one two\n"}, None),
    "v2 broken, v1 good": ({V2: b"?\n", V1_QUOTA: b"500000\n", V1_PERIOD: b"100000\n"}, 5),
    "v2 period zero": ({V2: b"100000 0\n"}, None),
    "v2 no text": ({V2: b"\xff\xfe \xff"}, None),
    "v1 words": ({V1_QUOTA: b"much\n", V1_PERIOD: b"100000\n"}, None),
    "v1 empty": ({V1_QUOTA: b"", V1_PERIOD: b""}, None),
    "v1 no text": ({V1_QUOTA: b"\xff\xfe", V1_PERIOD: b"\xff"}, None),
    "v1 period zero": ({V1_QUOTA: b"100000\n", V1_PERIOD: b"0\n"}, None),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_quota_of_a_container(tmp_path, name):
    files, expected = CGROUPS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert pool._read_quota(str(tmp_path)) == expected


def test_quota_is_read_once(monkeypatch):
    reads = []
    pool._quota.cache_clear()
    monkeypatch.setattr(pool, "_read_quota", lambda root: reads.append(root))
    assert pool._quota() is None
    assert pool._quota() is None
    assert reads == ["/sys/fs/cgroup"]
    pool._quota.cache_clear()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads to cores")
def test_helpers_keep_off_the_core_of_the_caller(monkeypatch):
    """They are told when it has moved, and when there are more of them; where it is the only core, they stay."""
    allowed, here, asked = {0, 1, 2}, [1], []
    monkeypatch.setattr(pool, "_current_core", lambda: here[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed))
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: asked.append((thread, set(cores))))
    helpers = pool.Pool()
    helpers._threads = [SimpleNamespace(native_id=7), SimpleNamespace(native_id=8)]
    job = pool.Job(print, (), None)
    helpers.offer(job, 2)
    helpers.offer(job, 1)
    assert asked == [(7, {0, 2}), (8, {0, 2})]
    here[0] = 2
    helpers.offer(job, 1)
    assert asked[2:] == [(7, {0, 1}), (8, {0, 1})]
    here[0] = -1  # unknown
    helpers.offer(job, 1)
    allowed.clear()
    allowed.add(0)
    here[0] = 0
    helpers.offer(job, 1)
    assert len(asked) == 4


def test_small_calls_wake_helpers_only_where_they_follow_another(restored, recorded, monkeypatch):
    """A helper that is woken for a single one comes too late; large calls wake them at once."""
    now = [1.0]
    monkeypatch.setattr(pool.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pool, "_callers", {})
    fastpe.set_num_threads(2)
    small, large = np.zeros((1024, 1024), np.float32), np.zeros((4, 1024, 1024), np.float32)
    for x, pause, expected in ((small, 0.0, 0), (small, 1e-4, 1), (small, 1e-4, 1), (small, 1e-3, 0), (large, 1.0, 1)):
        now[0] += pause
        recorded.clear()
        fastpe.add_encoding(x)
        assert len(recorded) == expected, (x.nbytes, pause)
