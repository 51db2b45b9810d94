"""The verbs on tensors: the bits of NumPy's arrays over the same memory, in place, on the very object given."""

from __future__ import annotations

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_cases  # noqa: E402
from torch_cases import arguments, host, outside, tensor  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary  # noqa: E402
from fastpe.torch import functional  # noqa: E402

DTYPES = tuple(cases.DTYPES)
FORMS = ("tensor", "list")
ROTARIES = {
    "half": Rotary(),
    "interleaved": Rotary(interleaved=True, base=5e5),
    "partial": Rotary(rotary_dim=8, rotary_offset=4),
    "attention_factor": Rotary(scaling=fastpe.scaling.YaRN(8.0, 64)),
    "xpos": Rotary(xpos_scale_base=512, interleaved=True),
}


def in_form(form, given, device):
    """Arrays among arguments as tensors, or as lists, which x on a GPU does not take."""
    if form == "tensor":
        return arguments(given, device)
    if device.type != "cpu":
        pytest.skip("lists go with x on the host")
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in given.items()}


def check(verb, views, device, *rest, given=None, **options):
    """Call a verb on arrays and on tensors; compare bits, identity, memory and versions."""
    given = {} if given is None else given
    here = [view.copy() for view in views]
    there = [tensor(view, device) for view in views]
    before = [(x.data_ptr(), x.stride(), x._version) for x in there]
    verb(*here, *rest, **given, **options)
    result = verb(*there, *rest, **in_form("tensor", given, device), **options)
    assert result is there[0] if len(views) == 1 else all(a is b for a, b in zip(result, there, strict=True))
    for x, expected, view, (address, strides, version) in zip(there, here, views, before, strict=True):
        cases.assert_same_bits(host(x), np.ascontiguousarray(expected))
        assert (x.data_ptr(), x.stride(), x._version) == (address, strides, version + 1)
        cases.assert_same_bits(outside(x, view), outside(tensor(view), view))


# ---- add_encoding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", torch_cases.VIEWS)
def test_add_views(device, dtype, view):
    for width in (16, 7):
        for offset in (-5, 70_000):  # twice: the second call is like an earlier one
            x = cases.VIEWS[view](cases.random((3, 10, width), dtype))
            check(fastpe.add_encoding, [x], device, offset=offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", cases.POSITION_MODES)
@pytest.mark.parametrize("form", FORMS)
def test_add_position_modes(device, dtype, mode, form):
    given = cases.POSITION_MODES[mode](3, 21)
    here = cases.random((3, 21, 16), dtype)
    there = tensor(here, device)
    fastpe.add_encoding(here, input_scale=4.5, **given)
    assert fastpe.add_encoding(there, input_scale=4.5, **in_form(form, given, device)) is there
    cases.assert_same_bits(host(there), here)


@pytest.mark.parametrize("name", cases.ENCODINGS)
def test_add_encodings(device, name):
    for _ in range(3):
        check(fastpe.add_encoding, [cases.random((2, 9, 12), "float32")], device, cases.encoding(name), offset=1_000_003)


def test_shares_memory_with_numpy():
    """The array sees what is written through the tensor."""
    for dtype in DTYPES:
        x = cases.random((2, 5, 8), dtype)
        expected = fastpe.add_encoding(x.copy(), offset=3)
        fastpe.add_encoding(torch_cases.shared(x), offset=3)
        cases.assert_same_bits(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_out(device, dtype):
    x = cases.random((2, 9, 16), dtype)
    for view in ("contiguous", "strided_columns", "batch_inside"):
        source, out = tensor(x, device), tensor(cases.VIEWS[view](np.zeros_like(x)), device)
        versions = source._version, out._version
        assert fastpe.add_encoding(source, offset=4, out=out) is out
        cases.assert_same_bits(host(out), fastpe.add_encoding(x.copy(), offset=4))
        cases.assert_same_bits(host(source), x)
        assert (source._version, out._version) == (versions[0], versions[1] + 1)
    x = tensor(x, device)
    assert fastpe.add_encoding(x, out=x) is x


def test_single_numbers_as_tensors(device):
    """Offsets and scales may be tensors of one element on the host, as PyTorch's own functions take them."""
    x = cases.random((1, 4, 8), "float32")
    there = tensor(x)
    fastpe.add_encoding(there, offset=torch.tensor(7), input_scale=torch.tensor(2.0))
    cases.assert_same_bits(host(there), fastpe.add_encoding(x, offset=7, input_scale=2.0))


@pytest.mark.parametrize(("dtype", "table_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float64")])
def test_add_learned(device, dtype, table_dtype):
    x, table = cases.random((2, 6, 12), dtype), cases.random((9, 12), table_dtype, 1)
    positions = np.array([[0, 8, 3, 3, 1, 2]] * 2)
    for given, rule in (
        ({"offset": 3}, "error"),
        ({"positions": positions}, "error"),
        ({"positions": positions * 2 - 3}, "clip"),
    ):
        here, there = x.copy(), tensor(x, device)
        learned = Learned(tensor(table, device), rule)
        version = learned.table._version
        fastpe.add_encoding(here, Learned(table, rule), **given)
        assert fastpe.add_encoding(there, learned, **arguments(given, device)) is there
        cases.assert_same_bits(host(there), here)
        assert learned.table._version == version


# ---- rotations ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_encodings(device, dtype, name):
    q, k = cases.random((2, 3, 9, 16), dtype), cases.random((2, 1, 9, 16), dtype, 1)
    for offset in (11, 12, 13):
        check(fastpe.apply_rotary, [q, k], device, ROTARIES[name], offset=offset)
    check(fastpe.apply_rotary, [q], device, None, ROTARIES[name], offset=5, inverse=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", cases.POSITION_MODES)
@pytest.mark.parametrize("form", FORMS)
def test_rotary_position_modes(device, dtype, mode, form):
    given = cases.POSITION_MODES[mode](3, 21)
    here = cases.random((3, 4, 21, 8), dtype), cases.random((3, 1, 21, 8), dtype, 1)
    there = [tensor(x, device) for x in here]
    fastpe.apply_rotary(*here, **given)
    fastpe.apply_rotary(*there, **in_form(form, given, device))
    for x, expected in zip(there, here, strict=True):
        cases.assert_same_bits(host(x), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", torch_cases.VIEWS)
def test_rotary_views(device, dtype, view):
    x = cases.VIEWS[view](cases.random((2, 3, 10, 16), dtype))
    for offset in (-5, 6):
        check(fastpe.apply_rotary, [x], device, offset=offset)


def test_slices_of_a_packed_tensor(device):
    """q and k lie between each other's rows, with heads inside; values stay."""
    packed = cases.random((2, 7, 6, 16), "float32")
    there = tensor(packed, device)
    for _ in range(3):
        fastpe.apply_rotary(packed[:, :, :4], packed[:, :, 4:5], seq_axis=-3, offset=3)
        q, k, _ = there.split((4, 1, 1), dim=2)
        fastpe.apply_rotary(q, k, seq_axis=-3, offset=3)
        cases.assert_same_bits(host(there), packed)


def test_rotary_out(device):
    q, k = cases.random((2, 3, 9, 16), "float16"), cases.random((2, 1, 9, 16), "float32", 1)
    there, outs = [tensor(x, device) for x in (q, k)], tuple(tensor(np.zeros_like(x), device) for x in (q, k))
    assert fastpe.apply_rotary(*there, out=outs) is outs
    alone = tensor(np.zeros_like(k), device)
    assert fastpe.apply_rotary(None, there[1], out=alone) is alone
    for got, expected in zip(
        (*outs, alone), (*fastpe.apply_rotary(q.copy(), k.copy()), fastpe.apply_rotary(k.copy())), strict=True
    ):
        cases.assert_same_bits(host(got), expected)
    for x, expected in zip(there, (q, k), strict=True):
        cases.assert_same_bits(host(x), expected)


@pytest.mark.parametrize("table_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_tables(device, dtype, table_dtype):
    cos, sin = cases.random((40, 4), table_dtype), cases.random((40, 4), table_dtype, 1)
    positions = np.random.default_rng(0).integers(0, 40, (2, 7))
    x = cases.random((2, 3, 7, 12), dtype)
    expected = fastpe.apply_rotary(x.copy(), None, Rotary.tabulated(cos, sin), positions=positions)
    for place in {torch.device("cpu"), device}:
        there = tensor(x, device)
        encoding = Rotary.tabulated(tensor(cos, place), tensor(sin, place))
        fastpe.apply_rotary(there, None, encoding, positions=torch.tensor(positions, device=device))
        cases.assert_same_bits(host(there), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rerotate(device, dtype):
    x = cases.random((2, 3, 7, 16), dtype)
    for given in cases.REROTATIONS:
        check(fastpe.rerotate, [x], device, given=given)
    out = torch.zeros(x.shape, dtype=torch_cases.DTYPES[dtype], device=device)
    assert fastpe.rerotate(tensor(x, device), 3, out=out) is out
    cases.assert_same_bits(host(out), fastpe.rerotate(x.copy(), 3))


# ---- functional forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_functional_forms_write_new_tensors(device, dtype):
    """The bits of the verbs; x is left alone; strides as PyTorch's own functions choose them."""
    x = cases.random((2, 3, 9, 16), dtype)
    for view in torch_cases.VIEWS:
        source = tensor(cases.VIEWS[view](x), device)
        version = source._version
        for name, given in (("add_encoding", {"input_scale": 2.0}), ("apply_rotary", {}), ("rerotate", {"delta": 5})):
            got = getattr(functional, name)(source, **given)
            assert got.stride() == torch.empty_like(source).stride()
            cases.assert_same_bits(host(got), getattr(fastpe, name)(x.copy(), **given))
        cases.assert_same_bits(host(source), x)
        assert source._version == version


@pytest.mark.parametrize("dtype", DTYPES)
def test_functional_packed_rotation(device, dtype):
    packed = cases.random((2, 7, 6, 16), dtype)
    expected = packed.copy()
    fastpe.apply_rotary(expected[:, :, :3], expected[:, :, 3:5], seq_axis=-3, offset=2)
    for inplace in (False, True):
        source = tensor(packed, device)
        version = source._version
        got = functional.apply_rotary_qkv(source, (3, 2), offset=2, inplace=inplace)
        assert (got is source) == inplace
        assert source._version == version + inplace
        cases.assert_same_bits(host(got), expected)
        if not inplace:
            cases.assert_same_bits(host(source), packed)
    heads_first = np.ascontiguousarray(np.moveaxis(packed, 1, 2))
    got = functional.apply_rotary_qkv(tensor(heads_first, device), (3, 2), offset=2, seq_axis=-2)
    cases.assert_same_bits(host(got), np.ascontiguousarray(np.moveaxis(expected, 1, 2)))


def test_large_new_tensors(device):
    """They lie in memory of another allocator; strides and values are the same."""
    x = torch.zeros(1, 4, 1_000, 512, dtype=torch.bfloat16, device=device).transpose(1, 2)
    got = functional.add_encoding(x)
    assert got.stride() == torch.empty_like(x).stride()
    assert torch.equal(got[0, :, 1], fastpe.encode(torch.zeros(1_000, device=device).long() + 1, 512, dtype=torch.bfloat16))
    assert torch.equal(got[:, 5], fastpe.add_encoding(x.clone())[:, 5])
