"""CUDA tensors, on a simulated GPU."""

from __future__ import annotations

import re

import cases
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary  # noqa: E402

# What PyTorch says of its own sparse and quantised tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant):UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]

STREAM = 0x5EED


class OnGPU(torch.Tensor):
    """A tensor over memory of the simulated GPU, which says that it is on device 0."""

    device = property(lambda self: torch.device("cuda", 0))
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: True)


@pytest.fixture
def simulated(ptx_folder, monkeypatch):
    """A simulated GPU whose current stream in PyTorch is ``STREAM``; returns what copies arrays to it, as tensors."""
    pytest.importorskip("cupy", reason="the simulated GPU needs CuPy's NVRTC binding")
    import types

    import simulated_cupy
    from torch_cases import shared

    asked = []

    def current_stream(device):
        asked.append(device)
        return types.SimpleNamespace(cuda_stream=STREAM)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    kept = []

    def copy(view):
        array = simulated_cupy.view_on_device(view)
        kept.append(array)
        return shared(array._host).as_subclass(OnGPU)

    with simulated_cupy.installed(ptx_folder):
        simulated_cupy.streams.clear()
        yield copy
        assert set(simulated_cupy.streams) == {STREAM}, "a kernel was launched on another stream than PyTorch's"
        assert set(asked) == {torch.device("cuda", 0)}


def same(there, here):
    from torch_cases import host

    cases.assert_same_bits(host(there.as_subclass(torch.Tensor)), np.ascontiguousarray(here))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_tensors_are_written_on_the_stream_of_pytorch(simulated, dtype):
    """Dense and strided memory; positions, masks, offsets and tables on the device; nothing is read back."""
    x = cases.random((2, 5, 16), dtype)
    mask, positions = np.array([[1, 0, 1, 1, 0]] * 2) > 0, np.arange(10).reshape(2, 5) * 3
    table = cases.random((40, 16), dtype, 1)
    for view in ("contiguous", "strided_columns", "channels_first"):
        for given in ({"offset": 7}, {"mask": mask}, {"positions": positions}, {"offset": np.array([3, 9])}):
            on_gpu = {name: simulated(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
            for verb in (fastpe.add_encoding, fastpe.apply_rotary):
                there = simulated(cases.VIEWS[view](x))
                version = there._version
                assert verb(there, **on_gpu) is there
                assert there._version == version + 1
                same(there, verb(x.copy(), **given))
    there = simulated(x)
    fastpe.rerotate(there, simulated(np.array([3, 100])))
    same(there, fastpe.rerotate(x.copy(), np.array([3, 100])))
    there = simulated(x)
    fastpe.add_encoding(there, Learned(simulated(table)), positions=simulated(positions))
    same(there, fastpe.add_encoding(x.copy(), Learned(table), positions=positions))
    out = simulated(np.zeros_like(x))
    fastpe.add_encoding(simulated(x), offset=3, out=out)
    same(out, fastpe.add_encoding(x.copy(), offset=3))


def test_cuda_embeddings_and_tables(simulated):
    ids, words = np.array([[0, 3, 1], [2, 2, 0]]), cases.random((5, 16), "float32")
    out = simulated(np.zeros((2, 3, 16), np.float32))
    fastpe.embed(simulated(ids), simulated(words), "sinusoidal", scale=4.0, out=out)
    same(out, fastpe.embed(ids, words, "sinusoidal", scale=4.0))
    out = simulated(np.zeros((2, 3, 16), np.float32))
    assert fastpe.encode(simulated(ids), 16, out=out) is out
    same(out, fastpe.encode(ids, 16))
    cos, sin = cases.random((9, 4), "float32"), cases.random((9, 4), "float32", 1)
    q, k = cases.random((2, 3, 16), "float32", 2), cases.random((2, 3, 16), "float32", 3)
    there = simulated(q), simulated(k)
    fastpe.apply_rotary(*there, Rotary.tabulated(simulated(cos), simulated(sin)), positions=simulated(ids))
    for got, expected in zip(
        there, fastpe.apply_rotary(q.copy(), k.copy(), Rotary.tabulated(cos, sin), positions=ids), strict=True
    ):
        same(got, expected)


def test_cuda_arguments_on_the_host_are_refused(simulated):
    x = simulated(np.zeros((2, 3, 8), np.float32))
    fastpe.add_encoding(x)
    before = x.clone()
    for given, text in (
        ({"positions": torch.arange(3)}, "all tensors must be on one device, got positions on cpu beside cuda:0"),
        ({"positions": [0, 1, 2]}, "positions"),
        ({"mask": np.ones(3, bool)}, "arrays beside a tensor must be tensors, got mask of numpy"),
        ({"out": torch.zeros(2, 3, 8)}, "all tensors must be on one device, got out on cpu beside cuda:0"),
    ):
        with pytest.raises(TypeError, match=re.escape(text)):
            fastpe.add_encoding(x, **given)
    assert torch.equal(x, before)


def test_cuda_tensors_without_cupy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="CUDA tensors need CuPy: pip install"):
        fastpe.add_encoding(torch.zeros(2, 3, 8).as_subclass(OnGPU))


@pytest.mark.cuda
def test_streams_of_a_gpu(device):
    """Work queued on a stream of PyTorch's is waited for, and nothing else is."""
    if device.type == "cpu":
        pytest.skip("a GPU's streams")
    stream = torch.cuda.Stream()
    x = torch.zeros(64, 1024, 1024, device=device)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            x.add_(1)
        fastpe.add_encoding(x)
        y = x.clone()
    stream.synchronize()
    expected = fastpe.add_encoding(torch.full((1, 1024, 1024), 20.0)).to(device)
    assert torch.equal(y, expected.expand_as(y))


def test_a_captured_step_of_tensors_is_replayed(simulated, monkeypatch):
    """New positions and offsets in the same tensors; what a call makes for itself, here a table that counts a mask, the graph keeps."""
    import cupy

    from fastpe._backends import cuda

    monkeypatch.setattr(cuda, "MOST_COUNTED_ROWS", 4)
    x, mask = cases.random((2, 5, 16), "float32"), np.array([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]) > 0
    there, positions, offset, kept = (simulated(one) for one in (x, np.zeros((2, 5), np.int32), np.zeros(2, np.int64), mask))
    stream = cupy.cuda.get_current_stream()

    def step():
        fastpe.apply_rotary(there, positions=positions)
        fastpe.add_encoding(there, offset=offset)
        fastpe.add_encoding(there, mask=kept)

    step()
    stream.begin_capture()
    step()
    graph = stream.end_capture()
    for number in (1, 9):
        new = np.arange(10, dtype=np.int32).reshape(2, 5) * number, np.array([number, 100 * number])
        for tensor, values in zip((there, positions, offset), (x, *new), strict=True):
            tensor.as_subclass(torch.Tensor).copy_(torch.from_numpy(values))
        graph.launch()
        here = fastpe.add_encoding(fastpe.apply_rotary(x.copy(), positions=new[0]), offset=new[1])
        same(there, fastpe.add_encoding(here, mask=mask))


def test_operators_may_be_captured():
    """A compiler that captures graphs takes them in, as they read what is the graph's or the caller's alone."""
    assert [
        torch.Tag.cudagraph_unsafe in operator.default.tags for operator in (torch.ops.fastpe.run, torch.ops.fastpe.run_)
    ] == [
        False,
        False,
    ]


@pytest.fixture
def plain(simulated, monkeypatch):
    """As ``simulated``, where calls on such tensors are kept to be repeated, as on real ones."""
    from fastpe.torch import _repeat

    monkeypatch.setattr(_repeat, "_PLAIN", {torch.Tensor, OnGPU})
    monkeypatch.setattr(OnGPU, "get_device", lambda self: 0)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: simulated(np.zeros(shape, "float32")))
    monkeypatch.setattr(torch, "empty_like", lambda x: simulated(np.zeros(x.shape, "float32")))
    return simulated


def test_calls_on_tensors_are_repeated(plain, monkeypatch):
    """On other tensors, with other offsets and positions, without a check; the streams and versions are what they were."""
    from fastpe._core import operations

    x, q, k = cases.random((2, 3, 16), "float32"), cases.random((2, 4, 3, 8), "float32"), cases.random((2, 1, 3, 8), "float32")
    ids, table = np.array([[0, 3, 1], [2, 2, 0]]), cases.random((5, 16), "float32")

    def run(place, array):
        there = array(x), array(q), array(k)
        versions = [getattr(one, "_version", 0) for one in there]
        fastpe.add_encoding(there[0], **place)
        fastpe.apply_rotary(*there[1:], **place)
        assert [getattr(one, "_version", 1) - version for one, version in zip(there, versions, strict=True)] == [1] * 3
        embedded = fastpe.embed(array(ids), array(table), "sinusoidal", **place)
        functional = fastpe.torch.functional.add_encoding(array(x), **place) if array is plain else there[0]
        return *there, embedded, functional

    offsets, positions = np.array([5, 2**31 - 9]), np.arange(6, dtype=np.int32).reshape(2, 3)
    for kind, first, second in (("offset", 3, 40), ("offset", offsets, offsets // 2), ("positions", positions, positions * 5)):
        run({kind: plain(first) if isinstance(first, np.ndarray) else first}, plain)
        with monkeypatch.context() as patch:
            for operation in (operations.Add, operations.Rotate, operations.Embed):
                patch.setattr(operation, "check", None)
            there = run({kind: plain(second) if isinstance(second, np.ndarray) else second}, plain)
        for got, expected in zip(there, run({kind: second}, np.copy), strict=True):
            same(got, expected)
    with pytest.raises(ValueError, match=r"offset 2147483647 with 3 rows"):
        fastpe.add_encoding(plain(x), offset=2**31 - 1)


def test_calls_into_given_tensors_are_repeated(plain, monkeypatch):
    """Float8 for a cache of keys and results of the same type; what overlaps is refused, and one result is no pair."""
    from fastpe._core import operations

    q, k, table = cases.random((2, 4, 3, 8), "float32"), cases.random((2, 1, 3, 8), "float32"), cases.random((5, 16), "float32")
    ids, float8 = np.array([[0, 3, 1], [2, 2, 0]]), np.dtype(ml_dtypes.float8_e4m3fn)

    def run(offset, array):
        outs = [array(np.zeros(x.shape, float8)) for x in (q, k)]
        embedded = array(np.zeros((2, 3, 16), float8)), array(np.zeros((2, 3, 16), np.float32))
        added, whole = array(np.zeros_like(q)), array(q)
        versions = [getattr(one, "_version", 0) for one in (*outs, *embedded, added)]
        fastpe.apply_rotary(array(q), array(k), offset=offset, out=tuple(outs), out_scale=(0.5, 0.25))
        fastpe.apply_rotary(whole, offset=offset, out=whole)
        fastpe.add_encoding(array(q), offset=offset, out=added)
        fastpe.embed(array(ids), array(table), "sinusoidal", offset=offset, out=embedded[0], out_scale=0.5)
        fastpe.embed(array(ids), array(table), "sinusoidal", offset=offset, out=embedded[1])
        found = [getattr(one, "_version", 1) for one in (*outs, *embedded, added)]
        assert [now - before for now, before in zip(found, versions, strict=True)] == [1] * 5
        return *outs, whole, added, *embedded

    run(3, plain)
    with monkeypatch.context() as patch:
        for operation in (operations.Add, operations.Rotate, operations.Embed):
            patch.setattr(operation, "check", None)
        there = run(40, plain)
    for got, expected in zip(there, run(40, np.copy), strict=True):
        same(got, expected)
    one, other = plain(q), plain(np.zeros_like(q))
    fastpe.apply_rotary(one, out=other)
    for wrong in (other[:, :1], (other,)):
        with pytest.raises((TypeError, ValueError), match="out must"):
            fastpe.apply_rotary(one, out=wrong)
    whole = plain(np.zeros(1000, np.float32))
    parts = [whole[begin : begin + 192].view(2, 4, 3, 8) for begin in (0, 4, 400)]
    fastpe.apply_rotary(parts[0], out=parts[2])
    with pytest.raises(ValueError, match="must lie apart"):
        fastpe.apply_rotary(parts[0], out=parts[1])
