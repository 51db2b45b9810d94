"""What is no array, or the wrong one: the right class, the house message, nothing written."""

from __future__ import annotations

import re
import types

import cases
import numpy as np
import pytest

import fastpe

WRONG_X = [
    (
        np.zeros((2, 3, 4), int),
        TypeError,
        "x must be a floating-point array (float16, bfloat16, float32, float64), got int64 of shape",
    ),
    (np.zeros((2, 3), bool), TypeError, "got bool of shape (2, 3). Convert it first, e.g. to float32."),
    (np.zeros((2, 3), complex), TypeError, "got complex128 of shape (2, 3)."),
    (np.zeros((2, 3), object), TypeError, "got object of shape (2, 3)."),
    (np.zeros((2, 3), np.longdouble), TypeError, "x must be a floating-point array"),
    (np.zeros((2, 3), ">f4"), TypeError, "x must be a floating-point array"),
    (np.zeros((2, 3), "M8[s]"), TypeError, "x must be a floating-point array"),
    (np.float32(1.0), TypeError, "x must be a NumPy or CuPy array or a PyTorch tensor, got numpy.float32."),
    (np.zeros(()), ValueError, "x must have at least 2 axes, (..., T, D), got shape ()."),
    (np.zeros(4), ValueError, "x must have at least 2 axes, (..., T, D), got shape (4,). A single row is x[None, :]."),
    (np.zeros((4, 0)), ValueError, "x must have a last axis D of at least 1, got shape (4, 0)."),
    (
        [[1.0, 2.0]],
        TypeError,
        "x must be a NumPy or CuPy array or a PyTorch tensor, got builtins.list. "
        "Convert it first, e.g. x = numpy.asarray(x, dtype='float32').",
    ),
    (np.ma.zeros((2, 3)), TypeError, "MaskedArray. Pass x.data, and mask= for whole rows."),
    (None, TypeError, "x must be a NumPy or CuPy array or a PyTorch tensor, got builtins.NoneType."),
    ("text", TypeError, "x must be a NumPy or CuPy array or a PyTorch tensor, got builtins.str."),
]


@pytest.mark.parametrize(("x", "kind", "text"), WRONG_X)
def test_wrong_x(x, kind, text):
    with pytest.raises(kind, match=re.escape(text)) as caught:
        fastpe.add_encoding(x)
    assert str(caught.value).startswith("add_encoding: ")


def foreign(module, name):
    """An object of a type that claims to be from another library."""
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("x", "way_round"),
    [
        (foreign("tensorflow.python.framework.ops", "EagerTensor"), "TensorFlow tensors cannot be written: add fastpe.encode"),
        (foreign("zarr.core.array", "Array"), "encode slices, z[i:j] = fastpe.add_encoding(z[i:j], offset=i)"),
        (foreign("h5py._hl.dataset", "Dataset"), "encode slices, z[i:j] = fastpe.add_encoding(z[i:j], offset=i)"),
        (foreign("xarray.core.dataarray", "DataArray"), "Pass x.data, the array inside"),
        (foreign("xarray.core.dataset", "Dataset"), "Pass the data of a variable"),
        (foreign("pandas.core.frame", "DataFrame"), "pass x.to_numpy('float32', copy=True)"),
    ],
)
def test_other_libraries(x, way_round):
    with pytest.raises(TypeError, match=re.escape(way_round)):
        fastpe.add_encoding(x)


@pytest.mark.parametrize(
    ("encoding", "kind", "text"),
    [
        ("rope", TypeError, "encoding must be an encoding such as Sinusoidal() or one of 'sinusoidal', got 'rope'."),
        (fastpe.Sinusoidal, TypeError, "encoding must be an encoding such as Sinusoidal()"),
        (3, TypeError, "got int 3."),
    ],
)
def test_unknown_encoding(encoding, kind, text):
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(kind, match=re.escape(text)):
        fastpe.add_encoding(x, encoding)
    with pytest.raises(kind, match=re.escape(text)):
        fastpe.encode(1, 4, encoding)
    assert not x.any()


@pytest.mark.parametrize(
    ("arguments", "given", "kind", "text"),
    [
        ((1, 0), {}, ValueError, "encode: dim must be at least 1, got 0."),
        ((1, 4.0), {}, TypeError, "encode: dim must be an integer, got float 4.0."),
        (("one", 4), {}, TypeError, "encode: positions must be a number, a sequence of numbers or an array, got builtins.str."),
        ((None, 4), {}, TypeError, "got builtins.NoneType."),
        (([True, False], 4), {}, TypeError, "positions must be integers or real numbers, got bool of shape (2,)."),
        ((np.nan, 4), {}, ValueError, "encode: positions must be finite and lie in [-2^31, 2^31), got nan at index ()."),
        ((2**31, 4), {}, ValueError, "got 2147483648 at index ()."),
        ((1j, 4), {}, TypeError, "encode: positions"),
        ((10**30, 4), {}, TypeError, "encode: positions must be integers or real numbers, got object"),
        (
            (1, 4),
            {"dtype": "int32"},
            TypeError,
            "encode: dtype must be one of float16, bfloat16, float32, float64, got str 'int32'.",
        ),
        ((1, 4), {"dtype": 3}, TypeError, "encode: dtype must be one of"),
        ((1, 4), {"out": np.zeros(5, np.float32)}, ValueError, "encode: out must have shape (4,), got (5,)."),
        ((1, 4), {"out": np.zeros(4), "dtype": "float32"}, TypeError, "encode: out must have dtype float32, got float64."),
        (
            (1, 4),
            {"like": [1.0]},
            TypeError,
            "encode: like must be a NumPy or CuPy array or a PyTorch tensor, got builtins.list.",
        ),
        ((1, 4), {"seq_len": -1}, ValueError, "encode: seq_len must be at least 1, got -1."),
    ],
)
def test_encode_arguments(arguments, given, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        fastpe.encode(*arguments, **given)


def test_encode_into_axes_that_are_no_one_axis():
    """Several kernel calls, each of which begins elsewhere in the result and reads no x."""
    positions = np.random.default_rng(0).integers(-(2**31), 2**31, (2, 3, 4, 5))
    buffer = np.zeros((4, 6, 8, 10, 24), np.float32)
    out = buffer[::2, ::2, ::2, ::2, :16]
    cases.assert_same_bits(
        fastpe.encode(positions, 16, out=out).copy(), fastpe.encode(positions.ravel(), 16).reshape(out.shape)
    )
    assert np.count_nonzero(buffer) <= out.size


def test_dtypes_are_those_of_this_machine():
    """However they are given: what is written has no other order of bytes."""
    swapped = np.dtype("float32").newbyteorder()
    for dtype in (swapped, swapped.str):
        with pytest.raises(TypeError, match="dtype must be one of float16, bfloat16, float32, float64"):
            fastpe.encode([1, 2], 4, dtype=dtype)
    for given in (np.float64, np.dtype("float64"), "float64", "f8", float):
        assert fastpe.encode([1, 2], 4, dtype=given).dtype == np.float64


def test_encode_out_overlapping_positions():
    whole = np.zeros((3, 5))
    with pytest.raises(ValueError, match="out must lie apart from positions"):
        fastpe.encode(whole[:, 0], 4, out=whole[:, :4])
    fastpe.encode(whole[:, 0], 4, out=whole[:, 1:])


def test_mixed_libraries(gpu):
    here, there = np.zeros((2, 3, 4), np.float32), gpu.array(np.zeros((2, 3, 4), np.float32))
    for x, given in (
        (here, {"positions": gpu.array(np.arange(3))}),
        (there, {"positions": np.arange(3)}),
        (here, {"out": gpu.array(np.zeros((2, 3, 4), np.float32))}),
        (there, {"out": np.zeros((2, 3, 4), np.float32)}),
        (here, {"mask": gpu.array(np.ones(3, bool))}),
        (there, {"offset": np.zeros(2, int)}),
        (there, {"cu_seqlens": np.array([0, 3])}),
    ):
        with pytest.raises(TypeError, match="silently"):
            fastpe.add_encoding(x, **given)
    assert not here.any()
    assert not gpu.host(there).any()


def test_encode_like(gpu):
    """`like` sets library and device only, and host positions are copied there."""
    example = gpu.array(np.zeros(3, np.float64))
    got = fastpe.encode([1, 2], 4, like=example)
    assert type(got) is type(example)
    cases.assert_same_bits(gpu.host(got), fastpe.encode([1, 2], 4))
    with pytest.raises(TypeError, match="positions on a GPU must be on the device of like"):
        fastpe.encode(gpu.array(np.arange(2)), 4, like=np.zeros(1))


def test_encode_out_on_a_gpu(gpu):
    out = gpu.array(np.zeros((2, 4), np.float16))
    assert fastpe.encode([1, 2], 4, out=out) is out
    cases.assert_same_bits(gpu.host(out), fastpe.encode([1, 2], 4, dtype="float16"))


def test_bfloat16_without_ml_dtypes(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        fastpe.encode(1, 4, dtype="bfloat16")


# ---- the GPU that is not there -----------------------------------------------------------------------------------------------


def cupy_stand_in(**changes):
    """A CuPy that imports, on a machine described by the changes."""
    settings = {"version": "14.2.0", "devices": 1, "nvrtc": 13, "driver": 13000, "is_hip": False} | changes

    class DriverError(RuntimeError):
        pass

    def devices():
        if settings["devices"] is None:
            raise DriverError("cudaErrorInsufficientDriver")
        return settings["devices"]

    def nvrtc():
        if settings["nvrtc"] is None:
            raise RuntimeError("not found")
        return settings["nvrtc"], 0

    runtime = types.SimpleNamespace(
        is_hip=settings["is_hip"],
        CUDARuntimeError=DriverError,
        getDeviceCount=devices,
        driverGetVersion=lambda: settings["driver"],
        runtimeGetVersion=lambda: 13000,
    )
    cupy = types.ModuleType("cupy")
    cupy.__version__ = settings["version"]
    cupy.cuda = types.ModuleType("cupy.cuda")
    cupy.cuda.runtime = runtime
    cupy.cuda.nvrtc = types.SimpleNamespace(getVersion=nvrtc)
    return cupy


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (None, "CuPy is not installed: pip install 'fastpe[cuda13]' (CUDA 13 driver) or 'fastpe[cuda12]'"),
        ({"version": "13.6.0"}, "CuPy 13.6.0 is too old, 14.2 is needed: pip install -U"),
        ({"is_hip": True}, "this CuPy is built for ROCm"),
        ({"devices": None}, "no CUDA device can be used (cudaErrorInsufficientDriver): install or update the NVIDIA driver"),
        ({"devices": 0}, "no CUDA device was found"),
        ({"nvrtc": None}, "NVRTC, the compiler, was not found (RuntimeError): pip install nvidia-cuda-nvrtc"),
        ({"driver": 12080}, "NVRTC 13 is newer than the driver's CUDA 12: pip install 'fastpe[cuda12]', or update the driver"),
    ],
)
def test_what_is_missing(monkeypatch, changes, text):
    import sys

    from fastpe._backends import cuda

    stand_in = None if changes is None else cupy_stand_in(**changes)
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    monkeypatch.setitem(sys.modules, "cupy.cuda", getattr(stand_in, "cuda", None))
    cuda.available._problem.cache_clear()
    assert text in cuda.problem()
    assert fastpe.array_module() is np
    with pytest.raises(ImportError, match=re.escape(text)):
        fastpe.warmup(device=0)
    cuda.available._problem.cache_clear()


def test_warmup_arguments():
    fastpe.warmup("float32")
    with pytest.raises(TypeError, match="warmup: dtype must be one of"):
        fastpe.warmup(["int8"])
    fastpe.warmup(np.float32)
    for wrong in (None, [None], 5, ">f4"):
        with pytest.raises(TypeError, match="warmup: dtype must be one of"):
            fastpe.warmup(wrong)
    with pytest.raises(TypeError, match="warmup: device must be an integer"):
        fastpe.warmup(device="gpu")
