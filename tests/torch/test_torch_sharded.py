"""DTensors: the shared cases, gradients, compiled graphs, packed heads, refusals. Two processes, and four in a mesh of 2 x 2."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import LAYOUTS, ensure, reports, shared, spread
from verb_cases import CASES

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import functional  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]

B, H, T, D = 4, 4, 13, 16


def numbers(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole_numbers(*shape: int, high: int = 50, seed: int = 0) -> Any:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


KEPT = whole_numbers(B, T, high=4, seed=3) > 0
KEPT[0] = False
PLACES = whole_numbers(B, T, high=1 << 20, seed=4)
ROWS = {"batch": 0, "rows": 1}
HEADS = {"batch": 0, "heads": 1, "rows": 2}
X, Q, K, TABLE = numbers(B, T, D), numbers(B, H, T, D), numbers(B, 2, T, D, seed=1), numbers(T, D, seed=2)
IDS = whole_numbers(B, T, high=T)
TESTS: dict[str, Callable[[Any], None]] = {}


def ranked(test: Callable[[Any], None]) -> Callable[[Any], None]:
    """Run a test on every rank."""
    TESTS[test.__name__] = test
    return test


def layouts(mesh: Any) -> list[tuple[str, ...]]:
    return LAYOUTS[mesh.size()]


def same_bits(found: Any, wanted: Any) -> None:
    whole = found.full_tensor()
    assert whole.dtype == wanted.dtype
    assert whole.shape == wanted.shape
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.itemsize]
    assert torch.equal(whole.view(bits), wanted.view(bits)), f"{(whole != wanted).sum()} of {wanted.numel()} differ"


# ---- what else tensors can do than what the shared cases ask -----------------------------------------------------------------


@ranked
def memory_is_written_in_place(mesh: Any) -> None:
    for layout in layouts(mesh):
        for call, x, axes in ((fastpe.add_encoding, X, ROWS), (fastpe.apply_rotary, Q, HEADS)):
            given = spread(x, mesh, layout, axes)
            address, out = given.to_local().data_ptr(), spread(torch.zeros_like(x), mesh, layout, axes)
            assert call(given, out=out) is out
            same_bits(given, x)
            assert call(given) is given
            assert given.to_local().data_ptr() == address
            assert min(given._version, out._version) > 0
            same_bits(given, call(x.clone()))
            same_bits(out, call(x.clone()))


@ranked
def new_tensors(mesh: Any) -> None:
    """The functional forms leave what they are given alone; heads may be packed, and tables parameters."""
    for layout in layouts(mesh):
        x, q, k = spread(X, mesh, layout, ROWS), spread(Q, mesh, layout, HEADS), spread(K, mesh, layout, HEADS)
        same_bits(functional.add_encoding(x), functional.add_encoding(X))
        for one, other in zip(functional.apply_rotary(q, k, mask=KEPT), functional.apply_rotary(Q, K, mask=KEPT), strict=True):
            same_bits(one, other)
        for one, other in ((x, X), (q, Q), (k, K)):
            same_bits(one, other)
        packed, table = numbers(B, T, 4, D), torch.nn.Parameter(TABLE)
        in_place = functools.partial(functional.apply_rotary_qkv, heads=(2, 1), mask=KEPT, inplace=True)
        same_bits(in_place(spread(packed, mesh, layout, ROWS)), in_place(packed.clone()))
        look_up = functools.partial(functional.embed, table=table, encoding="sinusoidal", padding_idx=1)
        same_bits(look_up(spread(IDS, mesh, layout, ROWS)).detach(), look_up(IDS).detach())


@ranked
def pictures(mesh: Any) -> None:
    """Along sequences and the first axis of the grid: its own rows, and positions of all pictures or of each."""
    x, mask = numbers(B, 5, 3, D), whole_numbers(B, 15, high=4, seed=3) > 0
    own, given = fastpe.Grid((5, 3), extent=2.0), fastpe.Grid(None, axes=(0, 1))
    cases: list[tuple[Any, Any]] = [(own, {}), (own, {"mask": mask})]
    cases += [(given, {"positions": numbers(*shape)}) for shape in ((2, 5, 3), (2, B, 15))]
    for layout in layouts(mesh):
        for grid, options in cases:
            made = fastpe.add_encoding(spread(x, mesh, layout, ROWS), grid, **options)
            same_bits(made, fastpe.add_encoding(x.clone(), grid, **options))
    torch._dynamo.reset()
    fast = torch.compile(lambda x: functional.add_encoding(x, own), backend="aot_eager", fullgraph=True)
    same_bits(fast(spread(x, mesh, layouts(mesh)[0], ROWS)), functional.add_encoding(x, own))


def check_gradients(mesh: Any, axes: Any, loss: Any, *arrays: Any, tables: Any = ()) -> None:
    """Of arrays that are sharded, and of tables that every rank has, which are sums over rows, so in another order."""
    from torch.distributed.tensor import Replicate

    for layout in layouts(mesh):
        given = [spread(x, mesh, layout, axes).requires_grad_() for x in arrays]
        shared = [spread(table, mesh, ("",) * mesh.ndim, {}).requires_grad_() for table in tables]
        loss(lambda x, layout=layout: spread(x, mesh, layout, axes), *given, *shared).backward()
        plain = [x.clone().requires_grad_() for x in (*arrays, *tables)]
        loss(lambda x: x, *plain).backward()
        for one, other in zip(given, plain[: len(given)], strict=True):
            assert one.grad.placements == one.placements
            same_bits(one.grad, other.grad)
        for one, other in zip(shared, plain[len(given) :], strict=True):
            found = one.grad.redistribute(placements=[Replicate()] * mesh.ndim).to_local()
            torch.testing.assert_close(found, other.grad)


@ranked
def gradients(mesh: Any) -> None:
    """Of new tensors, and of those written in place."""

    def loss(call: Any, place: Any, q: Any, k: Any) -> Any:
        a, b = call(q * 1, k * 1, mask=KEPT, offset=3)
        return (a * place(numbers(*Q.shape, seed=9))).sum() + b.square().sum()

    check_gradients(mesh, HEADS, functools.partial(loss, functional.apply_rotary), Q, K)
    check_gradients(mesh, HEADS, functools.partial(loss, fastpe.apply_rotary), Q, K)


@ranked
def gradients_of_tables(mesh: Any) -> None:
    weight = numbers(B, T, D, seed=9)
    table = numbers(32, H)

    def learned(place: Any, x: Any, rows: Any) -> Any:
        return (functional.add_encoding(x, fastpe.Learned(rows), mask=KEPT, input_scale=2.0) * place(weight)).sum()

    def biased(place: Any, scores: Any, table: Any) -> Any:
        return (functional.add_bias(scores, fastpe.T5Bias(table), causal=True).exp() * place(numbers(B, H, T, T))).sum()

    check_gradients(mesh, ROWS, learned, X, tables=[TABLE])
    check_gradients(mesh, HEADS, biased, numbers(B, H, T, T, seed=3), tables=[table])


@ranked
def gradients_of_embeddings(mesh: Any) -> None:
    """The table is sharded by its rows, as row-wise tensor parallelism shards it."""
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = numbers(B, T, D, seed=9)
    wanted = TABLE.clone().requires_grad_()
    (functional.embed(IDS, wanted, "sinusoidal", padding_idx=2) * weight).sum().backward()
    for layout in layouts(mesh):
        table = distribute_tensor(TABLE, mesh, [Shard(0)] * mesh.ndim).requires_grad_()
        made = functional.embed(spread(IDS, mesh, layout, ROWS), table, "sinusoidal", padding_idx=2)
        (made * spread(weight, mesh, layout, ROWS)).sum().backward()
        assert table.grad.placements == table.placements
        torch.testing.assert_close(table.grad.full_tensor(), wanted.grad)


@ranked
def compiled(mesh: Any) -> None:
    """One graph, without a break, for what a model does; the offset stays open."""
    layout = layouts(mesh)[0]
    calls = {
        "new": lambda q, n: functional.apply_rotary(q, offset=n),
        "in_place": lambda q, n: fastpe.apply_rotary(q * 1, offset=n),
        "masked": lambda q, n: functional.apply_rotary(q, mask=KEPT, offset=n),
        "positions": lambda q, n: functional.apply_rotary(q, positions=PLACES + n),
        "bias": lambda q, n: functional.add_bias(q, fastpe.ALiBi(H), q_offset=n),
        "module": lambda q, n: fastpe.torch.RotaryEmbedding()(q, offset=n),
    }
    for call in list(calls.values())[: 6 if mesh.size() == 2 else 1]:
        torch._dynamo.reset()
        fast = torch.compile(call, backend="aot_eager", fullgraph=True)
        for offset in (5, 9):
            given, plain = spread(Q, mesh, layout, HEADS).requires_grad_(), Q.clone().requires_grad_()
            made, wanted = fast(given, offset), call(plain, offset)
            same_bits(made.detach(), wanted.detach())
            made.square().sum().backward()
            wanted.square().sum().backward()
            same_bits(given.grad, plain.grad)


@ranked
def modules(mesh: Any) -> None:
    layout = layouts(mesh)[0]
    for module, axes, x in (
        (fastpe.torch.SinusoidalEncoding(input_scale=2.0), ROWS, X),
        (fastpe.torch.RotaryEmbedding(), HEADS, Q),
        (fastpe.torch.RotaryEmbedding(inplace=True), HEADS, Q),
    ):
        same_bits(module(spread(x, mesh, layout, axes), offset=4), module(x.clone(), offset=4))


@ranked
def contexts_of_pytorch(mesh: Any) -> None:
    """PyTorch's context_parallel splits positions as it splits other buffers; they are those of the order it balances by."""
    from torch.distributed.tensor.experimental import context_parallel

    ranks = torch.distributed.get_world_size()
    flat = torch.distributed.device_mesh.init_device_mesh("cpu", (ranks,))
    q, positions = numbers(2, 3, 8 * ranks, D), torch.arange(8 * ranks)
    whole = fastpe.apply_rotary(q.clone())
    own = fastpe.positions.context_parallel(8 * ranks, torch.distributed.get_rank(), ranks, "zigzag", like=q)
    with context_parallel(flat, buffers=[q, positions], buffer_seq_dims=[2, 0]):
        assert torch.equal(positions, own)
        fastpe.apply_rotary(q, positions=positions)
        assert torch.equal(q, whole[:, :, own])


def from_local(mesh: Any, local: Any, placement: Any) -> Any:
    return torch.distributed.tensor.DTensor.from_local(local, mesh, [placement] * mesh.ndim, run_check=False)


def refused(kind: type, words: str, call: Any, *given: Any) -> None:
    """Nothing is written."""
    before = [one.to_local().clone() for one in given]
    with pytest.raises(kind, match=words):
        call(*given)
    for one, values in zip(given, before, strict=True):
        assert torch.equal(one.to_local(), values)


@ranked
def refusals(mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    layout = layouts(mesh)[0]
    x, q, k = spread(X, mesh, layout, ROWS), spread(Q, mesh, layout, HEADS), spread(K, mesh, ("",) * mesh.ndim, HEADS)
    add, rotate = fastpe.add_encoding, fastpe.apply_rotary
    channels = from_local(mesh, numbers(B, T, 8), Shard(2))
    refused(ValueError, "x must not be sharded along its channels, got .Shard.dim=2.*e.g. that of heads", add, channels)
    refused(ValueError, "by whole heads", lambda q: rotate(q, head_dim=D), from_local(mesh, numbers(B, T, 8), Shard(2)))
    packed = from_local(mesh, numbers(B, T, 2, D), Shard(2))
    refused(
        ValueError,
        "qkv|q must not be sharded along its packed heads",
        lambda x: functional.apply_rotary_qkv(x, 1, inplace=True),
        packed,
    )
    points = spread(numbers(3, T), mesh, ("batch",) * mesh.ndim, {"batch": 0})
    features = fastpe.Fourier.nerf(3, 2)
    refused(ValueError, "must not be sharded along its coordinates", lambda x: fastpe.encode(x, 12, features), points)
    words = r"sharded or replicated, got .Partial.sum.*x.redistribute\(placements=\[Replicate\(\)"
    refused(ValueError, words, add, from_local(mesh, X.clone(), Partial()))
    refused(ValueError, "q and k must be sharded alike along sequences and rows", rotate, q, k)
    refused(TypeError, "arrays of one call must be DTensors, .* got k, a Tensor", lambda q: rotate(q, K), q)
    refused(TypeError, "got a DTensor beside tensors. Make all arrays of the call DTensors", lambda k: rotate(Q.clone(), k), k)
    refused(ValueError, r"positions must have shape \(13,\) or \(4, 13\)", lambda x: add(x, positions=PLACES[:, 1:]), x)
    refused(
        ValueError, r"mask must have shape \(13,\) or \(4, 13\), got shape \(4, 12\)", lambda x: add(x, mask=KEPT[:, 1:]), x
    )
    refused(ValueError, "cu_seqlens must start at 0, never decrease and end at T", lambda x: add(x, cu_seqlens=[0, 4]), x)
    refused(ValueError, "every position must lie in", lambda x: add(x, offset=2**31 - 4), x)
    refused(TypeError, "arrays beside a tensor must be tensors", lambda x: add(x, positions=PLACES.numpy()), x)
    refused(
        ValueError,
        r"out must be a DTensor with the placements .*torch.empty_like\(x\) is one",
        lambda x, out: add(x, out=out),
        x,
        spread(X, mesh, ("",) * mesh.ndim, {}),
    )
    refused(
        TypeError,
        "table must be whole, got a DTensor. Pass table.full_tensor",
        lambda x: fastpe.resample(x, 5),
        spread(TABLE, mesh, layout, {}),
    )
    rank = torch.distributed.get_rank()
    uneven = from_local(mesh, numbers(B, 2 + rank, D), Shard(1))
    refused(ValueError, "x must have one shape on all ranks, got .*shape= and stride=", lambda x: add(x, validate=True), uneven)
    wrong = torch.distributed.tensor.DTensor.from_local(
        numbers(B, 5, D), mesh, [Shard(1), Replicate()][: mesh.ndim], run_check=False, shape=X.shape, stride=X.stride()
    )
    refused(ValueError, r"the local tensor of x must have the shape \(4, [67], 16\), as its placements share", add, wrong)
    leaf = spread(X, mesh, layout, ROWS).requires_grad_()
    refused(RuntimeError, "a leaf Variable that requires grad", add, leaf)


def ranked_tests(mesh: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    yield from ((name, functools.partial(test, mesh)) for name, test in TESTS.items())
    yield from shared(mesh)


@ranked
def strided_shards(mesh: Any) -> None:
    """As fully_shard leaves what tensor parallelism sharded: refused with the call that helps; a table is gathered."""
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    if mesh.ndim == 1:
        return
    placements = _StridedShard(0, split_factor=2), Shard(0)
    whole = numbers(16, D)
    rank = torch.distributed.get_rank()
    local = whole[4 * [0, 2, 1, 3][rank] :][:4].clone()
    x = DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
    same_bits(x, whole)
    refused(
        ValueError,
        r"got \(_StridedShard.*x.redistribute\(placements=\[Shard\(dim=0\), Shard\(dim=0\)\]\)",
        fastpe.add_encoding,
        x,
    )
    same_bits(fastpe.add_encoding(x.redistribute(placements=[Shard(0), Shard(0)])), fastpe.add_encoding(whole.clone()))
    same_bits(fastpe.embed(spread(IDS, mesh, ("rows", ""), ROWS), x), fastpe.embed(IDS, whole))


@pytest.fixture(scope="module", params=LAYOUTS)
def found(request: Any) -> list[dict[str, str]]:
    """What each process reports of each test."""
    return reports(request.param, ranked_tests)


@pytest.mark.parametrize("name", TESTS)
def test_ranks(found: list[dict[str, str]], name: str) -> None:
    ensure(found, name)


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_numpy(found: list[dict[str, str]], name: str) -> None:
    """The shared cases, in each layout."""
    ensure(found, f"{name} on ")


def test_the_page_about_many_gpus(tmp_path: Any) -> None:
    """As it says: alone it is tested with the other pages, here by two processes."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "many-gpus.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "page.py").write_text("".join([*blocks, "os._exit(0)\n"]))  # as its last section says of gloo
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
