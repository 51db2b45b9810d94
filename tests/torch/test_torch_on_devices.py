"""Gradients, compiled functions, modules, biases and models of Hugging Face on every device, as on the CPU.

The other tests of these work on tensors of the CPU; here the same cases are moved to the device, a GPU where there is one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
import graph_cases  # noqa: E402
import module_cases  # noqa: E402
from gradient_cases import IDS, PLACES, ROTARIES, check_gradients, random  # noqa: E402
from torch_biases import GIVEN, HEADS, LEARNED, parameters, without_inf  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned  # noqa: E402
from fastpe.torch import functional  # noqa: E402

pytestmark = [
    *torch_marks.COMPILES,
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:DeprecationWarning",
        "ignore:TensorFloat32 tensor cores:UserWarning",  # layers of float32
        "ignore:Sparse invariant:UserWarning",  # PyTorch's of its own sparse gradients
    ),
]
LISTS = {
    "add_real_positions",
    "add_lists",
    "add_cu_seqlens",
    "rotate_sections",
    "rotate_table",
    "rerotate_tensor",
}  # made on the CPU
COMPILED = {name: function for name, function in graph_cases.FUNCTIONAL.items() if name not in LISTS}


def on(device: Any, value: Any) -> Any:
    """A value with its tensors on a device, and lists as tensors there."""
    if isinstance(value, dict):
        return {name: on(device, one) for name, one in value.items()}
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**on(device, vars(value)))
    return torch.as_tensor(value, device=device) if isinstance(value, (list, torch.Tensor)) else value


def leaf(device: Any, *shape: int, seed: int = 0) -> Any:
    return random(*shape, seed=seed, requires_grad=False).to(device).requires_grad_()


# ---- gradients ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_gradients_of_additions_and_rotations(device, place):
    given = on(device, PLACES[place])
    check_gradients(lambda x: functional.add_encoding(x, input_scale=2.5, **given), leaf(device, 2, 3, 4))
    for name in ROTARIES if place == "offset" else ("half",):
        check_gradients(
            lambda q, k, e=ROTARIES[name]: functional.apply_rotary(q, k, e, **given),
            leaf(device, 2, 2, 3, 8),
            leaf(device, 2, 1, 3, 8, seed=1),
        )
    if place != "real":
        check_gradients(lambda x: functional.apply_rotary_qkv(x, (2, 1), seq_axis=-3, **given), leaf(device, 2, 3, 4, 8))


@pytest.mark.parametrize("place", [place for place in PLACES if place != "real"])
def test_gradients_of_tables(device, place):
    ids, given = IDS.to(device), on(device, PLACES[place])

    def look_up(table: Any, types: Any, learned: Any) -> Any:
        return functional.embed(ids, table, Learned(learned), scale=2.0, token_types=(ids % 2, types), **given)

    check_gradients(look_up, leaf(device, 6, 4), leaf(device, 2, 4, seed=1), leaf(device, 8, 4, seed=2))
    check_gradients(
        lambda x, t: functional.add_encoding(x, Learned(t), **given), leaf(device, 2, 3, 4), leaf(device, 8, 4, seed=1)
    )


def test_gradients_in_place(device):
    """A tensor with history is written, and its gradient is that of the functional form."""
    for write, form in (
        (lambda x: fastpe.add_encoding(x, input_scale=2.0), lambda x: functional.add_encoding(x, input_scale=2.0)),
        (lambda x: fastpe.apply_rotary(x, offset=2), lambda x: functional.apply_rotary(x, offset=2)),
        (lambda x: fastpe.rerotate(x, 3), lambda x: functional.rerotate(x, 3)),
    ):
        found = []
        for function in (write, form):
            x = leaf(device, 2, 3, 8)
            (function(x * 1.5) ** 3).sum().backward()
            found.append(x.grad)
        assert torch.equal(*found)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["t5", "alibi", "kerple_power", "fire_beyond"])
def test_gradients_of_biases(device, name, given):
    make, shapes = LEARNED[name]
    learned = [parameters(*shape, seed=i).detach().to(device).requires_grad_() for i, shape in enumerate(shapes)]
    given = on(device, GIVEN[given])

    def add(scores: Any, *learned: Any) -> Any:
        return without_inf(functional.add_bias(scores, make(*learned), **given))

    assert torch.autograd.gradcheck(add, (leaf(device, 2, HEADS, 4, 5), *learned), fast_mode=True)


# ---- the same as on the CPU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
def test_biases_are_those_of_the_cpu(device, name):
    make, shapes = LEARNED[name]
    learned = [parameters(*shape, seed=i).detach() for i, shape in enumerate(shapes)]
    scores = random(2, HEADS, 4, 5, requires_grad=False)
    expected = fastpe.add_bias(scores.clone(), make(*learned), causal=True)
    found = fastpe.add_bias(scores.to(device), make(*on(device, dict(enumerate(learned))).values()), causal=True)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", module_cases.MODULES)
def test_modules_are_those_of_the_cpu(device, name):
    """To the bit, moved after they were made; gradients but for the order of sums."""
    here, there = module_cases.make(name), module_cases.make(name).to(device)
    x, ids = module_cases.X, module_cases.IDS
    found = []
    for module, where in ((here, "cpu"), (there, device)):
        types = {"token_types": ids.to(where) % 2} if getattr(module, "types", None) is not None else {}
        result = module((ids if name.startswith("tokens") else x).to(where), offset=3, **types)
        if result.requires_grad:
            (result**2).sum().backward()
        found.append((result.detach().cpu(), [one.grad.cpu() for one in module.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_the_same(device, name):
    given = on(device, graph_cases.inputs())
    compiled, _ = graph_cases.counted(COMPILED[name])

    def results(function: Any) -> Any:
        own = {key: one.clone().requires_grad_(one.is_floating_point()) for key, one in vars(given).items()}
        found = graph_cases.all_of(function(SimpleNamespace(**own)))
        sum((one.float() ** 2).sum() for one in found).backward()
        return [one.detach() for one in found], {key: one.grad for key, one in own.items() if one.grad is not None}

    got, expected = results(compiled), results(COMPILED[name])
    for one, other in zip(got[0], expected[0], strict=True):
        assert torch.equal(one, other)
    assert got[1].keys() == expected[1].keys()
    for key in expected[1]:
        torch.testing.assert_close(got[1][key].to_dense(), expected[1][key].to_dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_patched_models_are_themselves(device, name):
    pytest.importorskip("transformers")
    import small_models

    from fastpe.torch.transformers import patch_transformers

    model, ids = small_models.build(name).to(device), small_models.tokens(2, 24).to(device)
    before = small_models.logits(model, ids)
    with patch_transformers(model) as patched:
        assert patched.changes
        assert small_models.error(small_models.logits(model, ids), before) <= small_models.LOGITS
    assert torch.equal(small_models.logits(model, ids), before)
