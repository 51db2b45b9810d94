"""Models whose attention takes its distances from a Remap, beside a slow attention that computes every score by its distance."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import numpy as np
import pytest
import torch_marks

torch = pytest.importorskip("torch")
from small_models import LOGITS, YARN, build, error, logits, tokens, transformers  # noqa: E402

from fastpe import positions, scaling  # noqa: E402
from fastpe._tools import smollm  # noqa: E402
from fastpe.torch import _remapped_attention, patch_transformers  # noqa: E402

pytestmark = torch_marks.PATCHES
LENGTH = 40
REMAPS = {
    "rerope": functools.partial(positions.rerope, window=7),
    "leaky_rerope": functools.partial(positions.leaky_rerope, window=7, factor=3.0),
    "self_extend": functools.partial(positions.self_extend, group=3, window=8),
    "dual_chunk": functools.partial(positions.dual_chunk, chunk=12, local=3),
    "string": functools.partial(positions.string, shift=16, window=4),
}
SELF_EXTEND = REMAPS["self_extend"]
MODELS = {"llama": {}, "qwen3": {}, "phi3": {}, "gpt_neox": {}, "cohere": {}, "granite": {}, "deepseek_v3": {}, "smollm3": {}}
MODELS["qwen2"] = {"rope_parameters": YARN}


# ---- the reference -----------------------------------------------------------------------------------------------------------


def score(q: Any, k: Any, distance: Any, rotary: Any, interleaved: bool, at_end: bool) -> Any:
    """(B, H, Tq, Tk) products of queries and keys turned apart by a distance, in float64."""
    frequencies, factor = rotary.inv_freq.double(), rotary.attention_scaling
    width = 2 * len(frequencies)
    first = q.shape[-1] - width if at_end else 0
    turning = slice(first, first + width)

    def pairs(x: Any) -> tuple[Any, Any]:
        x = x[..., turning]
        return (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)

    (a, b), (c, d) = (pairs(x.double()) for x in (q, k))
    angles = distance[..., None] * frequencies  # B or 1, Tq, Tk, F
    cosines, sines = angles.cos()[:, None], angles.sin()[:, None]
    a, b, c, d = a[:, :, :, None], b[:, :, :, None], c[:, :, None], d[:, :, None]
    turned = ((a * c + b * d) * cosines + (a * d - b * c) * sines).sum(-1) * factor**2
    plain = [x.double().clone() for x in (q, k)]
    for x in plain:
        x[..., turning] = 0
    return turned + plain[0] @ plain[1].mT


class Reference:
    """A model that attends by distances, computed one by one."""

    def __init__(self, model: Any, distance: Any) -> None:
        self.model, self.distance = model, distance
        base = getattr(model, "model", None) or model.gpt_neox
        self.rotary, kind = base.rotary_emb, model.config.model_type
        self.interleaved, self.at_end = kind == "cohere", kind == "deepseek_v3"

    def attention(self, module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, **options: Any) -> Any:
        heads = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
        distance = self.distance if getattr(module, "use_rope", True) else torch.zeros_like(self.distance)
        scores = score(q, k, distance, self.rotary, self.interleaved, self.at_end) * scaling
        return (scores + mask.double()).softmax(-1).matmul(v.double()).to(q.dtype).transpose(1, 2), None

    def __enter__(self) -> Any:
        def identity(x: Any, position_ids: Any) -> Any:
            shape = *position_ids.shape, 2 * len(self.rotary.inv_freq)
            return torch.ones(shape), torch.zeros(shape)

        self.before, self.rotary.forward = self.model.config._attn_implementation, identity
        transformers.AttentionInterface.register("slow_reference", self.attention)
        transformers.AttentionMaskInterface.register("slow_reference", transformers.masking_utils.eager_mask)
        self.model.set_attn_implementation("slow_reference")
        return self.model

    def __exit__(self, *error: object) -> None:
        del self.rotary.forward
        self.model.set_attn_implementation(self.before)


def distances(remap: Any, *rows: Any) -> Any:
    return torch.from_numpy(np.stack([np.asarray(remap(row, row).distance(), np.float64) for row in rows]))


def assert_as_the_reference(model: Any, remap: Any) -> None:
    ids = tokens(2, LENGTH)
    plain = logits(model, ids)
    with patch_transformers(model, remap=remap):
        found = logits(model, ids)
    with Reference(model, distances(remap, np.arange(LENGTH))):
        wanted = logits(model, ids)
    assert error(found, wanted) <= LOGITS
    assert error(found, plain) >= 100 * LOGITS  # it does something


# ---- the same as the reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMAPS)
def test_every_remap_is_what_its_distances_say(name: str) -> None:
    assert_as_the_reference(build("llama"), REMAPS[name])


@pytest.mark.parametrize("name", MODELS)
def test_every_layout(name: str) -> None:
    """Pairs of both kinds, some of the channels, the last ones, YaRN's amplitude, layers without positions."""
    assert_as_the_reference(build(name, **MODELS[name]), SELF_EXTEND)


@pytest.mark.parametrize("rows", [1, 7, 16])
@pytest.mark.parametrize("name", ["self_extend", "dual_chunk"])
def test_blocks_of_queries(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remapped_attention, "_ROWS", rows)
    assert_as_the_reference(build("llama"), REMAPS[name])


PADDING = 9


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("form", ["2-D", "4-D"])
@pytest.mark.parametrize("rows", [7, 1024])
def test_masks_of_padded_batches(implementation: str, form: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remapped_attention, "_ROWS", rows)
    model, ids = build("llama"), tokens(3, LENGTH)
    model.set_attn_implementation(implementation)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    if form == "4-D":
        seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & mask[:, None, None].bool()
        mask = seen if implementation == "sdpa" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    with patch_transformers(model, remap=SELF_EXTEND):
        found = logits(model, ids, attention_mask=mask, position_ids=where)
        alone = logits(model, ids[:1, PADDING:])
    with Reference(model, distances(SELF_EXTEND, np.arange(LENGTH))):
        wanted = logits(model, ids[1:])
    assert error(found[1:], wanted) <= LOGITS
    assert error(found[:1, PADDING:], alone) <= LOGITS


def test_positions_that_start_again() -> None:
    """Two texts in one row: each is read as if alone."""
    model, ids = build("llama"), tokens(1, LENGTH)
    half = LENGTH // 2
    with patch_transformers(model, remap=SELF_EXTEND):
        alone = torch.cat([logits(model, part) for part in (ids[:, :half], ids[:, half:])], 1)
        found = logits(model, ids, position_ids=torch.arange(LENGTH)[None] % half)
    assert error(found, alone) <= LOGITS


# ---- caches ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def step_by_step(model: Any, ids: Any, first: int, cache: Any, mask: Any = None, width: int = 1) -> Any:
    """Logits of a text that is read in one go up to a token, and then a few at a time."""
    found = []
    for start, stop in [(0, first), *((i, i + width) for i in range(first, ids.shape[1], width))]:
        options: Any = {} if mask is None else {"attention_mask": mask[:, :stop]}
        if mask is not None:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:stop]
        found.append(model(ids[:, start:stop], past_key_values=cache, **options).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "deepseek_v3"])
def test_decoding(name: str, static: bool, width: int) -> None:
    model, ids = build(name), tokens(2, LENGTH)
    kind = transformers.StaticCache if static else transformers.DynamicCache
    cache = kind(config=model.config, **({"max_cache_len": LENGTH + 8} if static else {}))
    with patch_transformers(model, remap=SELF_EXTEND):
        found = step_by_step(model, ids, 10, cache, width=width)
        assert error(found, logits(model, ids)) <= LOGITS


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_with_padding(side: str, static: bool) -> None:
    """On the left; or on the right of the prompt, as long as the mask goes on saying so."""
    model, ids = build("llama"), tokens(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, slice(0, 4) if side == "left" else slice(6, 10)] = 0
    cache = transformers.StaticCache(model.config, LENGTH + 8) if static else transformers.DynamicCache(config=model.config)
    with patch_transformers(model, remap=SELF_EXTEND):
        found = step_by_step(model, ids, 10, cache, mask)
        for row in (0, 1):
            real = mask[row].bool()
            assert error(found[row, real], logits(model, ids[row : row + 1, real])[0]) <= LOGITS


def test_generation() -> None:
    model, ids = build("llama"), tokens(2, 20)
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with patch_transformers(model, remap=SELF_EXTEND):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(logits(model, found)[:, 19:-1].argmax(-1), found[:, 20:])
        searched = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, **options)
    assert searched.shape == found.shape


# ---- the same as the plain patch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "phi3", "cohere", "gpt_neox"])
def test_within_the_first_branch_nothing_changes(name: str) -> None:
    model, ids = build(name), tokens(2, LENGTH)
    with patch_transformers(model):
        plain = logits(model, ids)
    with patch_transformers(model, remap=functools.partial(positions.self_extend, window=LENGTH)):
        assert error(logits(model, ids), plain) <= LOGITS / 10


def test_with_a_scaling_and_an_encoding() -> None:
    model, ids = build("llama"), tokens(2, LENGTH)
    stretched = build("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    with (
        patch_transformers(model, scaling=scaling.Linear(2.0), remap=SELF_EXTEND),
        patch_transformers(stretched, remap=SELF_EXTEND),
    ):
        assert error(logits(model, ids), logits(stretched, ids)) <= LOGITS


def test_bfloat16() -> None:
    model, ids = build("llama"), tokens(2, LENGTH)
    with patch_transformers(model, remap=SELF_EXTEND) as patched:
        exact = logits(model, ids)
        patched.undo()
        plain = logits(model, ids)
    model.to(torch.bfloat16)
    own = error(logits(model, ids), plain)
    with patch_transformers(model, remap=SELF_EXTEND):
        found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert error(found, exact) <= 1.5 * own


def test_gradients_are_those_of_the_reference() -> None:
    model, ids = build("llama"), tokens(2, LENGTH)

    def gradients() -> dict[str, Any]:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: weights.grad.clone() for name, weights in model.named_parameters()}

    with patch_transformers(model, remap=SELF_EXTEND):
        found = gradients()
    with Reference(model, distances(SELF_EXTEND, np.arange(LENGTH))):
        wanted = gradients()
    for name, one in wanted.items():
        assert error(found[name], one) <= 1e-5 * max(1.0, float(one.abs().max()))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_breaks() -> None:
    model = build("llama")
    with patch_transformers(model, remap=SELF_EXTEND):
        compiled = torch.compile(model, backend="aot_eager")
        for length in (24, LENGTH):
            assert error(logits(compiled, tokens(2, length)), logits(model, tokens(2, length))) <= LOGITS


# ---- changes and refusals ----------------------------------------------------------------------------------------------------


def test_it_says_what_it_changed_and_undoes_it() -> None:
    model, other, ids = build("llama"), build("llama"), tokens(2, LENGTH)
    before, hooks = logits(model, ids), len(model.model.layers[0].self_attn._forward_pre_hooks)
    with patch_transformers(model, remap=SELF_EXTEND) as patched:
        assert "model.layers.1.self_attn: self_extend(group=3, window=8)" in patched.changes
        assert len(patched.changes) == 4
        assert not torch.equal(logits(model, ids), before)
        assert torch.equal(logits(other, ids), before)
        assert not patch_transformers(model).changes
    assert torch.equal(logits(model, ids), before)
    assert model.model.layers[0].self_attn.config is model.config
    assert len(model.model.layers[0].self_attn._forward_pre_hooks) == hooks


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies_are_remapped_too(way: str) -> None:
    model, ids = build("llama"), tokens(2, LENGTH)
    before = logits(model, ids)
    with patch_transformers(model, remap=SELF_EXTEND):
        wanted = logits(model, ids)
        twin = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(twin, ids), wanted)
    with patch_transformers(twin) as patched:
        assert "model.layers.0.self_attn: self_extend(group=3, window=8)" in patched.changes
        assert torch.equal(logits(twin, ids), wanted)
    assert torch.equal(logits(twin, ids), before)
    assert twin.model.layers[0].self_attn.config is twin.config


REFUSED = {
    "gptj": "no attention module",
    "gemma2": "sliding_attention",
    "gemma3_text": "2 types of layers|sliding_attention",
    "mistral": "sliding_window=8",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_reach_is_refused(name: str) -> None:
    model, ids = build(name), tokens(2, LENGTH)
    before = logits(model, ids)
    with pytest.raises(ValueError, match=REFUSED[name]):
        patch_transformers(model, remap=SELF_EXTEND)
    assert torch.equal(logits(model, ids), before)
    assert not any("forward" in vars(one) or one._forward_pre_hooks for one in model.modules())


def test_other_implementations_are_refused() -> None:
    model = build("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attn_implementation='flex_attention'"):
        patch_transformers(model, remap=SELF_EXTEND)


@pytest.mark.parametrize("remap", [3, lambda queries, keys: queries])
def test_what_is_no_remap_is_refused(remap: Any) -> None:
    with pytest.raises(TypeError, match="remap must"):
        patch_transformers(build("llama"), remap=remap)


def test_random_numbers_are_the_callers() -> None:
    model = build("llama")
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with patch_transformers(model, remap=SELF_EXTEND):
        assert torch.equal(torch.rand(3), wanted)


# ---- a real model ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_language_model_attends_by_distances() -> None:
    if smollm.problem() is not None:
        pytest.skip(smollm.problem())
    language = smollm.load()
    remap = functools.partial(positions.self_extend, group=4, window=16)
    ids = torch.tensor(
        [language.prompt("Name the capitals of France, Spain, Italy, Portugal, Greece, Norway, Sweden and Finland.")]
    )
    with patch_transformers(language.model, remap=remap) as patched:
        assert len(patched.changes) == 32
        found = logits(language.model, ids)
    with Reference(language.model, distances(remap, np.arange(ids.shape[1]))):
        wanted = logits(language.model, ids)
    assert error(found, wanted) <= 1e-3 * float(wanted.abs().max())
