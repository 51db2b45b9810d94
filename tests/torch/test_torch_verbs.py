"""The verbs on tensors: the bits of NumPy's arrays over the same memory, in place, on the very object given."""

from __future__ import annotations

import time

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_cases  # noqa: E402
from torch_cases import arguments, host, tensor  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal  # noqa: E402
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


def outside(x, view):
    """The bytes of a tensor's storage with its elements blanked: what must not be written."""
    whole = x.detach().cpu() if x.is_cpu else torch.empty(0)
    if view.size == 0 or not x.is_cpu:
        return np.zeros(0, np.float32)
    copy = torch.empty_like(torch.tensor([], dtype=torch.uint8)).set_(whole.untyped_storage()).clone()
    copy.view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset()).zero_()
    return copy.numpy().astype(np.float32)


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
    longer = {"source": Rotary(), "target": Rotary(scaling=fastpe.scaling.YaRN(8.0, 64))}
    for given in (
        {"delta": -7},
        {"delta": np.array([3, 100])},
        {"delta": np.array([0, 1, 0, 1, 5, 5, 5]) * np.ones((2, 1)), "mask": np.arange(7) > 2},
        {**longer, "offset": 1000},
        {**longer, "delta": 4, "positions": np.arange(7) * 99},
    ):
        check(fastpe.rerotate, [x], device, given=given)
    out = torch.zeros(x.shape, dtype=torch_cases.DTYPES[dtype], device=device)
    assert fastpe.rerotate(tensor(x, device), 3, out=out) is out
    cases.assert_same_bits(host(out), fastpe.rerotate(x.copy(), 3))


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


# ---- what it costs -----------------------------------------------------------------------------------------------------------

OVERHEAD = 60e-6  # 5 us on an idle machine; ten times that shows a path that converts or compiles


def least(call, repeats=5, count=200):
    """The best mean of some repeats, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


@pytest.mark.parametrize("shape", [(1, 1024), (32, 1, 1024)])
def test_overhead_is_small(shape):
    array = np.zeros(shape, np.float32)
    x = torch.zeros(shape)
    assert least(lambda: fastpe.add_encoding(x, offset=9)) < least(lambda: fastpe.add_encoding(array, offset=9)) + OVERHEAD
