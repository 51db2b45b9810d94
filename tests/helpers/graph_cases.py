"""What the tests of graphs share: inputs, verbs as functions of them, and what counts compilations."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import functional  # noqa: E402

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
