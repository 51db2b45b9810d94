"""Hugging Face models that rotate with fastpe: small random ones, beside themselves unpatched."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = cases.transformers()

import fastpe  # noqa: E402
from fastpe.torch import transformers as patching  # noqa: E402
from fastpe.torch.transformers import patch_transformers  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        # Of PyTorch's compiler, as it traces and lowers models
        "ignore::DeprecationWarning:torch.*",
        "ignore::FutureWarning:torch.*",
    ),
    pytest.mark.usefixtures("nothing_left"),
]

VOCABULARY = 101
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = SIZE | {"head_dim": 16}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 1.0}
YARN |= {"mscale_all_dim": 0.8, "beta_fast": 4, "beta_slow": 1}
SHORT, LONG = [1 + i / 8 for i in range(8)], [2.0 + i for i in range(8)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": SIZE | {"logit_scale": 1.0},
    "cohere2": SIZE | {"logit_scale": 1.0, "sliding_window": 8},
    "deepseek_v3": SIZE
    | LATENT
    | ROUTED
    | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "max_position_embeddings": 2560, "rope_parameters": YARN},
    "ernie4_5": SIZE,
    "gemma": HEAD,
    "gemma2": HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "glm": HEAD,
    "glm4": HEAD,
    "gpt_neox": SIZE | {"rotary_pct": 0.25},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": VOCABULARY, "n_positions": 4096}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "granite": SIZE,
    "helium": HEAD,
    "llama": SIZE,
    "mistral": SIZE | {"sliding_window": 8},
    "mixtral": SIZE | {"num_local_experts": 4},
    "olmo2": SIZE,
    "phi": SIZE | {"partial_rotary_factor": 0.5},
    "phi3": SIZE | {"partial_rotary_factor": 0.5},
    "qwen2": SIZE,
    "qwen2_moe": SIZE | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": HEAD,
    "qwen3_moe": HEAD | EXPERTS,
    "smollm3": SIZE | {"no_rope_layers": [1, 0]},
    "stablelm": SIZE | {"partial_rotary_factor": 0.25},
    "starcoder2": SIZE,
}
MAIN = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma3_text", "gpt_neox", "gptj", "deepseek_v3"]
LOGITS = 1e-4  # of float32 logits up to 5 at positions below 100: measured 1e-5


def build(name: str, **other: Any) -> Any:
    """A model whose attention looks far: with initial weights it would hardly see positions."""
    config = transformers.CONFIG_MAPPING[name](**copy.deepcopy(FAMILIES[name] | other))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.15)
    return model


def tokens(*shape: int, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, shape))


def logits(model: Any, ids: Any, **options: Any) -> Any:
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


def error(found: Any, expected: Any) -> float:
    return float((found - expected).detach().abs().max())


def modelling(name: str) -> Any:
    return sys.modules[f"transformers.models.{name}.modeling_{name}"]


# ---- the same results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name, turns):
    model, ids = build(name), tokens(2, 24)
    before = logits(model, ids)
    with patch_transformers(model) as patched:
        after = logits(model, ids)
        assert patched.changes
    calls = {"gptj": 2 * 2, "smollm3": 1}.get(
        name, model.config.num_hidden_layers
    )  # q and k one by one; a layer without positions
    assert len(turns) == calls
    assert error(after, before) <= LOGITS
    assert torch.equal(logits(model, ids), before)  # undone


def test_every_known_type_is_tested():
    assert {name.removesuffix("_text") for name in FAMILIES} == {family.name for family in patching._FAMILIES}


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
def test_generation_with_a_cache(name, padded, turns):
    model, ids = build(name), tokens(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[1, :1] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(ids, **options)
    with patch_transformers(model):
        after = model.generate(ids, **options)
    assert torch.equal(after, before)
    whole = [turn for turn in turns if isinstance(turn.offset, int) and turn.positions is None]
    rows = [turn for turn in turns if not isinstance(turn.offset, int)]
    assert len(whole) == len(turns) if not padded else rows  # padded steps have an offset for each sequence


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


def long_phi3() -> Any:
    return build(
        "phi3",
        partial_rotary_factor=1.0,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE,
    )


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


# ---- what is patched, and undone ---------------------------------------------------------------------------------------------


def test_changes_say_what():
    encoding = "Rotary(base=10000.0, interleaved=True)"
    model = build("gptj")
    with patch_transformers(model) as patched:
        *layers, function = patched.changes
        assert layers == [f"transformer.h.{i}.attn._get_embed_positions: {encoding}" for i in range(2)]
        assert function == "transformers.models.gptj.modeling_gptj.apply_rotary_pos_emb"
        assert repr(patched).count("\n") == 3
        assert repr(patched).startswith("Patched, 3 changes")
    assert patched.changes == ()


def test_undo_puts_everything_back():
    model, function = build("llama"), modelling("llama").apply_rotary_pos_emb
    attributes = dict(model.model.rotary_emb.__dict__)
    patched = patch_transformers(model)
    assert modelling("llama").apply_rotary_pos_emb is not function
    assert modelling("llama").apply_rotary_pos_emb.__name__ == "apply_rotary_pos_emb"
    patched.undo()
    patched.undo()
    assert modelling("llama").apply_rotary_pos_emb is function
    assert model.model.rotary_emb.__dict__ == attributes


def test_a_forward_of_the_instance_comes_back():
    model = build("llama")
    rotary = model.model.rotary_emb
    own = rotary.forward
    rotary.forward = own
    patch_transformers(model).undo()
    assert rotary.__dict__["forward"] is own
    patched = patch_transformers(model)
    ours, rotary.forward = rotary.forward, own
    with pytest.raises(
        RuntimeError, match=r"Patched.undo: forward must be what patch_transformers set, got another at model.rotary_emb"
    ):
        patched.undo()
    rotary.forward = ours
    patched.undo()
    assert rotary.forward is own


def test_an_error_inside_with_undoes_too():
    model, ids = build("llama"), tokens(1, 8)
    before = logits(model, ids)
    with pytest.raises(ZeroDivisionError), patch_transformers(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), before)


def test_patching_twice_changes_nothing():
    model, ids = build("llama"), tokens(1, 8)
    with patch_transformers(model):
        ours = logits(model, ids)
        with patch_transformers(model) as again:
            assert again.changes == ()
            assert repr(again) == "Patched, 0 changes"
        assert torch.equal(logits(model, ids), ours)


def test_other_models_keep_their_own(turns):
    patched, other, ids = build("llama"), build("llama", num_attention_heads=8), tokens(2, 24)
    before = logits(other, ids)
    with patch_transformers(patched):
        assert torch.equal(logits(other, ids), before)
        assert not turns
        logits(patched, ids)
        assert len(turns) == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_models_are_undone_in_any_order(order):
    models = [build("llama"), build("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), build("gptj")]
    ids = tokens(2, 24)
    before = [logits(model, ids) for model in models]
    patches = [patch_transformers(model) for model in models]
    undone = set()
    for i in order:
        patches[i].undo()
        undone.add(i)
        for j, model in enumerate(models):
            assert error(logits(model, ids), before[j]) <= (0 if j in undone else LOGITS)


def test_threads_patch_and_undo():
    models, ids = [build("llama") for _ in range(4)], tokens(1, 8)
    before, function, failures = logits(models[0], ids), modelling("llama").apply_rotary_pos_emb, []

    def work(model: Any) -> None:
        for _ in range(25):
            with patch_transformers(model):
                if error(logits(model, ids), before) > LOGITS:
                    failures.append("patched")
            if not torch.equal(logits(model, ids), before):
                failures.append("undone")

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert modelling("llama").apply_rotary_pos_emb is function


def test_no_model_is_kept_alive():
    model = build("llama")
    patched, reference = patch_transformers(model), weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert not patching._wrapped
    assert patched.changes == ()
    patched.undo()


# ---- copies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gptj", "gemma3_text"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_copies_are_patched_too(name, copied, turns):
    model, ids = build(name), tokens(2, 24)
    before = logits(model, ids)
    with patch_transformers(model):
        ours = logits(model, ids)
        other = copied(model)
    turns.clear()
    assert torch.equal(logits(other, ids), ours)
    assert turns
    assert torch.equal(logits(model, ids), before)
    with patch_transformers(other) as patched:  # takes the copy over
        assert patched.changes
    assert torch.equal(logits(other, ids), before)


def test_what_was_patched_cannot_be_copied():
    model = build("llama")
    with patch_transformers(model) as patched, pytest.raises(TypeError, match="Patched: it cannot be copied or pickled"):
        copy.deepcopy(patched)


# ---- where the decoder is ----------------------------------------------------------------------------------------------------


class Adapter(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: Any) -> Any:
        return self.inner(ids)


def test_decoders_inside_other_modules(turns):
    ids = tokens(2, 8)
    config = transformers.LlamaConfig(**SIZE)
    models = [
        transformers.LlamaModel(config),
        transformers.LlamaForSequenceClassification(config),
        Adapter(build("llama")),
        torch.nn.ModuleList([build("llama"), build("gptj")]),
    ]
    for model, count in zip(models, (2, 2, 2, 5), strict=True):
        with patch_transformers(model) as patched, torch.no_grad():
            assert len(patched.changes) == count
            for part in model if isinstance(model, torch.nn.ModuleList) else [model]:
                turns.clear()
                part(ids)
                assert turns


def test_meta_device():
    with torch.device("meta"):
        models = [build("llama"), build("gptj")]
    for model in models:
        with patch_transformers(model) as patched:
            assert patched.changes


def test_places_move_between_devices():
    turn = patching._Turn(fastpe.Rotary(), torch.tensor([1, 2]), None, None)
    assert turn.to(torch.float32) is turn
    assert turn.to(dtype=torch.float32) is turn
    assert turn.to("meta", non_blocking=True).offset.is_meta
    assert turn.to(device=torch.device("meta")).encoding is turn.encoding


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_unknown_models_are_refused():
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
    bert = transformers.BertModel(transformers.BertConfig(**small))
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
    )
    with pytest.raises(ValueError, match=r"one of these types: cohere, .* llama, .* starcoder2, got model_type 'bert'\."):
        patch_transformers(bert)
    with pytest.raises(ValueError, match="got model_type 'gpt2'"):
        patch_transformers(Adapter(gpt2))
    with pytest.raises(TypeError, match=r"patch_transformers: model must be a torch.nn.Module, got str 'llama'\."):
        patch_transformers("llama")
    with pytest.raises(TypeError, match=r"contain, a model of transformers, got torch.nn.modules.linear.Linear\."):
        patch_transformers(torch.nn.Linear(2, 2))


def test_frequencies_that_the_configuration_does_not_describe_are_refused():
    pair = torch.nn.ModuleList([build("llama"), build("llama")])
    function = modelling("llama").apply_rotary_pos_emb
    pair[1].model.rotary_emb.inv_freq.mul_(1.001)
    with pytest.raises(
        ValueError, match=r"patch_transformers: 1.model.rotary_emb must have .* Rotary\(base=10000.0\), got 8 from 1.001 to"
    ):
        patch_transformers(pair)
    assert modelling("llama").apply_rotary_pos_emb is function  # and the first model is as it was
    assert "forward" not in pair[0].model.rotary_emb.__dict__

    model = build("llama")
    model.model.rotary_emb.attention_scaling = 1.25
    with pytest.raises(ValueError, match=r"and 1\.25 for 8 from"):
        patch_transformers(model)

    model = build("gptj")
    model.transformer.h[1].attn.embed_positions.mul_(1.001)
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.attn must have the frequencies"):
        patch_transformers(model)


def test_a_function_that_is_replaced_later_says_so():
    model, module = build("llama"), modelling("llama")
    original = module.apply_rotary_pos_emb
    with patch_transformers(model):
        wrapper, module.apply_rotary_pos_emb = module.apply_rotary_pos_emb, original
        with pytest.raises(AttributeError, match=r"must reach its apply_rotary_pos_emb, got unsqueeze of them elsewhere\."):
            logits(model, tokens(1, 8))
        module.apply_rotary_pos_emb = wrapper

    with pytest.raises(TypeError, match="must reach its apply_rotary_pos_emb, got mul of them"):
        torch.mul(patching._Turn(fastpe.Rotary(), 0, None, None), torch.ones(2))


def test_a_wrapper_of_another_stays():
    model, module, ids = build("llama"), modelling("llama"), tokens(1, 8)
    original, before = module.apply_rotary_pos_emb, logits(model, ids)
    calls = []
    patched = patch_transformers(model)
    ours = module.apply_rotary_pos_emb

    def other(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return ours(*arguments, **options)

    try:
        module.apply_rotary_pos_emb = other
        patched.undo()
        assert module.apply_rotary_pos_emb is other
        assert torch.equal(logits(model, ids), before)
        with patch_transformers(model):
            assert error(logits(model, ids), before) <= LOGITS
        assert module.apply_rotary_pos_emb is other
        assert calls
    finally:
        module.apply_rotary_pos_emb = original


@pytest.mark.parametrize("place", ["keyword", "position"])
def test_heads_behind_rows(place):
    model, module = build("llama"), modelling("llama")
    q, k = torch.randn(2, 5, 4, 16), torch.randn(2, 5, 2, 16)
    cos, sin = model.model.rotary_emb(q, torch.arange(5)[None])
    expected = module.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    with patch_transformers(model):
        cos, sin = model.model.rotary_emb(q, torch.arange(5)[None])
        options = ((2,), {}) if place == "position" else ((), {"unsqueeze_dim": 2})
        found = module.apply_rotary_pos_emb(q, k, cos, sin, *options[0], **options[1])
    assert found[0] is q
    assert max(error(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-6


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
            settled, rest = patching._settled(encoding, length)
            expected, found = encoding.frequencies(16, length), settled.frequencies(16, rest)
            assert np.array_equal(found[0], expected[0])
            assert found[1] == expected[1]
            assert dataclasses.replace(settled, scaling=None) == fastpe.Rotary()
