"""The operators of graphs, and encodings, biases and operations as the text that these carry."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch_marks

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
from graph_cases import FUNCTIONAL, NTK, TABLE, VERBS, WITHOUT_GRADIENT, YARN, inputs, run  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Grid, Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe._core import operations, text  # noqa: E402
from fastpe._core.operations import Add, AddBias, Between, Embed, Encode, Rerotate, Resample, Rotate  # noqa: E402
from fastpe._core.where import Where  # noqa: E402
from fastpe.torch._packing import pack, unpack  # noqa: E402

pytestmark = torch_marks.COMPILES
OPS = torch.ops.fastpe


# ---- operators ---------------------------------------------------------------------------------------------------------------

PLACES: dict[str, dict[str, Any]] = {
    "offset": {"offset": 3},
    "offsets": {"offset": torch.tensor([2, 5]), "mask": torch.arange(12).reshape(2, 6) % 4 != 1},
    "positions": {"positions": torch.arange(6) * 3, "mask": [True, False] * 3},
    "cu_seqlens": {"cu_seqlens": torch.tensor([0, 2, 6]), "offset": 1},
    "lists": {"cu_seqlens": [0, 2, 6], "offset": [1, 4]},
}
SINUSOIDAL, INTERLEAVED = Sinusoidal(base=50.0), Rotary(interleaved=True)


def quantised(i: Any) -> tuple[Any, ...]:
    return (i.table * 50).to(torch.int8), i.ids, None, None, torch.linspace(0.1, 1, 11), torch.arange(11) % 3


# The operation and its arrays; the axis of the rows is the second from the end, or that which follows.
CALLS: dict[str, Any] = {
    "add": lambda i: (Add(SINUSOIDAL, 2.0), (i.x,)),
    "add_learned": lambda i: (Add(Learned(i.learned, "clip"), 2.0), (i.x,)),
    "add_other_axis": lambda i: (Add(SINUSOIDAL), (i.x.transpose(0, 1),), 0),
    "add_length": lambda i: (Add(Sinusoidal(scaling=scaling.DynamicNTK(2.0, 4)), 1.0, 50), (i.x,)),
    "rotate": lambda i: (Rotate(INTERLEAVED), (i.q, i.k)),
    "rotate_q": lambda i: (Rotate(YARN, inverse=True), (i.q, None)),
    "rotate_k": lambda i: (Rotate(Rotary(xpos_scale_base=512.0)), (None, i.k)),
    "rotate_back": lambda i: (Rotate(NTK, seq_len=70, transposed=True), (i.q, None)),
    "rotate_table": lambda i: (Rotate(Rotary.tabulated(torch.ones(90, 4), torch.full((90, 4), 0.5))), (i.q, i.k)),
    "rotate_packed": lambda i: (Rotate(INTERLEAVED, packing=(2, 1, 2)), (i.packed, None), -3),
    "rerotate": lambda i: (Rerotate(INTERLEAVED, INTERLEAVED), (i.k, 3)),
    "rerotate_real": lambda i: (Rerotate(INTERLEAVED, INTERLEAVED), (i.k, 1.5)),
    "rerotate_tensor": lambda i: (Rerotate(INTERLEAVED, INTERLEAVED), (i.k, torch.tensor([2, -1]))),
    "rerotate_rules": lambda i: (Rerotate(NTK, YARN, (9, 20)), (i.k, 0)),
    "rerotate_back": lambda i: (Rerotate(INTERLEAVED, INTERLEAVED, transposed=True), (i.k, 2)),
    "embed": lambda i: (Embed(SINUSOIDAL, 1.5), (i.table, i.ids, None, None, None, None)),
    "embed_everything": lambda i: (
        Embed(Learned(i.learned, "clip"), 2.0, 3, "float32", None, None, False, True, 1),
        (i.table, i.ids, i.ids % 2, i.types, None, None),
    ),
    "embed_int8": lambda i: (Embed(SINUSOIDAL, dtype="float16"), quantised(i)),
    "embed_length": lambda i: (
        Embed(Sinusoidal(scaling=scaling.DynamicNTK(2.0, 4)), seq_len=90),
        (i.table, i.ids, None, None, None, None),
    ),
}
# Those that have no rows of positions.
OTHERS: dict[str, Any] = {
    "add_grid": lambda i: (Add(Grid((2, 3)), 2.0), (i.x,), Where(mask=torch.arange(6) > 1)),
    "embed_without": lambda i: (Embed(None), (i.table, i.ids, None, None, None, None), Where()),
    "encode": lambda i: (Encode(SINUSOIDAL, 16, "float16"), (None, torch.arange(4.0)), None),
    "encode_grid": lambda i: (Encode(Grid((2, 3)), 8), (i.x.detach(), None), None),
    "resample": lambda i: (Resample((3, 2), "antialias", 2), (i.table,), None),
    "resample_back": lambda i: (Resample(20, rows=i.table.shape[0]), (torch.ones(20, 3, requires_grad=True),), None),
    "encode_fourier": lambda i: (Encode(fastpe.Fourier.nerf(2, 2), 8), (None, torch.rand(2, 5)), None),
}
SCORES = (2, 3, 4, 5)
BIASES: dict[str, Any] = {
    "alibi": lambda p: (AddBias(fastpe.ALiBi(3), True, 0.5), Between()),
    "t5": lambda p: (AddBias(fastpe.T5Bias(p(8, 3)), False, 0.5), Between(2)),
    "kerple": lambda p: (AddBias(fastpe.Kerple(p(3), p(3), symmetric=True), True), Between(torch.tensor([3, 1]))),
    "mixed": lambda p: (AddBias(fastpe.Kerple(p(3), (0.1, 0.2, 0.3))), Between(None, torch.tensor([4, 0, 2, 8]))),
    "fire": lambda p: (AddBias(fastpe.FIRE(p(4, 1), p(4), p(3, 4), p(3)), True), Between(None, None, torch.arange(5) * 2)),
}


def packed(name: str, place: str, grad: bool, writes: int = 0) -> tuple[Any, ...]:
    """The arguments of an operator, and the arrays that it was made of."""
    i = inputs()
    if grad:
        i = SimpleNamespace(**{key: x.requires_grad_() if x.is_floating_point() else x for key, x in vars(i).items()})
    if name in CALLS:
        operation, arrays, *axis = CALLS[name](i)
        if name == "rerotate_tensor":
            given: Any = Where(0, None, None, None, -2)
        else:
            given = Where(**PLACES[place], seq_axis=axis[0] if axis else -2)
            if axis == [0] and isinstance(given.mask, torch.Tensor):
                given = given._replace(offset=3, mask=given.mask[0])
    else:
        operation, arrays, given = OTHERS[name](i)
    return pack(operation, arrays, given, place == "positions", writes), arrays


def packed_bias(name: str, grad: bool, writes: int = 0) -> tuple[Any, ...]:
    def parameter(*shape: int) -> Any:
        return (torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) + 0.1).requires_grad_(grad)

    operation, where = BIASES[name](parameter)
    arrays = (torch.randn(SCORES, generator=torch.Generator().manual_seed(3)).requires_grad_(grad),)
    return pack(operation, arrays, where, False, writes), arrays


def leaves(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same with leaves of autograd, whose gradients the check asks for, in place of views of such."""
    tensors, *rest = arguments
    return [x.detach().requires_grad_(x.requires_grad) for x in tensors], *rest


def test_every_operator_is_among_the_tested():
    found = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastpe::")}
    assert found == {f"fastpe::{name}" for name in ("run", "run_", "row_positions", "bias_gradients")}
    kinds = {type(CALLS[name](inputs())[0]) for name in CALLS} | {Encode, AddBias, Resample}
    assert kinds == {kind for name, kind in vars(operations).items() if text._kinds.get(name) is kind}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_run_keeps_its_word(name, place):
    """Its schema, its fake results and its gradients are what they say, with lengths of any size."""
    if name == "rerotate_tensor" and place != "offset":
        pytest.skip("keys that move each by a number of their own")
    torch.library.opcheck(OPS.run.default, leaves(packed(name, place, True)[0]))


@pytest.mark.parametrize("name", OTHERS)
def test_run_keeps_its_word_without_positions(name):
    torch.library.opcheck(OPS.run.default, packed(name, "", True)[0])


@pytest.mark.parametrize("name", BIASES)
def test_run_and_the_gradients_of_biases_keep_their_word(name):
    arguments, (scores,) = packed_bias(name, True)
    torch.library.opcheck(OPS.run.default, arguments)
    plain, _ = packed_bias(name, False)
    if plain[1]:
        torch.library.opcheck(OPS.bias_gradients.default, (scores.detach(), *plain))


IN_PLACE = [name for name in CALLS if not name.startswith("embed")]


@pytest.mark.parametrize("place", ["offset", "offsets", "positions"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_run_in_place_keeps_its_word(name, place):
    """Into the arrays themselves, and into others."""
    arguments, arrays = packed(name, place, False, writes=count_of(name))
    written = [x.clone() for x in arrays[: count_of(name)] if x is not None]
    torch.library.opcheck(OPS.run_.default, (written, *arguments))
    arguments, arrays = packed(name, place, False)
    outs = [torch.empty_like(x) for x in arrays[: count_of(name)] if x is not None]
    torch.library.opcheck(OPS.run_.default, (outs, *arguments))


def count_of(name: str) -> int:
    return CALLS[name](inputs())[0].writes


@pytest.mark.parametrize("name", BIASES)
def test_run_in_place_of_biases_keeps_its_word(name):
    arguments, (scores,) = packed_bias(name, False, writes=1)
    torch.library.opcheck(OPS.run_.default, ([scores.clone()], *arguments))
    arguments, (scores,) = packed_bias(name, False)
    torch.library.opcheck(OPS.run_.default, ([torch.empty_like(scores)], *arguments))


@pytest.mark.parametrize("place", PLACES)
def test_row_positions_keep_their_word(place):
    x = inputs().x
    _, _, *rest = pack(Add(None), (x,), Where(**PLACES[place]), False, writes=1)
    torch.library.opcheck(OPS.row_positions.default, (x, *rest))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_packed_is_unpacked(name, place):
    """The operation is equal, and its arrays are the caller's."""
    for written in {0, count_of(name)}:
        operation, arrays, *_ = CALLS[name](inputs())
        where = Where(**PLACES[place])
        found = unpack(*pack(operation, arrays, where, True, written), out=[x for x in arrays[:written] if x is not None])
        assert found.validate is True
        assert type(found.operation) is type(operation)
        assert text.write_operation(found.operation) == text.write_operation(operation)
        assert all(one is other or one == other for one, other in zip(found.arrays, arrays, strict=True))
        for one, other in zip(found.where, where, strict=True):
            assert one is other or one == other or torch.equal(one, torch.tensor(other))


def test_without_a_compiler_no_operator_is_called():
    """An operator costs microseconds: eager calls go to the kernels themselves."""
    encode = pack(Encode(Sinusoidal(), 4), (None, torch.arange(3)), None, False)
    OPS.run(*encode)
    with torch.profiler.profile() as profile:
        for function in (*FUNCTIONAL.values(), *VERBS.values()):
            run(function, inputs(), True)
        for function in WITHOUT_GRADIENT.values():
            run(function, inputs(), False)
    names = {event.key for event in profile.key_averages()}
    assert "aten::empty_like" in names
    assert not [name for name in names if "fastpe::" in name]
    with torch.profiler.profile() as profile:
        OPS.run(*encode)
    assert "fastpe::run" in {event.key for event in profile.key_averages()}


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
    Grid((3, 4)),
    fastpe.Fourier.nerf(3, 2),
    *(kind(scaling=rule) for kind in (Sinusoidal, Rotary) for rule in RULES.values()),
]


def test_every_rule_is_among_the_tested():
    assert {rule.__name__ for rule in scaling.Scaling.__subclasses__() if rule.__module__ == "fastpe.scaling"} == set(RULES)
    assert all(type(rule).__name__ == name for name, rule in RULES.items())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_encodings_survive_as_text(encoding):
    json.loads(encoding.text)
    text.refuse_unknown("here", encoding.text)
    again = text.read(encoding.text)
    assert again == encoding
    assert hash(again) == hash(encoding)
    assert type(again) is type(encoding)
    assert again.text == encoding.text
    fields = [(getattr(encoding, field.name), getattr(again, field.name)) for field in dataclasses.fields(encoding)]
    assert all(type(one) is type(other) for one, other in fields)


def test_encodings_of_tensors_survive_as_text():
    for encoding in (Learned(torch.ones(3, 4), "clip"), Rotary.tabulated(TABLE, TABLE * 2, interleaved=True)):
        tensors = text.tensors_in(encoding)
        assert tensors == list(encoding.arrays.values())
        again = text.read(encoding.text, tensors)
        assert again.text == encoding.text
        assert all(one is other for one, other in zip(again.arrays.values(), tensors, strict=True))


@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
def test_operations_survive_as_text(name):
    """With the fields that they have, and what these are made of."""
    operation = (CALLS | OTHERS)[name](inputs())[0]
    written = text.write_operation(operation)
    json.loads(written)
    text.refuse_unknown("here", written)
    values = [value for value in operation if hasattr(value, "text")]
    again = text.read(written, [tensor for value in values for tensor in text.tensors_in(value)])
    assert type(again) is type(operation)
    assert text.write_operation(again) == written
    assert [type(one) for one in again] == [type(one) for one in operation]


def test_text_is_made_of_plain_numbers():
    """Whatever kind of number came."""
    encoding = Rotary(np.float32(500), rotary_dim=np.int64(4), scaling=scaling.Linear(np.float16(2)), sections=[1, 1])
    assert text.read(encoding.text) == encoding
    assert text.write(None) == "null"
    assert text.read("null") is None
    assert dataclasses.replace(encoding, base=3.0).text != encoding.text
    assert "text" not in repr(encoding)
