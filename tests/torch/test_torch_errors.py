"""Tensors that have no memory as kernels know it, or the wrong one: the house message, and nothing written."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal  # noqa: E402
from fastpe.torch import functional  # noqa: E402

# What PyTorch says of its own sparse and quantised tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant):UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
SHAPE = (2, 3, 8)


class Wrapping(torch.Tensor):
    """As DTensor: says it is a tensor, and holds another one."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, cls) else value

        result = function(*map(unwrap, args), **(kwargs or {}))
        return cls(result) if isinstance(result, torch.Tensor) else result


class Elsewhere(torch.Tensor):
    """On a device that fastpe does not know."""

    device = property(lambda self: torch.device("xpu", 0))
    is_cpu = property(lambda self: False)


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(SHAPE)


def complex_zeros():
    return torch.zeros(SHAPE, dtype=torch.complex64)


# Name -> a tensor, and what its error says.
UNUSABLE = {
    "sparse": (lambda: torch.zeros(SHAPE).to_sparse(), "a sparse_coo tensor. Pass {name}.to_dense()."),
    "sparse_csr": (lambda: torch.zeros(3, 8).to_sparse_csr(), "a sparse_csr tensor. Pass {name}.to_dense()."),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(SHAPE), 1.0, 0, torch.qint8),
        "a quantised tensor. Pass {name}.dequantize()",
    ),
    "meta": (lambda: torch.zeros(SHAPE, device="meta"), "a tensor on the meta device, which has no memory."),
    "fake": (fake, "a FakeTensor, which has no memory. Only torch.compile and torch.export trace with them."),
    "wrapping": (
        lambda: Wrapping(torch.zeros(SHAPE)),
        "Wrapping, which wraps other tensors. Pass a tensor inside it.",
    ),
    "elsewhere": (
        lambda: torch.zeros(SHAPE).as_subclass(Elsewhere),
        "a tensor on xpu:0. Copy it to one of those, e.g. {name}.cpu().",
    ),
    "negated": (lambda: complex_zeros().conj().imag, "a tensor that negates its memory"),
    "zero": (lambda: torch._efficientzerotensor(SHAPE), "a tensor of zeros that has no memory. Pass {name}.clone()."),
    "float8": (
        lambda: torch.zeros(SHAPE).to(torch.float8_e4m3fnuz),
        "float8_e4m3fnuz tensor. Convert it first, e.g. {name}.float().",
    ),
    "conjugate": (lambda: complex_zeros().conj(), "complex64"),
}
# Name -> function and argument that the error names, and the call.
TAKING = {
    "add_encoding": ("add_encoding", "x", lambda x: fastpe.add_encoding(x)),
    "add_encoding_out": ("add_encoding", "out", lambda x: fastpe.add_encoding(torch.zeros(x.shape), out=x)),
    "q": ("apply_rotary", "q", lambda x: fastpe.apply_rotary(x)),
    "k": ("apply_rotary", "k", lambda x: fastpe.apply_rotary(torch.zeros(x.shape), x)),
    "rotary_out": ("apply_rotary", "out", lambda x: fastpe.apply_rotary(torch.zeros(x.shape), out=x)),
    "rerotate": ("rerotate", "k", lambda x: fastpe.rerotate(x, 3)),
    "encode_out": ("encode", "out", lambda x: fastpe.encode(torch.zeros(x.shape[:-1]), 8, out=x)),
    "embed": ("embed", "table", lambda x: fastpe.embed(torch.tensor([0]), x if x.layout != torch.strided else x[0])),
    "functional_add": ("add_encoding", "x", lambda x: functional.add_encoding(x)),
    "functional_rotary": ("apply_rotary", "q", lambda x: functional.apply_rotary(x)),
    "functional_rerotate": ("rerotate", "k", lambda x: functional.rerotate(x, 3)),
    "module_add": ("add_encoding", "x", lambda x: fastpe.torch.SinusoidalEncoding()(x)),
    "module_rotary": ("apply_rotary", "q", lambda x: fastpe.torch.RotaryEmbedding(inplace=True)(x)),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("call", TAKING)
def test_unusable_tensors(call, kind):
    make, text = UNUSABLE[kind]
    function, name, run = TAKING[call]
    expected = re.escape(text.format(name=name))
    beside = call in ("add_encoding_out", "k", "rotary_out") and kind in ("meta", "elsewhere")  # a tensor on the host
    if beside:
        expected = f"all tensors must be on one device, got {name} on (meta|xpu:0) beside cpu"
    with pytest.raises(TypeError, match=expected) as caught:
        run(make())
    assert str(caught.value).startswith(f"{function}: {'all tensors' if beside else name} must be ")
    if kind != "conjugate" and not beside:
        assert str(caught.value).endswith("fastpe knows dense tensors on the CPU and on CUDA devices.")


@pytest.mark.parametrize(
    ("x", "kind", "text"),
    [
        (
            torch.zeros(SHAPE, dtype=torch.int64),
            TypeError,
            "must be a floating-point array (float16, bfloat16, float32, float64)",
        ),
        (torch.zeros(SHAPE, dtype=torch.bool), TypeError, "must be a floating-point array"),
        (torch.zeros(SHAPE, dtype=torch.complex64), TypeError, "must be a floating-point array"),
        (torch.zeros(8), ValueError, "must have at least 2 axes, (..., T, D), got shape (8,)."),
        (torch.zeros(()), ValueError, "must have at least 2 axes, (..., T, D), got shape ()."),
        (torch.zeros(3, 0), ValueError, "must have a last axis D of at least 1"),
        (torch.zeros(1, 3, 8).expand(SHAPE), ValueError, "must not hold one element twice, got a broadcast view"),
        (
            torch.zeros(32).as_strided(SHAPE, (8, 4, 1)),
            ValueError,
            "must not hold one element twice, got a view whose elements overlap",
        ),
    ],
)
@pytest.mark.parametrize("call", ["add_encoding", "q", "rerotate"])
def test_wrong_tensors(call, x, kind, text):
    function, name, run = TAKING[call]
    before, version = x.clone(), x._version
    with pytest.raises(kind, match=re.escape(f"{function}: {name} {text}")):
        run(x)
    assert torch.equal(x, before)
    assert x._version == version


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_encodings_refuse_sparse_tensors(layout):
    table = getattr(torch.ones(32, 4), layout)()
    for make in (
        fastpe.T5Bias,
        Learned,
        lambda one: Rotary.tabulated(one, one),
        lambda one: fastpe.Kerple(one[:, 0], [1.0] * 32),
    ):
        with pytest.raises(
            TypeError, match=r"must be a tensor whose memory can be used, got a sparse_.*Pass \w+\.to_dense\(\)"
        ):
            make(table)


def test_no_tensors():
    """The functional forms take tensors alone."""
    x = np.zeros(SHAPE, np.float32)
    for function, name, call in (
        ("add_encoding", "x", lambda: functional.add_encoding(x)),
        ("apply_rotary", "q", lambda: functional.apply_rotary(x)),
        ("apply_rotary", "k", lambda: functional.apply_rotary(torch.zeros(SHAPE), x)),
        ("apply_rotary_qkv", "qkv", lambda: functional.apply_rotary_qkv(x, 1)),
        ("rerotate", "k", lambda: functional.rerotate(x, 3)),
        ("embed", "table", lambda: functional.embed([0], x[0])),
    ):
        with pytest.raises(TypeError, match=rf"{function}: {name} must be a tensor, got numpy\.ndarray"):
            call()
    with pytest.raises(TypeError, match="apply_rotary: q or k must be a tensor, got None"):
        functional.apply_rotary(None)


X = {
    "add_encoding": lambda **given: fastpe.add_encoding(given.pop("x", torch.zeros(SHAPE)), **given),
    "apply_rotary": lambda **given: fastpe.apply_rotary(given.pop("x", torch.zeros(SHAPE)), **given),
    "rerotate": lambda **given: fastpe.rerotate(
        given.pop("x", torch.zeros(SHAPE)), source=Rotary(), target=Rotary(base=5e5), **given
    ),
}


@pytest.mark.parametrize("function", X)
@pytest.mark.parametrize("name", ["positions", "cu_seqlens", "mask", "offset", "out"])
def test_arguments_of_another_library_or_device(function, name):
    """A NumPy array beside a tensor, a tensor beside an array, a tensor elsewhere: nothing is converted or copied silently."""
    value = {
        "positions": np.arange(3),
        "cu_seqlens": np.array([0, 3]),
        "mask": np.ones(3, bool),
        "offset": np.array([1, 2]),
        "out": np.zeros(SHAPE, np.float32),
    }[name]
    x = torch.ones(SHAPE)
    text = (
        "out must be a tensor like the input, got numpy.ndarray"
        if name == "out"
        else f"must be tensors, got {name} of numpy. Pass"
    )
    with pytest.raises(TypeError, match=f"{function}: .*{text}"):
        X[function](x=x, **{name: value})
    with pytest.raises(TypeError, match=f"{function}: {name} must be .*got .*[tT]ensor"):
        X[function](x=x.numpy(), **{name: torch.from_numpy(value)})
    with pytest.raises(
        TypeError, match=rf"{function}: .*(one device, got {name} on meta beside cpu|a tensor on the meta device)"
    ):
        X[function](x=x, **{name: torch.from_numpy(value).to("meta")})
    assert (x == 1).all()
    assert x._version == 0


def test_pairs_of_two_kinds():
    q, k = torch.ones(SHAPE), torch.ones(SHAPE)
    for call, text in (
        (lambda: fastpe.apply_rotary(q, k.numpy()), "arrays beside a tensor must be tensors, got k of numpy"),
        (lambda: fastpe.apply_rotary(q.numpy(), k), "k must be "),
        (lambda: fastpe.apply_rotary(q, k.to("meta")), "all tensors must be on one device, got k on meta beside cpu"),
        (lambda: fastpe.apply_rotary(q, [1.0]), "k must be a NumPy or CuPy array or a PyTorch tensor, got builtins.list"),
        (lambda: fastpe.apply_rotary(q, k, out=torch.ones(SHAPE)), "out must be a pair"),
        (lambda: fastpe.apply_rotary(q, k, out=(torch.ones(SHAPE), k.numpy())), "out must be a tensor like the input"),
        (lambda: fastpe.rerotate(q, np.array([1, 2])), "arrays beside a tensor must be tensors, got delta of numpy"),
    ):
        with pytest.raises(TypeError, match=re.escape(text)):
            call()
    with pytest.raises(ValueError, match="q, k and out must lie apart"):
        fastpe.apply_rotary(q, q[:])
    whole = torch.ones(3, 3, 8)
    with pytest.raises(ValueError, match="out must be x or lie apart from it"):
        fastpe.add_encoding(whole[:2], out=whole[1:])
    assert (q == 1).all()
    assert (k == 1).all()


def test_tables_of_another_kind():
    x = torch.ones(SHAPE)
    array, tensor = np.ones((5, 8), np.float32), torch.ones(5, 8)
    for call, text in (
        (lambda: fastpe.add_encoding(x, Learned(tensor.to("meta"))), "a tensor on the meta device"),
        (
            lambda: fastpe.add_encoding(x, Learned(tensor.to_sparse().to_dense().to(torch.complex64))),
            "table must be a floating-point array",
        ),
        (
            lambda: fastpe.embed(torch.tensor([1]), array),
            "ids must be of the library of the other arrays, got a tensor beside them",
        ),
        (lambda: fastpe.embed(np.array([1]), tensor), "arrays beside a tensor must be tensors, got ids of numpy"),
        (
            lambda: fastpe.embed(torch.tensor([1]), tensor, token_types=(torch.tensor([0]), array)),
            "must be tensors, got token_types of numpy",
        ),
        (lambda: fastpe.embed(torch.tensor([1.0]), tensor), "ids must be integers, got float32"),
        (lambda: fastpe.embed(torch.tensor([True]), tensor), "ids must be integers, got bool"),
        (
            lambda: fastpe.embed(torch.tensor([1]), tensor, out=np.ones((1, 8), np.float32)),
            "out must be a tensor like the others",
        ),
        (lambda: fastpe.embed(torch.tensor([1]), tensor, dtype="int8"), "dtype must be one of"),
        (lambda: fastpe.embed(torch.tensor([1]), tensor, dtype=torch.int8), "dtype must be one of"),
        (
            lambda: fastpe.embed(torch.tensor([1]), tensor, dtype="float64", out=torch.ones(1, 8)),
            "out must have dtype float64, got float32",
        ),
        (lambda: fastpe.embed(torch.tensor([1]), tensor, token_types=3), "token_types must be a pair (ids, table)"),
        (lambda: functional.embed(torch.tensor([1]), tensor, token_types=(1, 2, 3)), "token_types must be a pair (ids, table)"),
        (
            lambda: fastpe.embed(torch.tensor([1]).to("meta"), tensor),
            "all tensors must be on one device, got ids on meta beside cpu",
        ),
        (
            lambda: fastpe.apply_rotary(x, None, Rotary.tabulated(tensor, array)),
            "cos and sin must be of one library, device and shape",
        ),
        (lambda: fastpe.apply_rotary(x, None, Sinusoidal()), "encoding must be a Rotary or None"),
        (lambda: fastpe.add_encoding(x, Rotary()), "encoding must be an encoding such as Sinusoidal()"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(text)):
            call()
    for call, text in (
        (lambda: fastpe.embed(torch.tensor([[1, 7]]), tensor), "ids must lie in [0, 5), got 7 at index (0, 1)"),
        (lambda: fastpe.add_encoding(x, Learned(tensor), offset=3), "positions must lie in the table's [0, 5), got 5 at row 2"),
    ):
        with pytest.raises(IndexError, match=re.escape(text)):
            call()
    with pytest.raises(TypeError, match=r"^Rotary\.tabulated: cos must be a tensor whose memory can be used"):
        fastpe.apply_rotary(x, None, Rotary.tabulated(*[tensor[:, :4].to_sparse()] * 2))
    assert (x == 1).all()


def test_encode_arguments():
    x = torch.ones(3, 8)
    for call, text in (
        (lambda: fastpe.encode("one", 8, like=x), "positions must be a number, a sequence of numbers or an array"),
        (lambda: fastpe.encode([True], 8, like=x), "positions must be integers or real numbers, got bool"),
        (lambda: fastpe.encode(torch.arange(3), 8, like=np.ones(3)), "positions must be of the library of the other arrays"),
        (lambda: fastpe.encode(torch.arange(3), 8, out=np.ones((3, 8))), "out must be a tensor like the others, got float64"),
        (lambda: fastpe.encode(torch.arange(3), 8, dtype=torch.float64, out=x), "out must have dtype float64, got float32"),
        (
            lambda: fastpe.encode(torch.arange(3), 8, dtype=torch.int32),
            "dtype must be one of float16, bfloat16, float32, float64",
        ),
        (lambda: fastpe.encode(torch.arange(3).bfloat16(), 8), "positions"),
        (lambda: fastpe.encode(torch.arange(3), 4.5), "dim must be an integer"),
        (lambda: fastpe.encode(torch.arange(3), 8, "rope"), "encoding must be an encoding such as"),
        (lambda: fastpe.encode(torch.tensor(float("nan")), 8), "positions must be finite"),
        (lambda: fastpe.encode(torch.arange(4), 8, out=x), "out must have shape (4, 8), got (3, 8)"),
        (lambda: fastpe.encode(torch.arange(3).to("meta"), 8, out=x), "positions must be a tensor whose memory can be used"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(text)) as caught:
            call()
        assert str(caught.value).startswith("encode: ")
    assert (x == 1).all()


def test_packed_rotations():
    for given, text in (
        ({"qkv": torch.zeros(3, 8), "heads": 1}, "qkv must have at least 3 axes, (..., T, H, D), got shape (3, 8)"),
        (
            {"qkv": torch.zeros(2, 3, 4, 8), "heads": 3},
            "heads must be those of q and of k, in the axis of heads, got 3 + 3 of 4",
        ),
        ({"qkv": torch.zeros(2, 3, 4, 8), "heads": (0, 1)}, "heads must be those of q and of k"),
        ({"qkv": torch.zeros(2, 3, 4, 8), "heads": (2, -1)}, "heads must be those of q and of k"),
        (
            {"qkv": torch.zeros(2, 3, 4, 8), "heads": (1, 1), "seq_axis": -1},
            "seq_axis must be an axis of x other than the last",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            functional.apply_rotary_qkv(**given)


def test_parameters_that_are_not_there_yet():
    """Their own error is left as it is."""
    with pytest.raises(ValueError, match="uninitialized parameter"):
        fastpe.add_encoding(torch.nn.parameter.UninitializedParameter())
