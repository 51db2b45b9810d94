"""New tensors of the verbs, what autograd and other code see of them, and what a call costs."""

from __future__ import annotations

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_cases  # noqa: E402
from torch_cases import arguments, host, tensor  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Sinusoidal  # noqa: E402
from fastpe.torch import functional  # noqa: E402

DTYPES = tuple(cases.DTYPES)


# ---- new tensors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_encode(device, dtype):
    for positions in (np.array(7), np.arange(20), np.array([[0.1, -1e9], [3.5, 2.0**31 - 1]])):
        expected = fastpe.encode(positions, 17, dtype=dtype)
        got = fastpe.encode(torch.tensor(positions, device=device), 17, dtype=torch_cases.DTYPES[dtype])
        assert got.device == device
        assert got.is_contiguous()
        cases.assert_same_bits(host(got), expected)
        for given in (positions, positions.tolist(), torch.tensor(positions)):  # numbers and tensors on the host
            got = fastpe.encode(given, 17, dtype=dtype, like=torch.zeros(1, device=device))
            assert got.device == device
            cases.assert_same_bits(host(got), expected)
        out = torch.zeros(17, *positions.shape, dtype=torch_cases.DTYPES[dtype], device=device).movedim(0, -1)
        version = out._version
        assert fastpe.encode(torch.tensor(positions, device=device), 17, out=out) is out
        assert out._version == version + 1
        cases.assert_same_bits(host(out), expected)
    assert fastpe.encode(torch.arange(3, device=device), 4).dtype == torch.float32


EMBEDDINGS = {
    "alone": {},
    "scale": {"scale": 3.0},
    "sinusoidal": {"encoding": "sinusoidal", "scale": 8.0},
    "offset": {"encoding": Sinusoidal(), "offset": 9},
    "positions": {"encoding": Sinusoidal(), "positions": np.arange(5)[::-1].copy()},
    "mask": {"encoding": Sinusoidal(), "mask": np.array([[1, 0, 1, 1, 0]] * 2) > 0},
    "padding": {"encoding": Sinusoidal(), "padding_idx": 3},
    "cu_seqlens": {"encoding": Sinusoidal(), "cu_seqlens": np.array([0, 2, 5])},
}
IDS = np.array([[0, 3, 5, 3, 1], [6, 6, 2, 0, 3]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embed(device, dtype, name):
    table, given = cases.random((7, 12), dtype), EMBEDDINGS[name]
    expected = fastpe.embed(IDS, table, **given)
    words, ids = tensor(table, device), torch.tensor(IDS, device=device)
    read = words._version, ids._version
    for form in (ids, ids.int(), ids.to(torch.uint8), *([IDS.tolist()] if device.type == "cpu" else [])):
        for _ in range(2):
            got = fastpe.embed(form, words, **arguments(given, device))
            assert type(got) is torch.Tensor
            assert got.device == device
            assert got.is_contiguous()
            cases.assert_same_bits(host(got), expected)
    out = torch.empty(2, 12, 5, dtype=torch_cases.DTYPES[dtype], device=device).mT
    version = out._version
    assert fastpe.embed(ids, words, **arguments(given, device), out=out) is out
    cases.assert_same_bits(host(out), expected)
    assert (out._version, words._version, ids._version) == (version + 1, read[0], read[1])


def test_embed_dtype(device):
    table = cases.random((7, 12), "float32")
    for dtype in ("float16", "float64"):
        for given in (dtype, torch_cases.DTYPES[dtype]):
            got = fastpe.embed(torch.tensor(IDS, device=device), tensor(table, device), dtype=given)
            cases.assert_same_bits(host(got), fastpe.embed(IDS, table, dtype=dtype))


def test_embed_quantised_tables(device):
    """int8 with scales, uint8 with zero points."""
    values = np.random.default_rng(0).integers(0, 256, (7, 12))
    scales, zeros = np.linspace(0.01, 0.1, 7).astype(np.float32), np.arange(7) + 120
    for kind, given in (("int8", scales), ("uint8", scales), ("uint8", (scales, zeros)), ("uint8", (scales, 5))):
        table = values.astype(np.uint8).view(kind)
        expected = fastpe.embed(IDS, table, "sinusoidal", row_scale=given)
        as_tensors = tuple(
            torch.tensor(one, device=device) if isinstance(one, np.ndarray) else one
            for one in (given if isinstance(given, tuple) else (given,))
        )
        row_scale = as_tensors if isinstance(given, tuple) else as_tensors[0]
        got = fastpe.embed(
            torch.tensor(IDS, device=device), torch.tensor(table, device=device), "sinusoidal", row_scale=row_scale
        )
        assert got.dtype == torch.float32
        cases.assert_same_bits(host(got), expected)


def test_embed_types_and_learned_positions(device):
    table, types, learned = (
        cases.random((rows, 12), dtype, rows) for rows, dtype in ((7, "float32"), (2, "bfloat16"), (9, "float16"))
    )
    type_ids = np.array([[0, 0, 1, 1, 1]] * 2)
    expected = fastpe.embed(IDS, table, Learned(learned), token_types=(type_ids, types), offset=2)
    got = fastpe.embed(
        torch.tensor(IDS, device=device),
        tensor(table, device),
        Learned(tensor(learned, device)),
        token_types=(torch.tensor(type_ids, device=device), tensor(types, device)),
        offset=2,
    )
    cases.assert_same_bits(host(got), expected)


@pytest.mark.parametrize("ids", [IDS[0, 0], IDS[0], IDS[:, :0], np.arange(6).reshape(1, 2, 3)])
def test_embed_shapes(device, ids):
    table = cases.random((7, 12), "float32")
    for encoding in (None, Sinusoidal()):
        got = fastpe.embed(torch.tensor(ids, device=device), tensor(table, device), encoding)
        cases.assert_same_bits(host(got), fastpe.embed(ids, table, encoding))


# ---- what autograd and other code see ----------------------------------------------------------------------------------------

WRITERS = {
    "add_encoding": lambda x: fastpe.add_encoding(x),
    "apply_rotary": lambda x: fastpe.apply_rotary(x),
    "rerotate": lambda x: fastpe.rerotate(x, 3),
    "out": lambda x: fastpe.add_encoding(torch.zeros_like(x), out=x),
    "rotary_out": lambda x: fastpe.apply_rotary(torch.zeros_like(x), out=x),
    "rerotate_out": lambda x: fastpe.rerotate(torch.zeros_like(x), 3, out=x),
    "encode": lambda x: fastpe.encode(torch.zeros(x.shape[:-1], device=x.device), x.shape[-1], out=x),
    "embed": lambda x: fastpe.embed(
        torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device), torch.ones(2, x.shape[-1], device=x.device), out=x
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_versions_and_saved_tensors(device, name):
    """The version goes up by one, also through a view; backward through a saved tensor that was overwritten raises."""
    for _ in range(3):  # also where a call is like an earlier one
        weight = torch.ones(2, 3, 8, device=device, requires_grad=True)
        x = torch.ones(2, 3, 8, device=device)
        y = (weight * x).sum()  # saves x
        version = x._version
        WRITERS[name](x[:])
        assert x._version == version + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@pytest.mark.parametrize("name", WRITERS)
def test_inference_mode(device, name):
    """Inference tensors are written in inference mode, and so are others, whose version still counts."""
    outside = torch.ones(2, 3, 8, device=device)
    with torch.inference_mode():
        x = torch.ones(2, 3, 8, device=device)
        WRITERS[name](x)
        WRITERS[name](outside)
    assert outside._version == 1
    assert torch.equal(x.clone(), outside)


class Named(torch.Tensor):
    """Only adds a method."""

    def doubled(self):
        return self * 2


@pytest.mark.parametrize("name", WRITERS)
def test_subclasses_and_parameters(device, name):
    expected = torch.ones(2, 3, 8, device=device)
    WRITERS[name](expected)
    named = torch.ones(2, 3, 8, device=device).as_subclass(Named)
    got = WRITERS[name](named)
    assert got is named
    assert type(got) is Named
    assert torch.equal(got.as_subclass(torch.Tensor), expected)
    parameter = torch.nn.Parameter(torch.ones(2, 3, 8, device=device))
    with torch.no_grad():
        assert WRITERS[name](parameter) is parameter
    assert torch.equal(parameter, expected)


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (0, 8), (2, 0, 0, 4)])
def test_empty(device, shape):
    x = torch.zeros(shape, device=device)
    assert fastpe.add_encoding(x) is x
    assert fastpe.apply_rotary(x) is x
    assert fastpe.rerotate(x, 3) is x
    assert functional.add_encoding(x).shape == shape
    assert fastpe.encode(torch.zeros(shape[:-1], device=device), 8).shape == (*shape[:-1], 8)
    table = torch.zeros(3, 8, device=device)
    assert fastpe.embed(torch.zeros(shape[:-1], dtype=torch.int64, device=device), table).shape == (*shape[:-1], 8)


def test_a_call_like_an_earlier_one_looks_at_the_tensor_anew():
    """A leaf that requires a gradient, a transform, and overlapping memory are refused also where the form of call is known."""
    for _ in range(3):
        fastpe.add_encoding(torch.zeros(2, 3, 8))
        fastpe.apply_rotary(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    with pytest.raises(RuntimeError, match="leaf"):
        fastpe.add_encoding(torch.zeros(2, 3, 8, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(fastpe.add_encoding)(torch.zeros(5, 2, 3, 8))
    with torch.inference_mode():
        inference = torch.zeros(2, 3, 8)
    with pytest.raises(RuntimeError, match="inference"):
        fastpe.add_encoding(inference)
    whole = torch.zeros(200)
    q, k = whole[:48].view(1, 2, 3, 8), whole[24:72].view(1, 2, 3, 8)
    with pytest.raises(ValueError, match="lie apart"):
        fastpe.apply_rotary(q, k)
    with pytest.raises(ValueError, match=r"2\^31"):
        fastpe.add_encoding(torch.zeros(2, 3, 8), offset=2**31 - 2)
    assert not whole.any()
