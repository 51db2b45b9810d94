"""What ``patch_transformers`` patches, undoes, copies and refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import cases
import pytest
import torch_marks

torch = pytest.importorskip("torch")
from small_models import LOGITS, SIZE, build, error, logits, modelling, tokens  # noqa: E402

import fastpe  # noqa: E402
from fastpe.torch import _rotation as patching  # noqa: E402
from fastpe.torch.transformers import patch_transformers  # noqa: E402

pytestmark = torch_marks.PATCHES
transformers = cases.transformers()


# ---- what is patched, and undone ---------------------------------------------------------------------------------------------


def test_changes_say_what():
    encoding = "Rotary(base=10000.0, interleaved=True, rotary_dim=8)"
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


def test_other_models_keep_their_own(rotations):
    patched, other, ids = build("llama"), build("llama", num_attention_heads=8), tokens(2, 24)
    before = logits(other, ids)
    with patch_transformers(patched):
        assert torch.equal(logits(other, ids), before)
        assert not rotations
        logits(patched, ids)
        assert len(rotations) == 2


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


def test_a_rule_stretches_a_model():
    """As the same weights do in a model whose configuration has the rule."""
    rule = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    plain, wanted, ids = build("llama"), build("llama", rope_parameters=rule), tokens(1, 40)
    before = logits(plain, ids)
    with patch_transformers(plain, scaling=fastpe.scaling.YaRN(4.0, 64)) as patched:
        assert "YaRN" in patched.changes[0]
        assert error(logits(plain, ids), logits(wanted, ids)) <= LOGITS
    assert torch.equal(logits(plain, ids), before)
    with patch_transformers(plain, fastpe.Rotary(500_000.0)):
        other = build("llama", rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
        assert error(logits(plain, ids), logits(other, ids)) <= LOGITS


def test_a_rule_for_a_type_of_layers():
    model, ids = build("gemma3_text"), tokens(1, 40)
    with patch_transformers(model, scaling={"full_attention": fastpe.scaling.Linear(8.0)}) as patched:
        (change,) = (one for one in patched.changes if "rotary" in one and "forward" in one)
        assert change.count("Linear") == 1
        assert "full_attention Rotary(base=" in change
        one = logits(model, ids)
    with patch_transformers(model, scaling=fastpe.scaling.Linear(8.0)):
        assert error(logits(model, ids), one) > LOGITS


@pytest.mark.parametrize("given", [{"scaling": 4.0}, {"encoding": 10000.0}, {"encoding": fastpe.Sinusoidal()}])
def test_what_is_no_rule_is_refused(given):
    model = build("llama")
    with pytest.raises(TypeError, match=f"{next(iter(given))} must be"):
        patch_transformers(model, **given)
    assert "forward" not in model.model.rotary_emb.__dict__


# ---- copies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gptj", "gemma3_text"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_copies_are_patched_too(name, copied, rotations):
    model, ids = build(name), tokens(2, 24)
    before = logits(model, ids)
    with patch_transformers(model):
        ours = logits(model, ids)
        other = copied(model)
    rotations.clear()
    assert torch.equal(logits(other, ids), ours)
    assert rotations
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


def test_decoders_inside_other_modules(rotations):
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
                rotations.clear()
                part(ids)
                assert rotations


def test_meta_device():
    with torch.device("meta"):
        models = [build("llama"), build("gptj")]
    for model in models:
        with patch_transformers(model) as patched:
            assert patched.changes


@pytest.mark.parametrize("garbage", [0.0, float("nan"), -1.0, 1e30])
def test_weights_that_come_after_to_empty(garbage):
    """Frequencies are in no state dict: what stands in their place is not taken for any."""
    model, ids = build("llama"), tokens(1, 8)
    with torch.device("meta"):
        empty = build("llama")
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(model.state_dict())
    for name, buffer in empty.named_buffers():
        if "inv_freq" in name:
            buffer.fill_(garbage)
            buffer[1] = abs(garbage) * 2  # they do not fall
    with patch_transformers(empty) as patched:
        assert patched.changes[0] == "model.rotary_emb.forward: Rotary(base=10000.0)"
        assert error(logits(empty, ids), logits(model, ids)) <= LOGITS


def test_places_move_between_devices():
    rotation = patching.Rotation({}, {}, torch.tensor([1, 2]), None, None)
    assert rotation.to(torch.float32) is rotation
    assert rotation.to(dtype=torch.float32) is rotation
    assert rotation.to("meta", non_blocking=True).offset.is_meta
    assert rotation.to(device=torch.device("meta")).encodings is rotation.encodings


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_unknown_models_are_refused():
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
    bert = transformers.BertModel(transformers.BertConfig(**small))
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
    )
    with pytest.raises(ValueError, match=r"make cosines and sines of positions, .* got model_type 'bert'\."):
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
        torch.mul(patching.Rotation({}, {}, 0, None, None), torch.ones(2))


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
