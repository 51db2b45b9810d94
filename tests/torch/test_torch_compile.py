"""fastpe in graphs of PyTorch: compiled, exported, captured."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import functional, ops  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        # Of PyTorch's compiler, as it traces and lowers
        "ignore::DeprecationWarning:torch.*",
        "ignore::FutureWarning:torch.*",
    ),
    pytest.mark.usefixtures("fresh_compiler"),
]

LENGTHS = (5, 9, 17, 33)


def counted(function: Any, backend: str = "aot_eager") -> tuple[Any, Any]:
    """A function compiled as a whole, and what counts its compilations."""
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def inputs(length: int = 6) -> SimpleNamespace:
    """Tensors to work on; those of real numbers are leaves of autograd if it is switched on."""
    seeded = torch.Generator().manual_seed(length)
    shapes = {"x": (2, length, 8), "q": (2, 4, length, 8), "k": (2, 2, length, 8), "packed": (2, length, 5, 8)}
    shapes |= {"table": (11, 8), "types": (2, 8), "learned": (40, 8)}
    real = {name: torch.randn(shape, generator=seeded) for name, shape in shapes.items()}
    ids = torch.randint(0, 11, (2, length), generator=seeded)
    return SimpleNamespace(ids=ids, kept=torch.arange(length) % 3 != 1, places=torch.arange(length) * 5 - 7, **real)


def all_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def run(function: Callable[[Any], Any], given: SimpleNamespace, grad: bool) -> tuple[list[Any], dict[str, Any]]:
    """Results of a function of copies of the inputs, and the gradients of those."""
    own = {name: value.clone().requires_grad_(grad and value.is_floating_point()) for name, value in vars(given).items()}
    found = all_of(function(SimpleNamespace(**own)))
    if grad:
        weights = [torch.randn(one.shape, generator=torch.Generator().manual_seed(1)).to(one.dtype) for one in found]
        sum((one * weight).sum() for one, weight in zip(found, weights, strict=True)).backward()
    gradients = {name: value.grad for name, value in own.items() if value.grad is not None}
    return [one.detach() for one in found], gradients


def assert_same(found: Any, expected: Any) -> None:
    assert len(found[0]) == len(expected[0])
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    assert found[1].keys() == expected[1].keys()
    for name in found[1]:
        assert torch.equal(found[1][name].to_dense(), expected[1][name].to_dense()), name


# ---- the same as without a graph ---------------------------------------------------------------------------------------------

YARN, NTK = Rotary(scaling=scaling.YaRN(4.0, 16)), Rotary(scaling=scaling.DynamicNTK(4.0, 3))
CONCATENATED = Sinusoidal(layout="concatenated", amplitude=0.5)
TABLE = torch.linspace(-1, 1, 36).reshape(9, 4)
F = functional
FUNCTIONAL: dict[str, Callable[[Any], Any]] = {
    "add": lambda i: F.add_encoding(i.x, offset=3, input_scale=2.0),
    "add_axis": lambda i: F.add_encoding(i.packed, CONCATENATED, seq_axis=1),
    "add_mask": lambda i: F.add_encoding(i.x, mask=i.kept, input_scale=3.0),
    "add_positions": lambda i: F.add_encoding(i.x, positions=i.places),
    "add_real_positions": lambda i: F.add_encoding(i.x, positions=torch.arange(6) / 3),
    "add_lists": lambda i: F.add_encoding(i.x, "sinusoidal", offset=[3, 70]),
    "add_cu_seqlens": lambda i: F.add_encoding(i.x, cu_seqlens=[0, 2, 6], offset=[1, 5]),
    "add_learned": lambda i: F.add_encoding(i.x, Learned(i.learned), offset=4, mask=i.kept),
    "add_learned_clip": lambda i: F.add_encoding(i.x, Learned(i.learned, "clip"), offset=37),
    "rotate": lambda i: F.apply_rotary(i.q, i.k, offset=5),
    "rotate_q": lambda i: F.apply_rotary(i.q, inverse=True, positions=i.places),
    "rotate_k": lambda i: F.apply_rotary(None, i.k, Rotary(xpos_scale_base=512.0)),
    "rotate_axis": lambda i: F.apply_rotary(i.packed, seq_axis=1),
    "rotate_factor": lambda i: F.apply_rotary(i.q, i.k, YARN),
    "rotate_length": lambda i: F.apply_rotary(i.q, i.k, NTK),
    "rotate_known_length": lambda i: F.apply_rotary(i.q, i.k, NTK, seq_len=100),
    "rotate_sections": lambda i: F.apply_rotary(
        i.q, i.k, Rotary(sections=(2, 1, 1)), positions=torch.stack([i.places] * 3) * torch.tensor([[1], [2], [3]])
    ),
    "rotate_table": lambda i: F.apply_rotary(i.q, i.k, Rotary.tabulated(TABLE, TABLE * 2, interleaved=True)),
    "packed": lambda i: F.apply_rotary_qkv(i.packed, (2, 1), YARN, offset=2),
    "packed_in_place": lambda i: F.apply_rotary_qkv(i.packed * 1, (2, 1), inplace=True),
    "rerotate": lambda i: F.rerotate(i.k, -3, offset=9),
    "rerotate_real": lambda i: F.rerotate(i.k, 1.5),
    "rerotate_tensor": lambda i: F.rerotate(i.k, torch.tensor([3, -8])),
    "rerotate_rules": lambda i: F.rerotate(i.k, source=NTK, target=YARN, seq_len=(50, 60)),
    "embed": lambda i: F.embed(i.ids, i.table, "sinusoidal", scale=2.0, offset=6),
    "embed_everything": lambda i: F.embed(
        i.ids, i.table, Learned(i.learned), scale=2.0, token_types=(i.ids % 2, i.types), padding_idx=3, frozen_idx=1
    ),
    "embed_clip": lambda i: F.embed(i.ids, i.table, Learned(i.learned, "clip"), offset=37, deterministic=True),
    "embed_sparse": lambda i: F.embed(i.ids, i.table, mask=i.kept, sparse=True),
    "embed_half": lambda i: F.embed(i.ids, i.table, dtype="float16"),
}
VERBS: dict[str, Callable[[Any], Any]] = {
    "add_encoding": lambda i: fastpe.add_encoding(i.x * 2, offset=3, input_scale=2.0),
    "add_encoding_learned": lambda i: fastpe.add_encoding(i.x * 2, Learned(i.learned), offset=3),
    "add_encoding_view": lambda i: fastpe.add_encoding((i.x * 2)[:, 1:], CONCATENATED),
    "apply_rotary": lambda i: fastpe.apply_rotary(i.q * 2, i.k * 3, YARN, offset=5),
    "apply_rotary_k": lambda i: fastpe.apply_rotary(None, i.k * 3, Rotary(xpos_scale_base=512.0)),
    "rerotate": lambda i: fastpe.rerotate(i.k * 2, 4),
    "embed": lambda i: fastpe.embed(i.ids, i.table, Learned(i.learned), token_types=(i.ids % 2, i.types)),
}
WITHOUT_GRADIENT: dict[str, Callable[[Any], Any]] = {
    "encode": lambda i: fastpe.encode(i.places, 16),
    "encode_half": lambda i: fastpe.encode(i.places / 2, 16, CONCATENATED, dtype=torch.float16),
    "encode_name": lambda i: fastpe.encode(i.places, 16, dtype="float16"),
    "encode_like": lambda i: i.x + fastpe.encode([1, 2, 3, 4, 5, 6], 8, like=i.x),
    "encode_out": lambda i: fastpe.encode(i.places, 8, out=torch.empty(6, 8, dtype=torch.float16)),
    "add_out": lambda i: (fastpe.add_encoding(i.x, out=torch.empty_like(i.x)), i.x),
    "add_out_itself": lambda i: fastpe.add_encoding(i.x, out=i.x),
    "rotate_outs": lambda i: (*fastpe.apply_rotary(i.q, i.k, out=(torch.empty_like(i.q), torch.empty_like(i.k))), i.q, i.k),
    "rotate_out": lambda i: (fastpe.apply_rotary(i.q, out=torch.empty_like(i.q)), i.q),
    "rerotate_out": lambda i: (fastpe.rerotate(i.k, 2.5, out=torch.empty_like(i.k)), i.k),
    "embed_out": lambda i: fastpe.embed(i.ids, i.table, out=torch.empty(2, 6, 8, dtype=torch.float16)),
    "embed_int8": lambda i: F.embed(i.ids, (i.table * 9).to(torch.int8), row_scale=torch.arange(11.0)),
    "embed_uint8": lambda i: F.embed(
        i.ids, (i.table * 9 + 99).to(torch.uint8), row_scale=(torch.arange(11.0), torch.arange(11.0)), dtype="float16"
    ),
    "embed_ids": lambda i: F.embed([[1, 2], [3, 4]], i.table, token_types=([[0, 1], [1, 0]], i.types)),
    "validate": lambda i: F.add_encoding(i.x, positions=i.places, validate=True),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_compiled_is_the_same(name):
    """Bit for bit, gradients too; `fullgraph` makes a graph break an error."""
    compiled, counter = counted(FUNCTIONAL[name])
    assert_same(run(compiled, inputs(), True), run(FUNCTIONAL[name], inputs(), True))
    assert counter.frame_count == 1


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", VERBS)
def test_compiled_verbs_are_the_same(name, grad):
    compiled, counter = counted(VERBS[name])
    assert_same(run(compiled, inputs(), grad), run(VERBS[name], inputs(), grad))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_compiled_is_the_same_without_gradients(name):
    function = WITHOUT_GRADIENT[name]
    compiled, _ = counted(function)
    assert_same(run(compiled, inputs(), False), run(function, inputs(), False))


def test_another_dtype():
    given = SimpleNamespace(
        **{name: value.half() if value.is_floating_point() else value for name, value in vars(inputs()).items()}
    )
    for name in ("rotate", "packed_in_place"):
        compiled, _ = counted(FUNCTIONAL[name])
        assert_same(run(compiled, given, True), run(FUNCTIONAL[name], given, True))


def test_an_input_is_written_itself():
    x, q, k = (torch.ones(2, 6, 8) for _ in range(3))
    for function, arrays in (
        (fastpe.add_encoding, (x,)),
        (fastpe.apply_rotary, (q, k)),
        (functools.partial(fastpe.rerotate, delta=3), (q,)),
    ):
        compiled, _ = counted(function)
        expected = [one.detach().clone() for one in arrays]
        function(*expected)
        found = all_of(compiled(*arrays))
        for given, result, other in zip(arrays, found, expected, strict=True):
            assert result is given
            assert torch.equal(given, other)


def test_in_place_with_a_history_elsewhere():
    """Written after another operation read it: the other's gradient needs what it read."""

    def function(x: Any, w: Any) -> Any:
        y = x * w
        z = y.sin()
        return fastpe.apply_rotary(z)[..., :4].square() + fastpe.add_encoding(y * 1)[..., 4:]

    found = []
    for one in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        x, w = torch.linspace(-1, 1, 96).reshape(2, 6, 8).requires_grad_(), torch.linspace(0, 1, 8).requires_grad_()
        one(x, w).sum().backward()
        found.append((x.grad, w.grad))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))


def test_gradients_of_gradients():
    def function(x: Any) -> Any:
        return (F.apply_rotary(x, None, YARN) ** 3).sum()

    x = inputs().x.requires_grad_()
    found = torch.compile(lambda x: F.apply_rotary(x, None, YARN), fullgraph=True, backend="eager")(x)
    first = torch.autograd.grad((found**3).sum(), x, create_graph=True)[0]
    expected = torch.autograd.grad(function(x), x, create_graph=True)[0]
    assert torch.equal(first, expected)
    second = torch.autograd.grad(first.square().sum(), x)[0]
    assert torch.allclose(second, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-6)


# ---- how often is compiled ---------------------------------------------------------------------------------------------------

BY_LENGTH: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "add": (lambda x: F.add_encoding(x), ("x",)),
    "add_in_place": (lambda x: fastpe.add_encoding(x * 1), ("x",)),
    "learned": (lambda x, table: F.add_encoding(x, Learned(table)), ("x", "learned")),
    "rotate": (lambda q, k: F.apply_rotary(q, k), ("q", "k")),
    "rotate_in_place": (lambda q, k: fastpe.apply_rotary(q * 1, k * 1), ("q", "k")),
    "rotate_length": (lambda q, k: F.apply_rotary(q, k, NTK), ("q", "k")),
    "packed": (lambda qkv: F.apply_rotary_qkv(qkv, (2, 1)), ("packed",)),
    "rerotate": (lambda k: F.rerotate(k, 5), ("k",)),
    "embed": (lambda ids, table: F.embed(ids, table, "sinusoidal"), ("ids", "table")),
    "encode": (lambda x: x + fastpe.encode(torch.arange(x.shape[1]), 8, like=x), ("x",)),
}


@pytest.mark.parametrize("marked", [False, True], ids=["automatic", "mark_dynamic"])
@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_graph_serves_every_length(name, marked):
    function, names = BY_LENGTH[name]
    compiled, counter = counted(function)
    for length in LENGTHS:
        given = [getattr(inputs(length), name).requires_grad_(name not in ("ids", "learned", "table")) for name in names]
        for tensor, name in zip(given, names, strict=True):
            if marked and name not in ("learned", "table"):
                torch._dynamo.mark_dynamic(tensor, 2 if name in ("q", "k") else 1)
        found, expected = all_of(compiled(*given)), all_of(function(*given))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        if found[0].requires_grad:
            gradients = [
                torch.autograd.grad(sum(one.square().sum() for one in ones), given[0])[0] for ones in (found, expected)
            ]
            assert torch.equal(*gradients)
    assert counter.frame_count <= (1 if marked else 2)


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, offset: F.add_encoding(x, offset=offset),
        lambda x, offset: fastpe.apply_rotary(x * 1, x * 2, offset=offset),
        lambda x, offset: F.apply_rotary(x, None, NTK, offset=offset),
        lambda x, offset: F.apply_rotary(x, None, NTK, offset=offset, seq_len=offset + 9),
        lambda x, offset: F.rerotate(x, offset),
    ],
    ids=["add", "rotate", "length", "seq_len", "rerotate"],
)
def test_a_graph_serves_every_offset(function, first):
    """Decoding, token by token: once for the first offset, once for any."""
    compiled, counter = counted(function)
    x = torch.ones(2, 1, 8)
    for offset in range(first, first + 6):
        assert all(torch.equal(a, b) for a, b in zip(all_of(compiled(x, offset)), all_of(function(x, offset)), strict=True))
    assert counter.frame_count <= 2


def test_a_graph_serves_every_width_and_equal_encodings():
    compiled, counter = counted(lambda p, dim: fastpe.encode(p, dim))
    for dim in (8, 12, 16, 20):
        assert torch.equal(compiled(torch.arange(3), dim), fastpe.encode(torch.arange(3), dim))
    assert counter.frame_count <= 2
    compiled, counter = counted(lambda x, encoding: F.apply_rotary(x, None, encoding))
    for _ in range(3):
        compiled(torch.ones(2, 3, 8), Rotary(base=500.0, scaling=scaling.Linear(2.0)))
    assert counter.frame_count == 1


def test_another_encoding_is_another_graph():
    """Given, made in the graph, in a module or from a global name: whatever differs, the result does."""
    compiled, counter = counted(lambda x, encoding: F.apply_rotary(x, None, encoding))
    x = inputs().x
    different = [None, *(Rotary(base=base) for base in (2.0, 3.0, 4.0)), YARN, dataclasses.replace(YARN, interleaved=True)]
    different += [Rotary(scaling=scaling.YaRN(5.0, 16)), Rotary(rotary_dim=4)]
    for encoding in different:
        assert torch.equal(compiled(x, encoding), F.apply_rotary(x, None, encoding))
    assert counter.frame_count == len(different)
    torch._dynamo.reset()
    module = fastpe.torch.RotaryEmbedding()
    compiled, _ = counted(module)
    for encoding in (Rotary(), Rotary(base=7.0), Rotary(base=8.0)):
        module.encoding = encoding
        assert torch.equal(compiled(x), F.apply_rotary(x, None, encoding))
    torch._dynamo.reset()
    compiled, _ = counted(lambda x, base: F.add_encoding(x, Sinusoidal(base, "concatenated", amplitude=0.5)))
    assert torch.equal(compiled(x, 50.0), F.add_encoding(x, Sinusoidal(50.0, "concatenated", amplitude=0.5)))


MADE: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "detr": (lambda x: F.add_encoding(x, fastpe.Grid.detr(x.shape[1:3])), (16,)),
    "detr_in_place": (lambda x: fastpe.add_encoding(x * 1, fastpe.Grid.detr((x.shape[1], x.shape[2]), normalize=False)), (16,)),
    "mae": (lambda x: F.add_encoding(x, fastpe.Grid.mae(x.shape[1:3], base_size=7, interpolation_scale=2)), (16,)),
    "timm": (lambda x: F.add_encoding(x, fastpe.Grid.timm(x.shape[1:3], reverse_coord=True)), (16,)),
    "cogvideox": (lambda x: F.add_encoding(x, fastpe.Grid.cogvideox((x.shape[1], x.shape[2], 2))), (2, 64)),
    "grid": (
        lambda x: F.add_encoding(
            x, fastpe.Grid((x.shape[1], x.shape[2]), None, Sinusoidal(), start=x.shape[1], extent=(2, 3.5))
        ),
        (16,),
    ),
    "nerf": (lambda x: fastpe.encode(x[:2, 0, :, 0] / 8, 4 * x.shape[1], fastpe.Fourier.nerf(2, x.shape[1])), (1,)),
    "fourier": (lambda x: fastpe.encode(x[:2, 0, :, 0] / 8, 4, fastpe.Fourier(2, matrix=((1.0, 2), (0.5, x.shape[1])))), (1,)),
}


@pytest.mark.parametrize("name", MADE)
def test_made_in_a_graph_of_sizes_that_change(name):
    """A grid of the shape of an image: an encoding is a string in a graph, so each shape has one."""
    function, width = MADE[name]
    compiled, counter = counted(function)
    sizes = ((2, 3), (4, 3), (5, 6), (2, 3))
    for size in sizes:
        x = torch.linspace(-1, 1, 2 * size[0] * size[1] * math.prod(width)).reshape(2, *size, *width)
        assert torch.equal(compiled(x), function(x))
    assert counter.frame_count == 3


def test_made_in_a_graph_of_numbers_that_change():
    x, counts = inputs().x, (2, 3, 5)
    for function in (
        lambda x, n: F.add_encoding(x, Sinusoidal(n)),
        lambda x, n: F.add_encoding(x, Sinusoidal(n / 2, amplitude=n, frequency_shift=1)),
        lambda x, n: F.apply_rotary(x, None, Rotary(n, scaling=scaling.Linear(n))),
    ):
        compiled, _ = counted(function)
        for number in (*counts, *(count + 0.5 for count in counts)):
            assert torch.equal(compiled(x, number), function(x, number))


# ---- operators ---------------------------------------------------------------------------------------------------------------


def operators() -> list[str]:
    found = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastpe::")}
    return sorted(name.removeprefix("fastpe::") for name in found if "bias" not in name)  # those are in test_torch_bias.py


def calls_of(name: str, place: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Representative arguments of an operator, with one way to give positions."""
    i = inputs()
    leaf = {name: getattr(i, name).requires_grad_() for name in ("x", "q", "table", "types", "learned", "packed")}
    sinusoidal, rotary, new = Sinusoidal(base=50.0).text, Rotary(interleaved=True).text, torch.zeros(2, 6, 8)
    tables, none = (leaf["table"], leaf["types"], leaf["learned"]), (None, None)
    turn, move = (False, -2, True, False, None, None, False), (-2, None, False, False)
    return {
        "add_encoding": [
            (leaf["x"], None, sinusoidal, *place, -2, 2.0, None, False),
            (leaf["x"], leaf["learned"], "clip", *place, -2, 2.0, None, False),
            (inputs().x.transpose(0, 1), None, "", *(3, None, None, None, None), 0, 1.0, None, True),
        ],
        "add_encoding_": [
            (new, None, None, sinusoidal, *place, -2, 2.0, None, False),
            (new, inputs().x, inputs().learned, "clip", *place, -2, 1.0, None, False),
        ],
        "apply_rotary": [
            (leaf["q"], None, None, rotary, *place, *turn),
            (leaf["q"], None, None, NTK.text, *place, True, -2, False, True, 70, None, False),
            (leaf["q"], torch.ones(90, 4), torch.ones(90, 4), "1 0", *place, *turn),
            (leaf["packed"], None, None, "", 3, None, None, None, None, False, -3, False, False, None, [2, 1, 2], False),
        ],
        "apply_rotary_": [(new, None, None, None, rotary, *place, *turn), (new, inputs().x, None, None, "", *place, *turn)],
        "rerotate": [
            (leaf["x"], 3, None, None, [rotary, "", ""], *place, *move),
            (leaf["x"], 0, 1.5, None, ["", "", ""], *place, *move),
            (leaf["x"], 0, None, torch.arange(2), ["", "", ""], 0, None, None, None, None, *move),
            (leaf["x"], 0, None, None, ["", NTK.text, YARN.text], *place, -2, [9, 20], True, False),
        ],
        "rerotate_": [(new, None, 3, None, None, ["", "", ""], *place, *move)],
        "embed": [
            (*tables, i.ids, i.ids % 2, None, None, *place, "clip", 2.0, 3, torch.float32, None, False, True, 1, False),
            (tables[0], *none, i.ids, None, *none, *place, sinusoidal, 1.0, None, torch.float16, 90, False, False, None, True),
        ],
        "encode": [(torch.arange(4.0), 16, sinusoidal, torch.float16, None, False)],
        "row_positions": [(i.x.detach(), *place, -2)],
    }[name]


PLACES = {
    "offset": (3, None, None, None, None),
    "offsets": (0, torch.tensor([2, 5]), None, None, torch.arange(12).reshape(2, 6) % 4 != 1),
    "cu_seqlens": (1, None, None, torch.tensor([0, 2, 6]), None),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", operators())
def test_operators_keep_their_word(name, place):
    """Their schemas, fake results and gradients are what they say, with lengths of any size."""
    if place != "offset" and name == "encode":
        pytest.skip("has positions only")
    for arguments in calls_of(name, PLACES[place]):
        torch.library.opcheck(getattr(torch.ops.fastpe, name).default, arguments)


def test_without_a_compiler_no_operator_is_called():
    """An operator costs microseconds: eager calls go to the kernels themselves."""
    torch.ops.fastpe.encode(torch.arange(3), 4, "", torch.float32, None, False)
    with torch.profiler.profile() as profile:
        for function in (*FUNCTIONAL.values(), *VERBS.values()):
            run(function, inputs(), True)
        for function in WITHOUT_GRADIENT.values():
            run(function, inputs(), False)
    names = {event.key for event in profile.key_averages()}
    assert "aten::empty_like" in names
    assert not [name for name in names if "fastpe::" in name]
    with torch.profiler.profile() as profile:
        torch.ops.fastpe.encode(torch.arange(3), 4, "", torch.float32, None, False)
    assert "fastpe::encode" in {event.key for event in profile.key_averages()}


# ---- encodings as text -------------------------------------------------------------------------------------------------------

RULES = {
    "Linear": scaling.Linear(4.0),
    "NTK": scaling.NTK(2.5),
    "DynamicNTK": scaling.DynamicNTK(4.0, 2048),
    "YaRN": scaling.YaRN(4.0, 4096, beta_fast=30.0, mscale=0.7, mscale_all_dim=0.9, truncate=False, ramp="turns"),
    "NTKByParts": scaling.NTKByParts(3.0, 1024, (1.5, 0.5), (20.0, 1.0)),
    "Llama3": scaling.Llama3(8.0, 1.0, 4.0, 8192),
    "LongRoPE": scaling.LongRoPE((1.0, 1.1, 1.2, 1.3), (2.0, 3.0, 4.0, 5.0), 4096, 32.0, 1.25),
    "Proportional": scaling.Proportional(0.5, 2.0),
    "Custom": scaling.Custom((0.1, 1 / 3, 1e-300, 0.0), 0.7),
}
ENCODINGS = [
    Sinusoidal(),
    Sinusoidal(1 / 3, "concatenated", True, 0.5, -0.125, 1e-9),
    Rotary(),
    Rotary(5e5, True, 4, 2, None, None, attention_factor=0.1, xpos_scale_base=512.0, xpos_centre=-(2**30)),
    Rotary(sections=(1, 2, 1), section_layout="alternating"),
    Rotary(sections=(2, 2), section_frequencies="own"),
    *(kind(scaling=rule) for kind in (Sinusoidal, Rotary) for rule in RULES.values()),
]


def test_every_rule_is_among_the_tested():
    assert {rule.__name__ for rule in scaling.Scaling.__subclasses__() if rule.__module__ == "fastpe.scaling"} == set(RULES)
    assert all(type(rule).__name__ == name for name, rule in RULES.items())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_encodings_survive_as_text(encoding):
    json.loads(encoding.text)
    again = ops._read(ops._text(encoding))
    assert again == encoding
    assert type(again) is type(encoding)
    assert again.text == encoding.text
    fields = [(getattr(encoding, field.name), getattr(again, field.name)) for field in dataclasses.fields(encoding)]
    assert all(type(one) is type(other) for one, other in fields)


def test_text_is_made_of_plain_numbers():
    """Whatever kind of number came."""
    encoding = Rotary(np.float32(500), rotary_dim=np.int64(4), scaling=scaling.Linear(np.float16(2)), sections=[1, 1])
    assert ops._read(encoding.text) == encoding
    assert ops._text(None) == ""
    assert ops._read("") is None
    assert ops._read(ops._text("sinusoidal")) == Sinusoidal()
    assert dataclasses.replace(encoding, base=3.0).text != encoding.text
    assert "text" not in repr(encoding)


@dataclasses.dataclass(frozen=True)
class Own(scaling.Scaling):
    factor: float = 2.0

    def apply(self, plain: scaling.Plain) -> Any:
        return [w / 2 for w in plain.frequencies()], 1.0


class Derived(Rotary):
    pass


@pytest.mark.parametrize(
    ("encoding", "error", "text"),
    [
        (Rotary(scaling=Own()), TypeError, r"made of numbers and rules of fastpe\.scaling, got a test_torch_compile\.Own"),
        (Derived(), TypeError, r"one of fastpe's, got a test_torch_compile\.Derived"),
        (3.0, TypeError, r"one of fastpe's, got a builtins\.float"),
        ("learned", TypeError, r"encoding must be an encoding such as Sinusoidal\(\) or one of 'sinusoidal'"),
    ],
)
def test_unknown_encodings_are_refused(encoding, error, text):
    with pytest.raises(error, match=text):
        ops._text(encoding)
    x = torch.zeros(2, 6, 8)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=text):
        torch.compile(lambda x: F.apply_rotary(x, None, encoding), fullgraph=True, backend="eager")(x)
    assert not x.any()


def test_an_own_rule_runs_beside_the_graph():
    """Where a break is allowed, what no graph can hold is run as without one."""
    encoding = Rotary(scaling=Own())
    x = inputs().x
    compiled = torch.compile(lambda x: F.apply_rotary(x * 2, None, encoding) + 1, backend="aot_eager")
    assert torch.equal(compiled(x), F.apply_rotary(x * 2, None, encoding) + 1)


# ---- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda i: F.add_encoding(i.x, Rotary()), TypeError, "encoding must be an encoding such as Sinusoidal"),
        (lambda i: F.add_encoding(i.ids[..., None]), TypeError, "x must be a floating-point array"),
        (lambda i: fastpe.add_encoding(i.x * 1, Learned(i.learned), offset=36), IndexError, r"\[0, 40\), got 40 at row 4"),
        (lambda i: F.apply_rotary(i.x[..., :7]), ValueError, "must be even, got 7"),
        (lambda i: F.embed(i.ids + 1, i.table), IndexError, "ids"),
        (lambda i: F.add_encoding(i.x, positions=i.places[:4]), ValueError, "positions must have shape"),
    ],
)
def test_errors_are_those_without_a_graph(function, error, text):
    given = inputs()
    given.ids[0, 0] = 10
    for one in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        with pytest.raises(error, match=text):
            one(given)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda i: F.apply_rotary(None), "q or k must be a tensor"),
        (lambda i: F.add_encoding(i.x, positions=i.x[0, :, 0]), "no gradient for positions"),
        (lambda i: F.apply_rotary(i.x, None, Rotary.tabulated(i.learned[:, :4], i.learned[:, :4])), "no gradient for cos"),
        (lambda i: F.rerotate(i.x, i.x[0, :, 0]), "no gradient for delta"),
        (lambda i: F.embed(i.ids, i.table, row_scale=i.table[:, 0]), "no gradient for row_scale"),
        (lambda i: fastpe.add_encoding(i.x, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.apply_rotary(i.x, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.rerotate(i.x, 1, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.add_encoding(i.x), "a leaf Variable that requires grad is being used in an in-place operation"),
    ],
)
def test_what_autograd_forbids_is_forbidden_in_a_graph(function, text):
    given = inputs()
    for tensor in (given.x, given.table, given.learned):
        tensor.requires_grad_()
    with pytest.raises((RuntimeError, TypeError), match=text):
        function(given)
    # The compiler quotes the errors of what it traces.
    with pytest.raises(RuntimeError, match=text):
        torch.compile(function, fullgraph=True, backend="aot_eager")(given)
