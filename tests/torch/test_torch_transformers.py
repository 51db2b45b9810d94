"""Hugging Face models that rotate with fastpe: small random ones, beside themselves unpatched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch_marks

torch = pytest.importorskip("torch")
from small_models import FAMILIES, LOGITS, LONG, MAIN, SHORT, build, error, logits, long_phi3, tokens  # noqa: E402

import fastpe  # noqa: E402
from fastpe.torch import _rotation as patching  # noqa: E402
from fastpe.torch.transformers import patch_transformers  # noqa: E402

pytestmark = torch_marks.PATCHES


# ---- the same results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name, rotations):
    model, ids = build(name), tokens(2, 24)
    before = logits(model, ids)
    with patch_transformers(model) as patched:
        after = logits(model, ids)
        assert patched.changes
    calls = {"gptj": 2 * 2, "smollm3": 1}.get(
        name, model.config.num_hidden_layers
    )  # q and k one by one; a layer without positions
    assert len(rotations) == calls
    assert error(after, before) <= LOGITS
    assert torch.equal(logits(model, ids), before)  # undone


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # the tracer reads every property
)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_traced_by_jit(name, trained):
    """With the tracer's own check, which traces again without gradients; and right for other tokens."""
    model, ids = build(name).requires_grad_(trained), tokens(1, 10)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(ids, use_cache=False).logits

    before = [logits(model, tokens(1, 10, seed=seed)) for seed in (1, 2)]
    with patch_transformers(model):
        traced = torch.jit.trace(Logits(), ids)
        assert str(traced.inlined_graph).count("fastpe::run") == 2 * (2 if name == "gptj" else 1)
        after = [traced(tokens(1, 10, seed=seed)) for seed in (1, 2)]
    assert max(map(error, after, before)) <= LOGITS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gptj", "deepseek_v3"])
def test_other_dtypes(name, dtype):
    dense = {"first_k_dense_replace": 2} if name == "deepseek_v3" else {}  # PyTorch has no float64 product for experts
    model, ids = build(name, **dense), tokens(2, 24)
    exact = logits(model, ids)
    model.to(dtype)  # rounds the model's own frequencies too
    before = logits(model, ids)
    with patch_transformers(model):
        after = logits(model, ids)
    assert after.dtype == dtype
    assert error(after, exact) <= 1.1 * error(before, exact) + LOGITS


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("padded", [False, True])
def test_generation_with_a_cache(name, padded, rotations):
    model, ids = build(name), tokens(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[1, :1] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(ids, **options)
    with patch_transformers(model):
        after = model.generate(ids, **options)
    assert torch.equal(after, before)
    whole = [one for one in rotations if isinstance(one.offset, int) and one.positions is None]
    rows = [one for one in rotations if not isinstance(one.offset, int)]
    assert len(whole) == len(rotations) if not padded else rows  # padded steps have an offset for each sequence


@pytest.mark.parametrize("name", MAIN)
def test_gradients(name):
    model, ids = build(name), tokens(2, 24)

    def gradients() -> dict[str, Any]:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.grad is not None}

    before = gradients()
    with patch_transformers(model):
        after = gradients()
    assert after.keys() == before.keys()
    for key in before:
        assert error(after[key], before[key]) <= 1e-5 * max(1.0, float(before[key].abs().max()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_checkpoints(reentrant):
    model, ids = build("llama").train(), tokens(2, 24)
    model(ids, labels=ids, use_cache=False).loss.backward()
    before = [weights.grad.clone() for weights in model.parameters()]
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its name since 5.x
    enable({"use_reentrant": reentrant})
    with patch_transformers(model):
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert max(error(weights.grad, old) for weights, old in zip(model.parameters(), before, strict=True)) <= 1e-5


def test_gradients_by_torch_func():
    model, ids = build("llama"), tokens(2, 24)
    weights = dict(model.named_parameters())

    def loss(weights: Any) -> Any:
        return torch.func.functional_call(model, weights, (ids,), {"labels": ids, "use_cache": False}).loss

    with patch_transformers(model):
        found = torch.func.grad(loss)(weights)
        loss(weights).backward()
    assert max(error(found[name], one.grad) for name, one in weights.items()) <= 1e-5


def test_frozen_weights_are_not_rotated_in_place_where_keys_train():
    model, ids = build("llama"), tokens(2, 24)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.requires_grad_(True)
    found = []
    for patched in (False, True):
        patch = patch_transformers(model) if patched else None
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append([layer.self_attn.k_proj.weight.grad.clone() for layer in model.model.layers])
        if patch is not None:
            patch.undo()
    assert max(error(a, b) for a, b in zip(*found, strict=True)) <= 1e-5


def test_autocast():
    model, ids = build("llama"), tokens(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(ids).logits
        with patch_transformers(model):
            assert error(model(ids).logits, before) <= 0.1


def test_packed_and_repeated_positions():
    model, ids = build("llama"), tokens(2, 12)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    for given in (
        positions,
        positions[:1],
        positions[1:],
        positions[1:].expand(2, -1),
        positions + 3,
        positions[1:] + positions[:, :1],
    ):
        before = logits(model, ids, position_ids=given)
        with patch_transformers(model):
            assert error(logits(model, ids, position_ids=given), before) <= LOGITS


# ---- lengths -----------------------------------------------------------------------------------------------------------------


def test_longrope_on_both_sides():
    model = long_phi3()
    for length in (16, 32, 33, 60, 16):
        ids = tokens(2, length)
        before = logits(model, ids)
        with patch_transformers(model) as patched:  # the model's frequencies stand at either side now
            assert "LongRoPE" in patched.changes[0]
            assert error(logits(model, ids), before) <= LOGITS


def test_longrope_generates_across_the_original_length():
    model, ids = long_phi3(), tokens(2, 28)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    before = model.generate(ids, **options)
    with patch_transformers(model):
        assert torch.equal(model.generate(ids, **options), before)


def test_dynamic_ntk_has_no_memory():
    rule = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = build("llama", max_position_embeddings=32, rope_parameters=rule)
    found = {length: logits(model, tokens(1, length)) for length in (20, 48)}
    with patch_transformers(model):  # whose own frequencies stand at 48
        for length in (48, 20, 48):
            assert error(logits(model, tokens(1, length)), found[length]) <= LOGITS
    assert torch.equal(logits(model, tokens(1, 48)), found[48])


# ---- far positions -----------------------------------------------------------------------------------------------------------


def exact_frequencies(config: Any, kind: str | None) -> tuple[np.ndarray, float]:
    """Frequencies and attention factor in float64, from the formulas."""
    rule = config.rope_parameters if kind is None else config.rope_parameters[kind]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(width * rule.get("partial_rotary_factor", 1.0))
    base = rule["rope_theta"]
    plain = base ** -(np.arange(0, width, 2) / width)
    if rule["rope_type"] == "default":
        return plain, 1.0
    assert rule["rope_type"] == "yarn"
    original, factor = rule["original_max_position_embeddings"], rule["factor"]
    low, high = (
        width * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base)) for turns in (rule["beta_fast"], rule["beta_slow"])
    )
    low, high = max(np.floor(low), 0), min(np.ceil(high), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    stretch = (0.1 * rule["mscale"] * np.log(factor) + 1) / (0.1 * rule["mscale_all_dim"] * np.log(factor) + 1)
    return plain / factor * ramp + plain * (1 - ramp), stretch


def make_exact(model: Any) -> None:
    """Let an unpatched model have cosines and sines of float64 angles, rounded once."""
    if model.config.model_type == "gptj":
        for layer in model.transformer.h:
            table = layer.attn.embed_positions
            angles = np.arange(len(table))[:, None] * 10000.0 ** -(np.arange(0, table.shape[1], 2) / table.shape[1])
            table.copy_(torch.from_numpy(np.concatenate((np.sin(angles), np.cos(angles)), 1)))
        return
    inner = getattr(model, "model", None) or model.gpt_neox

    def forward(x: Any, position_ids: Any, layer_type: str | None = None) -> tuple[Any, Any]:
        frequencies, factor = exact_frequencies(model.config, layer_type)
        angles = position_ids.double()[..., None] * torch.from_numpy(np.concatenate((frequencies, frequencies)))
        return (angles.cos() * factor).to(x.dtype), (angles.sin() * factor).to(x.dtype)

    inner.rotary_emb.forward = forward


@pytest.mark.parametrize("name", MAIN)
def test_far_positions_are_a_hundred_times_nearer(name):
    other = {"n_positions": 1_000_064} if name == "gptj" else {}
    model, ids = build(name, **other), tokens(2, 32)
    positions = torch.arange(1_000_000, 1_000_032)[None]
    usual = logits(model, ids, position_ids=positions)
    with patch_transformers(model):
        ours = logits(model, ids, position_ids=positions)
    make_exact(model)
    exact = logits(model, ids, position_ids=positions)
    assert error(ours, exact) <= LOGITS
    assert error(ours, exact) <= error(usual, exact) / 100


# ---- torch.compile -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "grad"), [("llama", False), ("llama", True), ("gptj", False), ("gpt_neox", True)])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_without_a_break(name, grad):
    model = build(name)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    with torch.set_grad_enabled(grad), patch_transformers(model):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for length in (24, 37, 51):
            ids = tokens(2, length)
            found = compiled(ids, use_cache=False).logits
            assert error(found, model(ids, use_cache=False).logits) <= 1e-5
        if grad:
            found.sum().backward()
            assert all(torch.isfinite(weights.grad).all() for weights in model.parameters() if weights.grad is not None)
    assert len(graphs) == 2  # one for the first length, one for any
    assert any("fastpe" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_before_it_was_patched():
    model, ids = build("llama"), tokens(2, 24)
    compiled, far = torch.compile(model, fullgraph=True, backend="eager"), torch.arange(10**6, 10**6 + 24)[None]
    before = logits(compiled, ids, position_ids=far)
    with patch_transformers(compiled):
        assert torch.equal(logits(compiled, ids, position_ids=far), logits(model, ids, position_ids=far))
    assert torch.equal(logits(compiled, ids, position_ids=far), before)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_longrope():
    model = long_phi3()
    with patch_transformers(model):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for length in (16, 33, 60, 20):
            assert error(logits(compiled, tokens(2, length)), logits(model, tokens(2, length))) <= 1e-5


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layer_by_layer():
    model, ids = build("llama"), tokens(2, 10)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with patch_transformers(model):
        expected = model.generate(ids, **options)
        for layer in model.model.layers:
            layer.compile(backend="eager")
        assert torch.equal(model.generate(ids, **options), expected)


def test_settled_rules_are_the_rules():
    rule = fastpe.scaling.LongRoPE(SHORT, LONG, 32, 8.0)
    for encoding in (fastpe.Rotary(scaling=rule), fastpe.Rotary(scaling=fastpe.scaling.DynamicNTK(4.0, 32))):
        for length in (1, 32, 33, 100):
            settled, rest = patching.settled(encoding, length)
            expected, found = encoding.frequencies(16, length), settled.frequencies(16, rest)
            assert np.array_equal(found[0], expected[0])
            assert found[1] == expected[1]
            assert dataclasses.replace(settled, scaling=None) == fastpe.Rotary()
