"""Graphs with fastpe in them, lowered to code, exported to another process, captured on a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import platforms
import pytest
import torch_marks

torch = pytest.importorskip("torch")

from cuda_graphs import captured  # noqa: E402

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import functional  # noqa: E402

pytestmark = torch_marks.COMPILES


# ---- code --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def code_of() -> Any:
    """A function's compiled result and the code that Inductor wrote for it."""
    utils = pytest.importorskip("torch._inductor.utils")
    cpp = pytest.importorskip("torch._inductor.cpp_builder")
    try:
        cpp.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler for Inductor: {error}")

    def found(function: Any, *arguments: Any) -> tuple[Any, str]:
        result, (code,) = utils.run_and_get_code(torch.compile(function, fullgraph=True), *arguments)
        return result, code[code.index("def call(") : code.index("def get_args(")]

    return found


WEIGHT = torch.linspace(-1, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: fastpe.add_encoding(x @ WEIGHT, offset=3),
        lambda x: fastpe.apply_rotary(x @ WEIGHT, seq_axis=1),
        lambda x: fastpe.rerotate(x @ WEIGHT, 2),
        lambda x: functional.apply_rotary_qkv((x @ WEIGHT).view(2, 6, 4, 2), (2, 1), inplace=True),
    ],
    ids=["add_encoding", "apply_rotary", "rerotate", "packed"],
)
def test_an_intermediate_is_written_where_it_lies(code_of, function):
    """One buffer, that of the product; the operator writes into it."""
    x = torch.linspace(0, 1, 96).reshape(2, 6, 8)
    with torch.no_grad():
        found, code = code_of(function, x)
        assert torch.equal(found, function(x))
    assert len(re.findall(r"torch\.ops\.fastpe\.run_\.default\(", code)) == 1
    assert len(re.findall(r"\bempty_strided\w*\(", code)) == 1
    assert "copy_" not in code
    assert "cpp_fused" not in code


def test_an_input_is_written_where_it_lies(code_of):
    x = torch.zeros(2, 6, 8)
    found, code = code_of(lambda x: fastpe.add_encoding(x), x)
    assert found is x
    assert torch.equal(x, fastpe.add_encoding(torch.zeros(2, 6, 8)))
    assert "empty_strided" not in code
    assert "copy_" not in code


class Attention(torch.nn.Module):
    """A layer as models write it, with fastpe's modules."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.embedding = fastpe.torch.TokenEmbedding(31, 16, "sinusoidal", scale=4.0)
        self.qkv = torch.nn.Linear(16, 48)
        self.rotary = fastpe.torch.RotaryEmbedding(Rotary(scaling=scaling.YaRN(4.0, 64)), seq_axis=1, inplace=inplace)

    def forward(self, ids: Any, offset: int = 0) -> Any:
        x = self.embedding(ids, offset=offset)
        q, k, v = self.qkv(x).view(*ids.shape, 6, 8).split((2, 2, 2), dim=2)
        q, k = self.rotary(q * 1, k * 1, offset=offset)
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) + x


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.usefixtures("code_of")
def test_a_layer_is_lowered_and_trained(inplace):
    """The same results and gradients, but for the compiler's own order of sums."""
    torch.manual_seed(0)
    model = Attention(inplace)
    compiled = torch.compile(model, fullgraph=True)
    for length in (5, 9, 12):
        ids = torch.arange(2 * length).reshape(2, length) % 31
        found, gradients = [], []
        for one in (model, compiled):
            model.zero_grad()
            result = one(ids, offset=3)
            result.square().sum().backward()
            found.append(result)
            gradients.append([weights.grad.clone() for weights in model.parameters()])
        assert torch.allclose(*found, rtol=1e-5, atol=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(*gradients, strict=True))


# ---- export ------------------------------------------------------------------------------------------------------------------


class Everything(torch.nn.Module):
    """Each module, and the rotary encodings that a string must bring over."""

    def __init__(self) -> None:
        super().__init__()
        positions = fastpe.torch.LearnedEncoding(64, 16)
        self.embedding = fastpe.torch.TokenEmbedding(31, 16, positions, num_token_types=2, padding_idx=0)
        self.sinusoidal = fastpe.torch.SinusoidalEncoding(Sinusoidal(layout="concatenated", amplitude=0.5), input_scale=2.0)
        self.learned = fastpe.torch.LearnedEncoding(64, 16, out_of_range="clip")
        rule = scaling.LongRoPE((1.0, 1.1, 1.2, 1.3), (2.0, 3.0, 4.0, 5.0), 8, 32.0)
        self.rotary = fastpe.torch.RotaryEmbedding(Rotary(scaling=rule), seq_axis=1)
        cosines, sines = torch.linspace(-1, 1, 256).reshape(64, 4), torch.linspace(0, 1, 256).reshape(64, 4)
        self.table = fastpe.torch.RotaryEmbedding(Rotary.tabulated(cosines, sines), seq_axis=1)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.learned(self.sinusoidal(self.embedding(ids, token_types=ids % 2, mask=mask)), offset=60)
        q, k = self.rotary(*x.unflatten(-1, (2, 8)).split(1, dim=2))
        return self.table(q + k).flatten(2) + fastpe.encode(torch.arange(ids.shape[1]), 8)


def sample(length: int, batch: int) -> tuple[Any, Any]:
    return torch.arange(batch * length).reshape(batch, length) % 31, torch.arange(length) % 4 != 1


ELSEWHERE = """
import sys
import torch
import fastpe.torch

program = torch.export.load(sys.argv[1]).module()
for arguments, expected in torch.load(sys.argv[2]):
    assert torch.equal(program(*arguments), expected)
print("the same")
"""


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_runs_elsewhere(tmp_path, strict):
    """Exported with dynamic axes, saved, loaded by another process, run with other lengths."""
    torch.manual_seed(0)
    model = Everything().eval()
    length, batch = torch.export.Dim("length", min=2, max=64), torch.export.Dim("batch", min=1, max=64)
    shapes = {"ids": {0: batch, 1: length}, "mask": {0: length}}
    with torch.no_grad():
        program = torch.export.export(model, sample(6, 2), dynamic_shapes=shapes, strict=strict)
        cases = [(sample(*size), model(*sample(*size))) for size in ((6, 2), (9, 3), (33, 1))]
    called = [node for node in program.graph.nodes if "fastpe" in str(node.target)]
    assert {str(node.target) for node in called} == {"fastpe.run.default"}
    calls = " ".join(str(node.args) for node in called)
    assert all(f'{{"type": "{kind}"' in calls for kind in ("Embed", "Add", "Rotate", "Encode"))
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "model.pt2"), str(tmp_path / "cases.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert ran.stdout == "the same\n", ran.stderr


# ---- CUDA graphs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> Any:
    """PyTorch on a real GPU."""
    platforms.require_cuda()
    if not torch.cuda.is_available():
        (pytest.fail if platforms.REQUIRE_CUDA else pytest.skip)("no GPU: PyTorch is built without CUDA")
    return torch.device("cuda")


@pytest.fixture
def simulated(ptx_folder: Path) -> Iterator[Any]:
    yield from platforms.open_platform("simulated-90", ptx_folder)


@pytest.mark.parametrize("verb", ["apply_rotary", "embed", "learned"])
def test_what_a_capture_forbids_is_refused_before_it_is_recorded(simulated, monkeypatch, verb):
    """The first call for a width loads kernels and tables; with tensors too, whose stream is then the current one."""
    import cupy

    x, table = (simulated.array(np.ones(shape, np.float32)) for shape in ((1, 2, 3, 24), (9, 24)))
    ids = simulated.array(np.arange(3)[None])
    call = {
        "apply_rotary": lambda: fastpe.apply_rotary(x, offset=2),
        "embed": lambda: fastpe.embed(ids, table, Sinusoidal(base=77.0), out=x[0, :1]),
        "learned": lambda: fastpe.add_encoding(x, Learned(table), offset=2),
    }[verb]
    stream = cupy.cuda.get_current_stream()
    monkeypatch.setattr(stream, "is_capturing", lambda: True, raising=False)
    with pytest.raises(RuntimeError, match=r"call fastpe\.warmup\(device=\.\.\.\) and this function once before the capture"):
        call()
    assert (simulated.host(x) == 1).all()
    monkeypatch.setattr(stream, "is_capturing", lambda: False)
    call()
    once = simulated.host(x)
    assert (once != 1).any()
    monkeypatch.setattr(stream, "is_capturing", lambda: True)
    call()
    assert verb == "embed" or (simulated.host(x) != once).any()


class CaptureThatEnds:
    """As ``torch.cuda.graph``: it warns where nothing was recorded, and then the caller's stream is not the current one again."""

    current = "the caller's"
    recorded: ClassVar[list[Any]] = []

    def __init__(self, graph: Any) -> None:
        self.recorded.clear()

    def __enter__(self) -> None:
        CaptureThatEnds.current = "the capture's"

    def __exit__(self, *raised: Any) -> None:
        if not self.recorded:
            warnings.warn("The CUDA Graph is empty", UserWarning, stacklevel=2)
        CaptureThatEnds.current = "the caller's"


def test_an_error_in_a_capture_is_the_one_that_is_seen(monkeypatch):
    recorded = types.SimpleNamespace(add_=CaptureThatEnds.recorded.append)
    monkeypatch.setattr(torch.cuda, "graph", CaptureThatEnds)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "a graph")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: recorded)
    with pytest.raises(RuntimeError, match="the reason"), captured("cuda"):
        raise RuntimeError("the reason")
    assert CaptureThatEnds.current == "the caller's"
    with captured("cuda") as graph:
        assert (graph, CaptureThatEnds.current) == ("a graph", "the capture's")
    with pytest.raises(UserWarning, match="empty"), torch.cuda.graph(graph):  # what it is for
        raise RuntimeError("the reason")
    assert CaptureThatEnds.current == "the capture's"


@pytest.mark.cuda
def test_a_capture_before_the_first_call_is_refused(cuda):
    x = torch.zeros(1, 5, 72, device=cuda)
    with pytest.raises(RuntimeError, match=r"call fastpe\.warmup"), captured(cuda):
        fastpe.add_encoding(x, Sinusoidal(base=123.0))
    torch.cuda.synchronize()
    assert not x.any()


@pytest.mark.cuda
def test_a_captured_graph_is_replayed(cuda):
    fastpe.warmup(device=0)
    model = Attention().to(cuda).requires_grad_(False)
    ids = torch.arange(12, device=cuda).reshape(2, 6)
    expected = [model(ids, offset=9), model(ids + 1, offset=9)]
    with captured(cuda) as graph:
        found = model(ids, offset=9)
    for result in expected:
        graph.replay()
        assert torch.equal(found, result)
        ids += 1


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [5, 20_000])
def test_positions_and_masks_are_replayed_with_new_values(cuda, rows):
    """Of a mask that is counted into a table, too, which PyTorch keeps for the graph."""
    x, positions, mask = torch.zeros(2, rows, 8), torch.arange(rows), torch.arange(2 * rows).reshape(2, rows) % 3 != 1
    there = [x.to(cuda) for _ in range(2)]
    given = {"positions": positions.to(cuda)}, {"mask": mask.to(cuda)}
    for one, where in zip(there, given, strict=True):
        fastpe.add_encoding(one, **where)
    with captured(cuda) as graph:
        for one, where in zip(there, given, strict=True):
            fastpe.add_encoding(one, **where)
    for more in (0, 7):
        given[0]["positions"].copy_(positions + more)
        given[1]["mask"].copy_(mask.roll(more, 1))
        for one in there:
            one.zero_()
        graph.replay()
        expected = {"positions": positions + more}, {"mask": mask.roll(more, 1)}
        for one, where in zip(there, expected, strict=True):
            assert torch.equal(one.cpu(), fastpe.add_encoding(x.clone(), **where))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # layers of float32
def test_compiled_to_lower_the_overhead(cuda):
    """``reduce-overhead`` captures graphs, fastpe's operators with them."""
    model = Attention().to(cuda).requires_grad_(False)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for length in (6, 6, 6, 9):
        ids = torch.arange(2 * length, device=cuda).reshape(2, length)
        assert torch.allclose(compiled(ids), model(ids), rtol=1e-4, atol=1e-4)
