"""The verbs on DTensors: each rank's rows have the bits that they have in one process. Two processes, and four in a mesh of 2 x 2."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.scaling import DynamicNTK  # noqa: E402
from fastpe.torch import functional  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]

B, H, T, D = 4, 4, 13, 16
LAYOUTS = {  # what each axis of the mesh shards
    2: [("rows",), ("batch",), ("heads",), ("",)],
    4: [("batch", "rows"), ("rows", "rows"), ("heads", "rows"), ("", "rows"), ("rows", "batch"), ("keys", "rows")],
}


def numbers(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole_numbers(*shape: int, high: int = 50, seed: int = 0) -> Any:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


KEPT = whole_numbers(B, T, high=4, seed=3) > 0
KEPT[0] = False
OFFSETS, PLACES = torch.tensor([3, 0, 1 << 20, 7]), whole_numbers(B, T, high=1 << 20, seed=4)
WHERE = {
    "start": {},
    "offset": {"offset": 9},
    "offsets": {"offset": OFFSETS},
    "positions": {"positions": PLACES[0]},
    "positions_of_sequences": {"positions": PLACES},
    "real_positions": {"positions": PLACES / 7},
    "list": {"positions": list(range(T))[::-1]},
    "mask": {"mask": KEPT, "offset": 2},
    "mask_of_rows": {"mask": KEPT[1], "offset": OFFSETS},
    "packed": {"cu_seqlens": torch.tensor([0, 5, 5, T])},
}
ROWS = {"batch": 0, "rows": 1}
HEADS = {"batch": 0, "heads": 1, "rows": 2}


class Case(NamedTuple):
    """A call, and which axis of each array a layout shards; a verb that writes returns what it was given."""

    call: Callable[..., Any]
    arrays: tuple[Any, ...]
    axes: tuple[dict[str, int], ...]
    writes: int = 1


def add(x: Any, *args: Any, **options: Any) -> Case:
    return Case(lambda x: fastpe.add_encoding(x, *args, **options), (x,), (ROWS,))


def rotate(q: Any, k: Any, *args: Any, axes: Any = HEADS, **options: Any) -> Case:
    return Case(lambda q, k: fastpe.apply_rotary(q, k, *args, **options), (q, k), (axes, axes), 2)


def bias(chosen: Any, **options: Any) -> Case:
    axes = {**HEADS, "keys": 3}
    return Case(lambda scores: fastpe.add_bias(scores, chosen, **options), (numbers(B, H, T, T + 2),), (axes,))


X, Q, K, TABLE = numbers(B, T, D), numbers(B, H, T, D), numbers(B, 2, T, D, seed=1), numbers(T, D, seed=2)
IDS = whole_numbers(B, T, high=T)
CASES: dict[str, Case] = {
    **{f"add_{name}": add(X, input_scale=2.0, **where) for name, where in WHERE.items()},
    **{f"rotate_{name}": rotate(Q, K, **where) for name, where in WHERE.items()},
    **{f"add_{dtype}".replace("torch.", ""): add(X.to(dtype)) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
    **{f"rotate_{dtype}".replace("torch.", ""): rotate(Q.to(dtype), K.to(dtype)) for dtype in (torch.float64, torch.bfloat16)},
    "add_by_length": add(X, fastpe.Sinusoidal(scaling=DynamicNTK(4.0, 6)), offset=2),
    "add_by_length_of_positions": add(X, fastpe.Sinusoidal(scaling=DynamicNTK(4.0, 6)), positions=PLACES),
    "add_by_length_of_sequences": add(X, fastpe.Sinusoidal(scaling=DynamicNTK(4.0, 6)), offset=OFFSETS),
    "add_learned": add(X, fastpe.Learned(TABLE)),
    "add_learned_masked": add(X, fastpe.Learned(TABLE), mask=KEPT),
    "add_grid": add(numbers(B, 12, D), fastpe.Grid((3, 4))),
    "add_rows_first": Case(
        lambda x: fastpe.add_encoding(x, seq_axis=0, mask=KEPT.T), (numbers(T, B, D),), ({"rows": 0, "batch": 1},)
    ),
    "add_one_sequence": Case(fastpe.add_encoding, (numbers(T, D),), ({"rows": 0},)),
    "add_few_rows": add(numbers(B, 1, D)),
    "rotate_inverse": rotate(Q, K, fastpe.Rotary(base=500.0), inverse=True, offset=5),
    "rotate_q": Case(fastpe.apply_rotary, (Q,), (HEADS,)),
    "rotate_k": Case(lambda k: fastpe.apply_rotary(None, k, fastpe.Rotary(xpos_scale_base=512)), (K,), (HEADS,)),
    "rotate_sections": rotate(Q, K, fastpe.Rotary(sections=(4, 2, 2)), positions=whole_numbers(3, B, T)),
    "rotate_heads_last": rotate(
        numbers(B, T, H, D), numbers(B, T, 2, D), seq_axis=-3, mask=KEPT, axes={"batch": 0, "rows": 1, "heads": 2}
    ),
    "rotate_flat_heads": rotate(
        numbers(B, T, H * D), numbers(B, T, 2 * D), head_dim=D, axes={"batch": 0, "rows": 1, "heads": 2}
    ),
    "rotate_packed": Case(
        lambda qkv: functional.apply_rotary_qkv(qkv, (2, 1), mask=KEPT, inplace=True), (numbers(B, T, 4, D),), (ROWS,)
    ),
    "rerotate": Case(
        lambda k: fastpe.rerotate(k, 7, source=fastpe.Rotary(), target=fastpe.Rotary(base=500.0), mask=KEPT), (K,), (HEADS,)
    ),
    "rerotate_sequences": Case(lambda k: fastpe.rerotate(k, OFFSETS), (K,), (HEADS,)),
    "rerotate_rows": Case(lambda k: fastpe.rerotate(k, PLACES), (K,), (HEADS,)),
    "embed": Case(
        lambda ids: fastpe.embed(ids, torch.nn.Parameter(TABLE), "sinusoidal", mask=KEPT).detach(), (IDS,), (ROWS,), 0
    ),
    "embed_padding": Case(
        lambda ids: functional.embed(ids, torch.nn.Parameter(TABLE), "sinusoidal", padding_idx=1).detach(), (IDS,), (ROWS,), 0
    ),
    "embed_alone": Case(lambda ids: fastpe.embed(ids, torch.nn.Parameter(TABLE), mask=KEPT).detach(), (IDS,), (ROWS,), 0),
    "embed_types": Case(
        lambda ids: fastpe.embed(ids, torch.nn.Parameter(TABLE), "sinusoidal", token_types=(PLACES % 2, TABLE[:2])).detach(),
        (IDS,),
        (ROWS,),
        0,
    ),
    "encode": Case(lambda positions: fastpe.encode(positions, D), (PLACES,), (ROWS,), 0),
    "encode_by_length": Case(
        lambda positions: fastpe.encode(positions, D, fastpe.Sinusoidal(scaling=DynamicNTK(4.0, 6))), (PLACES,), (ROWS,), 0
    ),
    "new_add": Case(functional.add_encoding, (X,), (ROWS,), 0),
    "new_rotate": Case(lambda q, k: functional.apply_rotary(q, k, mask=KEPT), (Q, K), (HEADS, HEADS), 0),
    "alibi": bias(fastpe.ALiBi(H), causal=True),
    "alibi_symmetric": bias(fastpe.ALiBi(H, symmetric=True), q_offset=torch.arange(B)),
    "alibi_positions": bias(fastpe.ALiBi(H), q_positions=PLACES % 9, k_positions=torch.arange(T + 2)),
    "t5": bias(fastpe.T5Bias(numbers(32, H)), input_scale=0.5),
    "kerple": bias(fastpe.Kerple(p=[0.5, 1.0, 1.5, 2.0], a=[1.0, 0.5, 0.25, 2.0]), k_positions=torch.arange(T + 2) * 2),
    "sandwich": bias(fastpe.Sandwich(H), q_offset=1),
    "out": Case(lambda x, out: fastpe.add_encoding(x, out=out), (X, torch.zeros_like(X)), (ROWS, ROWS), 0),
}


# ---- the processes -----------------------------------------------------------------------------------------------------------


def placed(mesh: Any, layout: tuple[str, ...], axes: dict[str, int]) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(axes[role]) if role in axes else Replicate() for role in layout]


def spread(x: Any, mesh: Any, layout: tuple[str, ...], axes: dict[str, int]) -> Any:
    return torch.distributed.tensor.distribute_tensor(x.clone(), mesh, placed(mesh, layout, axes))


def many(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def same_bits(found: Any, wanted: Any) -> None:
    whole = found.full_tensor()
    assert whole.dtype == wanted.dtype
    assert whole.shape == wanted.shape
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.itemsize]
    assert torch.equal(whole.view(bits), wanted.view(bits)), f"{(whole != wanted).sum()} of {wanted.numel()} differ"


def check(case: Case, mesh: Any, layout: tuple[str, ...]) -> None:
    """In place: the same object, memory and bits; else the arrays are left alone."""
    given = [spread(x, mesh, layout, axes) for x, axes in zip(case.arrays, case.axes, strict=True)]
    addresses = [one.to_local().data_ptr() for one in given]
    made, wanted = many(case.call(*given)), many(case.call(*[x.clone() for x in case.arrays]))
    for i, (one, of_whole) in enumerate(zip(made, wanted, strict=True)):
        same_bits(one, of_whole)
        if case.writes:
            assert one is given[i]
            assert one.to_local().data_ptr() == addresses[i]
            assert one._version > 0
    for x, one in list(zip(case.arrays, given, strict=True))[:1] if not case.writes else []:
        same_bits(one, x)


def outcome(test: Callable[..., None], *arguments: Any) -> str:
    """Empty, or what went wrong; all ranks go on together."""
    try:
        test(*arguments)
    except BaseException:  # what any test may raise is reported by the parent
        return traceback.format_exc()
    return ""


def work(rank: int, ranks: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,) if ranks == 2 else (2, 2))
        found = {
            f"{name} on {layout}": outcome(check, case, mesh, layout)
            for (name, case), layout in itertools.product(CASES.items(), LAYOUTS[ranks])
        }
        found.update({name: outcome(test, mesh) for name, test in TESTS.items()})
        torch.save(found, f"{results}-{rank}")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=LAYOUTS)
def reports(request: Any, tmp_path_factory: Any) -> list[dict[str, str]]:
    """What each process reports of each test."""
    folder, ranks = tmp_path_factory.mktemp("sharded"), request.param
    arguments = ranks, str(folder / "store"), str(folder / "results")
    context = torch.multiprocessing.spawn(work, arguments, nprocs=ranks, join=False)
    while not context.join(timeout=200):
        pass
    return [torch.load(folder / f"results-{rank}") for rank in range(ranks)]


def ensure(reports: list[dict[str, str]], begin: str) -> None:
    assert all(any(name.startswith(begin) for name in report) for report in reports)
    wrong = {name: text for report in reports for name, text in report.items() if name.startswith(begin) and text}
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())


@pytest.mark.parametrize("name", CASES)
def test_verbs(reports: list[dict[str, str]], name: str) -> None:
    ensure(reports, f"{name} on")


# ---- what else ranks do ------------------------------------------------------------------------------------------------------

TESTS: dict[str, Callable[[Any], None]] = {}


def ranked(test: Callable[[Any], None]) -> Callable[[Any], None]:
    """Run a test on every rank."""
    TESTS[test.__name__] = test
    return test


def layouts(mesh: Any) -> list[tuple[str, ...]]:
    return LAYOUTS[mesh.size()]


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
    refused(ValueError, r"sharded or replicated, got .Partial.sum.*x.redistribute", add, from_local(mesh, X.clone(), Partial()))
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
        "out must be a DTensor with the placements",
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


@pytest.mark.parametrize("name", TESTS)
def test_more(reports: list[dict[str, str]], name: str) -> None:
    ensure(reports, name)


def test_the_page_about_many_gpus(tmp_path: Any) -> None:
    """As it says: alone it is tested with the other pages, here by two processes."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "many-gpus.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "page.py").write_text("".join(blocks))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
