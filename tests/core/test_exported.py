"""Objects that export their memory are encoded in place and returned themselves, with NumPy's bits; what may not be written is not."""

from __future__ import annotations

import array
import mmap
import sys

import cases
import numpy as np
import pytest
from exporting import (
    KINDS,
    ArrayInterface,
    BFloat16DLPack,
    CopyingDLPack,
    DLPack,
    Guarded,
    OldBFloat16DLPack,
    OldDLPack,
    numbers,
)
from verb_cases import CASES

import fastpe


def _over(kind, value):
    """As an object, where its kind knows the type."""
    return kind.over(value) if isinstance(value, np.ndarray) and value.dtype.name in kind.dtypes else value


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", KINDS)
def test_every_verb_writes_and_returns_the_object(name, dtype):
    kind = KINDS[name]
    if dtype not in kind.dtypes:
        pytest.skip(f"{name} has no {dtype}")
    chosen = [case for case in CASES.values() if {one.dtype for one in case.values() if one is not None} & {np.dtype(dtype)}]
    assert chosen
    for case in chosen:
        held = [None if values is None else Guarded.copy(values) for values in case.values()]
        given = [None if one is None else _over(kind, one.array) for one in held]
        results = case.call(given, case.converted(lambda _, value: _over(kind, value), np.array))
        assert all(one is None or one.is_intact() for one in held), case.name
        if case.in_place:
            assert [id(one) for one in results] == [id(one) for one in given if one is not None][: len(results)], case.name
            results = tuple(one.array for one in held if one is not None)[: len(results)]
        else:
            for one, values in zip(held, case.values(), strict=True):
                assert one is None or (one.array == values).all(), case.name
        for found, right in zip(results, case.expected(), strict=True):
            cases.assert_same_bits(found, right)


@pytest.mark.parametrize("name", KINDS)
def test_out_may_be_one_and_x_another(name):
    kind = KINDS[name]
    dtype = "float32" if "float32" in kind.dtypes else "bfloat16"
    x = cases.random((2, 7, 24), dtype)
    wanted, source, target = fastpe.add_encoding(x.copy(), offset=3), Guarded.copy(x), Guarded.copy(x * 0)
    out = kind.over(target.array)
    assert fastpe.add_encoding(kind.over(source.array), offset=3, out=out) is out
    cases.assert_same_bits(target.array, wanted)
    assert (source.array == x).all()
    assert target.is_intact()
    out = kind.over(target.array)
    assert fastpe.add_encoding(x, offset=3, out=out) is out
    out = kind.over(Guarded.copy(np.zeros((7, 24), x.dtype)).array)
    assert fastpe.encode(np.arange(7), 24, out=out) is out
    assert isinstance(fastpe.encode(np.arange(7), 24, like=out), np.ndarray)
    with pytest.raises(ValueError, match="out must be x or lie apart from it"):
        fastpe.add_encoding(
            target.array[:, :6], out=kind.over(target.array[:, 1:]) if name == "array_interface" else target.array[:, 1:]
        )


def test_numbers_of_the_standard_library_say_where_rows_stand():
    x, positions = cases.random((2, 7, 24), "float32"), np.arange(7) ** 2
    wanted = fastpe.add_encoding(x.copy(), positions=positions)
    given = numbers(positions)
    cases.assert_same_bits(fastpe.add_encoding(x.copy(), positions=given), wanted)
    given.append(49)  # its memory is not held any more
    cases.assert_same_bits(
        fastpe.add_encoding(x.copy(), offset=array.array("q", [4, 9])), fastpe.add_encoding(x.copy(), offset=[4, 9])
    )
    cases.assert_same_bits(fastpe.embed(array.array("i", [1, 0]), x[0]), x[0][[1, 0]])
    cases.assert_same_bits(fastpe.encode(array.array("q", [1, 5]), 8), fastpe.encode([1, 5], 8))
    scores = cases.random((2, 4, 3, 5), "float32")
    cases.assert_same_bits(
        fastpe.add_bias(scores.copy(), fastpe.ALiBi(4), q_positions=array.array("q", [4, 7, 1])),
        fastpe.add_bias(scores.copy(), fastpe.ALiBi(4), q_positions=[4, 7, 1]),
    )


def test_tables_of_encodings_may_be_objects():
    x, table = cases.random((2, 7, 24), "float32"), cases.random((9, 24), "float32", 1)
    wanted = fastpe.add_encoding(x.copy(), fastpe.Learned(table), offset=1)
    for kind in (memoryview, ArrayInterface, DLPack):
        cases.assert_same_bits(fastpe.add_encoding(x.copy(), fastpe.Learned(kind(table)), offset=1), wanted)
    assert fastpe.Kerple(array.array("d", [1.0, 2.0]), (1.0, 1.0)) == fastpe.Kerple((1.0, 2.0), (1.0, 1.0))
    weights = cases.random((32, 8), "float32", 2)
    cases.assert_same_bits(
        fastpe.convert_layout(memoryview(weights), "half", "interleaved", head_dim=16),
        fastpe.convert_layout(weights, "half", "interleaved", head_dim=16),
    )
    packed = fastpe.positions.packed(array.array("q", [0, 3, 7]))
    cases.assert_same_bits(packed, fastpe.positions.packed([0, 3, 7]))


def _read_only(values):
    shown = values.view()
    shown.flags.writeable = False
    return shown


@pytest.mark.parametrize(
    "export",
    [
        lambda x: memoryview(x).toreadonly(),
        lambda x: ArrayInterface(_read_only(x)),
        lambda x: DLPack(_read_only(x)),
        OldDLPack,
        OldBFloat16DLPack,
        CopyingDLPack,
        lambda x: type("array", (ArrayInterface,), {"__module__": "mlx.core"})(x),
        lambda x: memoryview(x.tobytes()).cast("f", x.shape),
    ],
    ids=["memoryview", "array_interface", "dlpack", "old_dlpack", "old_bfloat16", "copying_dlpack", "mlx", "bytes"],
)
def test_what_may_not_be_written_is_only_read(export):
    """Also where the exporter cannot say whether it may, or shows a copy."""
    values = cases.random((2, 4, 8), "bfloat16" if export is OldBFloat16DLPack else "float32")
    held = Guarded.copy(values)
    given = export(held.array)
    for verb, more in (("add_encoding", ()), ("apply_rotary", ()), ("rerotate", (3,)), ("add_bias", (fastpe.ALiBi(2),))):
        with pytest.raises(ValueError, match=r"(must be writable, got a read-only array|out must be).*out="):
            getattr(fastpe, verb)(given, *more)
    with pytest.raises(ValueError, match="out must be writable"):
        fastpe.add_encoding(values.copy(), out=given)
    out = np.empty_like(values)
    cases.assert_same_bits(fastpe.add_encoding(given, out=out), fastpe.add_encoding(values.copy()))
    assert (held.array == values).all()
    assert held.is_intact()


def test_pyarrow_knows_whether_its_memory_may_be_written():
    pyarrow = pytest.importorskip("pyarrow")
    values = cases.random((4, 8), "float32")
    shown = pyarrow.Tensor.from_numpy(_read_only(values.copy()))
    with pytest.raises(ValueError, match="x must be writable"):
        fastpe.add_encoding(shown)
    numbers_of_it = pyarrow.array([3, 1, 4, 1])  # immutable, by a DLPack that does not say so
    cases.assert_same_bits(
        fastpe.add_encoding(values.copy(), positions=numbers_of_it), fastpe.add_encoding(values.copy(), positions=[3, 1, 4, 1])
    )
    with pytest.raises(TypeError, match="add_encoding: positions must export its memory"):
        fastpe.add_encoding(values, positions=pyarrow.array([3, None, 4, 1]))


def test_the_array_inside_of_xarrays_is_encoded():
    xarray = pytest.importorskip("xarray")
    values = cases.random((2, 4, 8), "float32")
    table = xarray.DataArray(values.copy(), dims=("batch", "time", "channel"))
    assert fastpe.add_encoding(table.data, offset=3) is table.data
    cases.assert_same_bits(table.to_numpy(), fastpe.add_encoding(values.copy(), offset=3))
    with pytest.raises(TypeError, match=r"add_encoding: x must be .* got xarray.*Pass x\.data, the array inside"):
        fastpe.add_encoding(table)


def test_buffers_of_bytes_must_say_what_they_are():
    for raw in (b"12345678", bytearray(8), mmap.mmap(-1, 8)):
        with pytest.raises(TypeError, match=r"Say what its bytes are, e\.g\. numpy\.frombuffer\(x, 'float32'\)"):
            fastpe.add_encoding(raw)
        with pytest.raises(TypeError, match=r"numpy\.frombuffer\(ids, "):
            fastpe.embed(raw, np.ones((9, 4), np.float32))


class Elsewhere(DLPack):
    def __dlpack_device__(self):
        return 8, 0  # Metal


class Broken(DLPack):
    def __dlpack__(self, **asked):
        raise BufferError("it is gone")


def test_objects_without_memory_here_are_refused():
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(TypeError, match=r"x must be a NumPy or CuPy array or a PyTorch tensor, got .*test_exported.Elsewhere"):
        fastpe.add_encoding(Elsewhere(x))
    with pytest.raises(TypeError, match=r"add_encoding: x must export its memory .*got .*test_exported\.Broken \(it is gone\)"):
        fastpe.add_encoding(Broken(x))
    with pytest.raises(TypeError, match=r"x must be a floating-point array .* got a buffer of 'l' of shape"):
        fastpe.add_encoding(memoryview(np.zeros((2, 4), np.int64)))
    gone = memoryview(x)
    gone.release()
    with pytest.raises(TypeError, match=r"add_encoding: x must export its memory .*released"):
        fastpe.add_encoding(gone)
    with pytest.raises(TypeError, match="MaskedArray"):
        fastpe.add_encoding(np.ma.masked_array(x))


BROKEN = {
    "add_encoding: out": lambda x, it: fastpe.add_encoding(x, out=it),
    "add_encoding: offset": lambda x, it: fastpe.add_encoding(x, offset=it),
    "add_encoding: mask": lambda x, it: fastpe.add_encoding(x, mask=it),
    "add_encoding: cu_seqlens": lambda x, it: fastpe.add_encoding(x[0], cu_seqlens=it),
    "encode: positions": lambda x, it: fastpe.encode(it, 8),
    "embed: ids": lambda x, it: fastpe.embed(it, x[0]),
    "embed: table": lambda x, it: fastpe.embed([0], it),
    "apply_rotary: k": lambda x, it: fastpe.apply_rotary(x, it),
    "rerotate: delta": lambda x, it: fastpe.rerotate(x, it),
    "add_bias: q_positions": lambda x, it: fastpe.add_bias(x, fastpe.ALiBi(2), q_positions=it),
    "Kerple: p": lambda x, it: fastpe.Kerple(it, (1.0, 1.0)),
    "FIRE: w1": lambda x, it: fastpe.FIRE(it, *[np.ones((2, 2), np.float32)] * 3),
    "convert_layout: weights": lambda x, it: fastpe.convert_layout(it, "half", "interleaved", head_dim=2),
    "packed: cu_seqlens": lambda x, it: fastpe.positions.packed(it),
}


@pytest.mark.parametrize("argument", BROKEN)
def test_who_does_not_show_its_memory_is_named(argument):
    x = np.ones((2, 4, 8), np.float32)
    with pytest.raises(
        TypeError, match=f"^{argument} must export its memory with a type of NumPy, got .*it is gone.*Pass an array"
    ):
        BROKEN[argument](x, Broken(x))
    assert (x == 1).all()


def test_bfloat16_needs_its_type(monkeypatch):
    x = cases.random((2, 4, 8), "bfloat16")
    for kind in (BFloat16DLPack, ArrayInterface):
        given = kind(x)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "ml_dtypes", None)
            with pytest.raises(TypeError, match=r"add_encoding: x must export .*for bfloat16 .*pip install ml_dtypes"):
                fastpe.add_encoding(given)
        wanted = fastpe.add_encoding(x.copy())
        assert fastpe.add_encoding(given) is given  # nothing of it was changed before
        cases.assert_same_bits(x, wanted)


def test_one_class_may_have_arrays_on_several_devices():
    """What is remembered of a class must hold for all of its objects."""
    x = np.zeros((2, 4), np.float32)

    class Either(DLPack):
        place = 1

        def __dlpack_device__(self):
            return self.place, 0

    here, there = Either(x), Either(x)
    there.place = 8
    for _ in range(2):
        assert fastpe.add_encoding(here) is here
        with pytest.raises(TypeError, match="x must be a NumPy or CuPy array"):
            fastpe.add_encoding(there)


def test_arrays_beside_tensors_must_be_tensors():
    torch = pytest.importorskip("torch")
    for given in (array.array("q", [1, 2, 3]), memoryview(np.arange(3))):
        with pytest.raises(TypeError, match=r"arrays beside a tensor must be tensors"):
            fastpe.add_encoding(torch.zeros(3, 8), positions=given)
