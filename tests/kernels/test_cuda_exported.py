"""Arrays of other libraries on a GPU, which export their memory. No GPU needed."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe


class Exported:
    """An array of another library on the device."""

    def __init__(self, array, read_only=False):
        self.array, self.read_only = array, read_only

    @property
    def __cuda_array_interface__(self):
        host = self.array._host
        place = {"shape": host.shape, "strides": host.strides, "typestr": host.dtype.str}
        return {**place, "data": (host.ctypes.data, self.read_only), "version": 3}


class ByDLPack:
    """An array of another library on the device, which exports DLPack 1.0 and nothing else."""

    def __init__(self, array, read_only=False):
        self.array, self.read_only, self.streams = array, read_only, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.streams.append(stream)
        host = self.array._host.view()
        host.flags.writeable = not self.read_only
        return host.__dlpack__(max_version=max_version, copy=copy)


class ByOldDLPack(ByDLPack):
    def __dlpack__(self, *, stream=None):
        return self.array._host.__dlpack__()


@pytest.mark.parametrize("kind", [Exported, ByDLPack])
def test_arrays_that_other_libraries_have_on_the_device(device, kind):
    """They are written themselves, beside CuPy's; one that is read-only is refused; the same for positions and tables."""
    x, table = cases.random((2, 5, 16), "float32"), cases.random((9, 16), "float32", 1)
    for view in ("contiguous", "strided_columns", "rows_reversed"):
        there = kind(device.array(cases.VIEWS[view](x)))
        assert fastpe.add_encoding(there, positions=kind(device.array(np.arange(5) * 3))) is there
        wanted = fastpe.add_encoding(x.copy(), positions=np.arange(5) * 3)
        cases.assert_same_bits(device.host(there.array), wanted)
    mask, offset, out = (kind(device.array(one)) for one in (np.arange(10).reshape(2, 5) % 3 > 0, np.array([4, 9]), x * 0))
    assert fastpe.add_encoding(device.array(x), offset=offset, mask=mask, out=out) is out
    wanted = fastpe.add_encoding(x.copy(), offset=[4, 9], mask=np.arange(10).reshape(2, 5) % 3 > 0)
    cases.assert_same_bits(device.host(out.array), wanted)
    q, k = kind(device.array(x)), device.array(x)
    assert fastpe.apply_rotary(q, k, offset=4)[0] is q
    for one in (q.array, k):
        cases.assert_same_bits(device.host(one), fastpe.apply_rotary(x.copy(), offset=4))
    ids = np.array([[3, 0, 8]])
    found = fastpe.embed(kind(device.array(ids)), kind(device.array(table), read_only=True))
    cases.assert_same_bits(device.host(found), table[ids])
    with pytest.raises(ValueError, match="read-only"):
        fastpe.add_encoding(kind(device.array(x), read_only=True))


def test_dlpack_on_the_device_must_say_that_it_may_be_written(device):
    """Its producer is told the stream; before version 1 nothing is said, so it is only read; an error of the producer is passed on."""
    x = cases.random((2, 5, 16), "float32")
    old = ByOldDLPack(device.array(x))
    with pytest.raises(ValueError, match=r"x must be writable, got a read-only array .* out="):
        fastpe.add_encoding(old)
    out = ByDLPack(device.array(x * 0))
    assert fastpe.add_encoding(old, out=out) is out
    cases.assert_same_bits(device.host(out.array), fastpe.add_encoding(x.copy()))
    cases.assert_same_bits(device.host(old.array), x)
    assert out.streams == [1] * len(out.streams) != []
    with pytest.raises(
        TypeError, match="out must be an array of numpy on the host, as the input is, got one of cupy on device 0"
    ):
        fastpe.add_encoding(x.copy(), out=out)

    class Gone(ByDLPack):
        def __dlpack__(self, **asked):
            raise BufferError("it is gone")

    with pytest.raises(
        TypeError, match=r"add_encoding: x must export its memory with a type of CuPy, got .*Gone \(it is gone\)"
    ):
        fastpe.add_encoding(Gone(None))


def test_one_class_may_have_arrays_on_the_host_and_on_the_device(device):
    """As those of several libraries do; so no device is remembered of a class."""
    x = cases.random((2, 5, 16), "float32")

    class Either(ByDLPack):
        def __dlpack_device__(self):
            return (1 if isinstance(self.array, np.ndarray) else 2), 0

        def __dlpack__(self, **asked):
            host = self.array if isinstance(self.array, np.ndarray) else self.array._host
            return host.__dlpack__(max_version=asked.get("max_version"))

    for _ in range(2):
        here, there = Either(x.copy()), Either(device.array(x))
        assert fastpe.add_encoding(here) is here
        assert fastpe.add_encoding(there) is there
        cases.assert_same_bits(device.host(there.array), here.array)


def test_no_array_of_jax_is_taken_for_one_of_the_device(device):
    x = cases.random((2, 5, 16), "float32")
    with pytest.raises(TypeError, match=r"must be a NumPy or CuPy array or a PyTorch tensor, got jaxlib\.xla\.Array"):
        fastpe.add_encoding(type("Array", (Exported,), {"__module__": "jaxlib.xla"})(device.array(x)))


def test_arrays_on_a_device_need_cupy(monkeypatch):
    import sys

    from fastpe._arrays import dispatch

    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "fastpe._arrays.cupy", raising=False)
    monkeypatch.setattr(dispatch, "_imported", {name for name in dispatch._imported if "cupy" not in name})
    monkeypatch.setattr(dispatch, "_libraries", {})
    with pytest.raises(ImportError, match=r"arrays on a GPU need CuPy: pip install 'fastpe\[cuda13\]'"):
        fastpe.add_encoding(Exported(None))
