"""Every type of model that transformers has for text, small and random: patched it gives the same, or it is refused.

A new release of transformers shows up here: a type that rotates is right or in ``REFUSED``, one without a small form in ``NOT_SMALL``.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
from tiny_models import KINDS, build, transformers  # noqa: E402

from fastpe.torch.transformers import patch_transformers  # noqa: E402

pytestmark = [*torch_marks.PATCHES, pytest.mark.filterwarnings("ignore")]  # of the models, which warn of their configurations

# Their default configurations have fields that do not fit each other, are parts of larger ones, or have no small form.
_NAMES = (
    "bailing_hybrid bamba blenderbot blt cohere_compass_text dbrx deepseek_v2 dots1 dots3_note dots3_note_text emu3 esm "
    "esmc flaubert fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified gemma4_unified_assistant git got_ocr2 gpt_neo "
    "granitemoehybrid jamba lfm2_moe llama4 luke mamba2 mllama mobilebert modernvbert moss_transcribe_diarize musicgen "
    "musicgen_melody perceiver phi4_multimodal plbart qwen3_5 qwen3_5_moe qwen4_exp qwen4_exp_text recurrent_gemma reformer "
    "squeezebert ultravbert whisper xlm xlstm xmod zamba zamba2 "
)
NOT_SMALL = _NAMES.split()
REFUSED: dict[str, str] = {}  # types that rotate, and why they are refused
CAUSAL = sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def rotates(model: Any) -> bool:
    return any(re.search("Rotary|RoPE|Rope|GPTJ", type(one).__name__) for one in model.modules())


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
