"""Every type of model that transformers has for text, small and random: patched it gives the same, or it is refused.

A new release of transformers shows up here: a type that rotates is right or in ``REFUSED``, one without a small form in ``NOT_SMALL``,
both of the helper that writes the page of them.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
from patched_page import NOT_SMALL, PAGE, REFUSED, REMAP, page, rotates, row  # noqa: E402
from tiny_models import KINDS, build, transformers  # noqa: E402

from fastpe.torch.transformers import patch_transformers  # noqa: E402

pytestmark = [*torch_marks.PATCHES, pytest.mark.filterwarnings("ignore")]  # of the models, which warn of their configurations

CAUSAL = sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tokens(seed: int = 1) -> Any:
    return torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(seed))


def gradients(model: Any) -> dict[str, Any]:
    model.zero_grad()
    model(tokens()).logits.square().mean().backward()
    return {name: weights.grad for name, weights in model.named_parameters() if weights.grad is not None}


def assert_near(found: Any, wanted: Any) -> None:
    assert float((found - wanted).abs().max()) <= 1e-3 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(NOT_SMALL)))
def test_patched_models_give_the_same(kind: str, rotations: list[Any]) -> None:
    model = build(kind)
    if not rotates(model) or kind in REFUSED:
        with pytest.raises(ValueError, match=REFUSED.get(kind, "must have modules that make cosines and sines of positions")):
            patch_transformers(model)
        return
    with torch.no_grad():
        before = model(tokens()).logits
    wanted = gradients(model)
    with patch_transformers(model) as patched:
        assert patched.changes
        with torch.no_grad():
            assert_near(model(tokens()).logits, before)
        assert rotations
        for name, found in gradients(model).items():
            assert_near(found, wanted[name])
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, before)
    assert row(kind, model) in LINES, "run python tests/helpers/patched_page.py"


LINES = PAGE.read_text().splitlines()
ROWS = [line for line in LINES if line.startswith("| ") and line.endswith(" |")][1:]


def test_the_page_has_its_rows_and_nothing_else() -> None:
    """Each row is compared with its model above."""
    assert PAGE.read_text() == page(ROWS)
    assert {one.split()[1] for one in ROWS} <= set(KINDS) - set(NOT_SMALL)


@pytest.mark.parametrize("kind", [one.split()[1] for one in ROWS if one.endswith("| yes |")])
def test_remapped_models(kind: str) -> None:
    """Within the first branch as before; beyond it, a text that is read in two goes as if in one."""
    model, ids = build(kind), tokens()
    with torch.no_grad():
        before = model(ids).logits
        with patch_transformers(model, remap=functools.partial(REMAP.func, window=24)):
            assert_near(model(ids).logits, before)
        with patch_transformers(model, remap=REMAP):
            whole = model(ids, use_cache=True)
            assert float((whole.logits - before).abs().max()) > 1e-3
            if getattr(whole, "past_key_values", None) is not None:
                first = model(ids[:, :15], use_cache=True)
                rest = model(ids[:, 15:], past_key_values=first.past_key_values)
                assert_near(torch.cat((first.logits, rest.logits), 1), whole.logits)


@pytest.mark.parametrize("kind", NOT_SMALL)
def test_types_that_cannot_be_made_small(kind: str) -> None:
    """If one can, it belongs to the others."""
    try:
        build(kind)(tokens())
    except Exception:  # of any kind: the configurations do not fit
        return
    pytest.fail(f"{kind} can be built now: take it off NOT_SMALL")


GENERATES = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(CAUSAL) - set(NOT_SMALL) - set(REFUSED)))
def test_patched_models_generate_the_same(kind: str) -> None:
    """Greedily, from prompts with padding on the left, with the usual cache and a static one, where the model itself can."""
    model = build(kind)
    if not rotates(model) or "generate" not in dir(model):
        return
    ids, mask = tokens()[:, :9], torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    for options in ({}, {"attention_mask": mask}, {"cache_implementation": "static"}):
        try:
            before = model.generate(ids, **GENERATES, **options)
        except Exception:  # the model cannot
            continue
        with patch_transformers(model):
            assert torch.equal(model.generate(ids, **GENERATES, **options), before)


def test_signatures_are_those_of_the_library() -> None:
    """What is looked for is there: most types have it word for word."""
    from transformers.models.llama import modeling_llama

    assert list(inspect.signature(modeling_llama.LlamaRotaryEmbedding.forward).parameters) == ["self", "x", "position_ids"]
