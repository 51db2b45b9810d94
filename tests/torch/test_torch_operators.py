"""The operators of graphs, and encodings as the text that these carry."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
from graph_cases import FUNCTIONAL, NTK, VERBS, WITHOUT_GRADIENT, YARN, F, inputs, run  # noqa: E402

from fastpe import Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import ops  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        # Of PyTorch's compiler, as it traces and lowers
        "ignore::DeprecationWarning:torch.*",
        "ignore::FutureWarning:torch.*",
    ),
    pytest.mark.usefixtures("fresh_compiler"),
]


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
        (Rotary(scaling=Own()), TypeError, r"made of numbers and rules of fastpe\.scaling, got a .*\.Own"),
        (Derived(), TypeError, r"one of fastpe's, got a .*\.Derived"),
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
