"""A real language model, patched: the same tokens, and logits that are exact far from the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch_marks

torch = pytest.importorskip("torch")
from fastpe import scaling  # noqa: E402
from fastpe._tools import smollm  # noqa: E402
from fastpe.torch import patch_transformers  # noqa: E402

pytestmark = [*torch_marks.PATCHES, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def language() -> Any:
    if smollm.problem() is not None:
        pytest.skip(smollm.problem())
    return smollm.load()


def generated(language: Any, ids: list[list[int]], count: int) -> Any:
    """Greedily, the shorter prompts padded on the left."""
    longest = max(map(len, ids))
    padded = torch.tensor([[2] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    return language.model.generate(padded, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=2)


def test_it_answers(language: Any) -> None:
    ids = language.prompt("What is the capital of France?")
    answer = generated(language, [ids], 8)[0, len(ids) :]
    assert "Paris" in language.tokenizer.decode(answer.tolist())


def test_the_same_tokens(language: Any) -> None:
    prompts = [language.prompt(text) for text in ("Name three colours.", "What is 17 + 5? Explain in one sentence.")]
    before = generated(language, prompts, 16)
    with patch_transformers(language.model) as patched:
        assert patched.changes[0] == "model.rotary_emb.forward: Rotary(base=100000.0)"
        assert torch.equal(generated(language, prompts, 16), before)


@torch.no_grad()
def logits_at(language: Any, first: int) -> Any:
    """Of a sentence whose first token stands at this position."""
    ids = torch.tensor([language.tokenizer.encode("The sun rises in the east and sets in the").ids])
    positions = torch.arange(first, first + ids.shape[1])[None]
    return language.model(ids, position_ids=positions, use_cache=False).logits


def test_logits_are_those_of_exact_angles(language: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention sees differences of positions only, so a sentence far away has the logits that it has at the start."""
    near = logits_at(language, 0)
    assert "west" in language.tokenizer.decode([int(near[0, -1].argmax())])
    own = float((logits_at(language, 1_000_000) - near).abs().max())
    with patch_transformers(language.model):
        ours = float((logits_at(language, 1_000_000) - near).abs().max())
    rotary = language.model.model.rotary_emb

    def exact(x: Any, position_ids: Any) -> tuple[Any, Any]:
        frequencies = 100000.0 ** -(np.arange(0, 64, 2) / 64)
        angles = position_ids.double()[..., None] * torch.from_numpy(np.concatenate((frequencies, frequencies)))
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    monkeypatch.setattr(rotary, "forward", exact)
    true = float((logits_at(language, 1_000_000) - near).abs().max())
    assert ours <= 2 * true + 1e-3
    assert ours <= own / 20


def test_stretched_it_still_answers(language: Any) -> None:
    ids = language.prompt("What is the capital of France?")
    with patch_transformers(language.model, scaling=scaling.YaRN(4.0, smollm.LENGTH)) as patched:
        assert "YaRN" in patched.changes[0]
        answer = generated(language, [ids], 8)[0, len(ids) :]
    assert "Paris" in language.tokenizer.decode(answer.tolist())
