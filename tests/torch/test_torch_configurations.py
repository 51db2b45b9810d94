"""Every configuration of the installed transformers that rotates: the encoding that is read, against the model's own code."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json

import configurations
import pytest

from fastpe import Rotary
from fastpe._tools.model_config import entries
from fastpe.encodings import config_models
from fastpe.encodings.config_view import Config
from fastpe.scaling import Linear

torch = pytest.importorskip("torch")
functional = pytest.importorskip("fastpe.torch.functional")
transformers = configurations.transformers

TOLERANCE = 2e-4  # at positions up to 181, for float32 angles of theirs
# Run by another type's code, which the sweep compares.
RELATED = {
    "chatglm": "glm",
    "kimi_k2": "deepseek_v3",
    "internlm3": "llama",
    "iquestcoder": "llama",
}


@pytest.fixture(scope="module")
def cases():
    return list(configurations.cases())


def outcome(case):
    """The encoding of a case; None if it is refused, in every form and for the reason that the table has."""
    found = []
    for form, config in case.written().items():
        if case.name in configurations.REFUSED:
            with pytest.raises(ValueError, match=configurations.REFUSED[case.name]):
                Rotary.from_config(config, layer_type=case.layer_type)
        else:
            found.append(Rotary.from_config(config, layer_type=case.layer_type))
            assert found[-1] == found[0], f"{case.name}: the {form} is read otherwise"
    return found[0] if found else None


def error(case, encoding):
    """How far the rotation is from the model's own, at most."""
    theirs = configurations.rotated(case, encoding.position_axes)
    keywords = {"positions": theirs.positions, "seq_axis": theirs.seq_axis}
    ours = functional.apply_rotary(theirs.q, None, encoding, **keywords)
    if theirs.halves:
        ours = torch.cat([ours[..., 0::2], ours[..., 1::2]], dim=-1)
    return float((ours - theirs.result).abs().max())


def test_every_configuration_is_read_as_its_model_computes_or_refused(cases):
    rows = []
    for case in cases:
        encoding = outcome(case)
        far = None if encoding is None else error(case, encoding)
        rows.append(configurations.row(case, encoding))
        assert far is None or far <= TOLERANCE, f"{case.name} {case.layer_type}: {encoding} is off by {far}"
    assert {case.name for case in cases} >= configurations.REFUSED.keys()
    assert sum(case.name not in configurations.REFUSED for case in cases) >= 210
    assert configurations.PAGE.read_text() == configurations.page(rows), "run python tests/helpers/configurations.py"


def test_the_sweep_sees_a_wrong_encoding(cases):
    """Another base, another layout, other axes, another offset: each is far off."""
    named = {case.name: case for case in cases}
    llama, qwen = named["llama.LlamaRotaryEmbedding"], named["qwen2_vl.Qwen2VLRotaryEmbedding"]
    assert error(llama, Rotary()) <= TOLERANCE
    assert error(llama, Rotary(10100.0)) > 0.01
    assert error(llama, Rotary(interleaved=True)) > 1
    assert error(llama, Rotary(rotary_dim=64)) > 1
    assert error(qwen, Rotary(1e6, sections=(16, 24, 24), section_layout="interleaved")) > 1


def test_half_a_head_is_read_as_the_model_computes_or_refused(cases):
    """Many models' code takes no share of a head, whatever the configuration says."""
    outcomes = {True: set(), False: set()}
    for case in cases:
        rule = case.config.__dict__.get("rope_parameters")
        if (
            case.layer_type is not None
            or not rule
            or rule["rope_type"] != "default"
            or case.model_type not in config_models.KNOWN
        ):
            continue
        config = copy.deepcopy(case.config)
        config.rope_parameters = rule | {"partial_rotary_factor": 0.5}
        half = dataclasses.replace(case, config=config)
        read = None
        with contextlib.suppress(ValueError):
            read = Rotary.from_config(config)
        outcomes[read is not None].add(case.model_type)
        if read is not None and read.sections is None:
            assert error(half, read) <= TOLERANCE, case.name
        elif read is None:
            assert error(half, Rotary.from_config(case.config)) <= TOLERANCE, f"{case.name} ignores it"
    assert min(len(found) for found in outcomes.values()) >= 20


def test_every_known_type_was_compared(cases):
    compared = {case.model_type for case in cases}
    known = config_models.KNOWN | config_models.AXIAL.keys() | config_models.REFUSED.keys()
    assert RELATED.keys().isdisjoint(compared)
    assert set(RELATED.values()) <= compared
    assert sorted(known - compared - RELATED.keys() - {"blt", "hunyuan_vl"}) == []


def test_every_other_configuration_is_refused(cases):
    """Composite ones are that of their text; what does not rotate names no base."""
    compared = {case.model_type for case in cases} | RELATED.keys()
    for config in configurations.configurations():
        name = type(config).__name__
        for form in (config, json.loads(config.to_json_string(use_diff=False)), json.loads(config.to_json_string())):
            refusal = None
            try:
                Rotary.from_config(form)
            except (ValueError, KeyError) as error:
                refusal = error.args[0]
            if refusal is None:
                assert {one.model_type for _, one in Config.of(form).rotating()} <= compared, name
            else:
                assert refusal.startswith("Rotary.from_config: "), name


def test_the_command_reads_every_configuration(cases):
    """``python -m fastpe model``: of every part and type of layer what is compared above, or the reason why not."""
    compared = {(case.model_type, case.layer_type): case for case in cases}
    seen = set()
    for config in configurations.configurations():
        for entry in entries(json.loads(config.to_json_string(use_diff=False)), None):
            case = compared.get((entry.model_type, entry.layer_type))
            assert entry.error is None or entry.error.startswith(("Rotary.from_config: ", "Rotary: ")), entry
            if entry.encoding is not None and case is not None and not entry.part:
                assert entry.encoding == Rotary.from_config(config, layer_type=entry.layer_type), entry
                seen.add(entry.model_type)
    assert len(seen) >= 150


# ---- objects -----------------------------------------------------------------------------------------------------------------


def test_a_composite_object_is_its_text():
    config = transformers.Qwen2_5_VLConfig()
    assert Rotary.from_config(config) == Rotary(1e6, sections=(16, 24, 24))
    vision = Rotary.from_config(config, part="vision")
    assert (vision.base, vision.section_frequencies) == (1e4, "own")
    assert vision == Rotary.from_config(config.vision_config)


@pytest.mark.parametrize("name", ["GPT2Config", "BertConfig", "T5Config", "ViTConfig", "WhisperConfig", "CLIPConfig"])
def test_what_does_not_rotate(name):
    with pytest.raises(ValueError, match="nothing in config describes a rotary encoding"):
        Rotary.from_config(getattr(transformers, name)())


def test_a_width_that_differs_by_layer():
    """Transformers raises RuntimeError for the width of a head of such a configuration; that of the layer is read."""
    rule = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = transformers.Gemma4TextConfig(rope_parameters={"full_attention": rule, "sliding_attention": dict(rule)})
    written = json.loads(config.to_json_string(use_diff=False))
    for form in (config, written):
        assert Rotary.from_config(form, layer_type="full_attention") == Rotary(rotary_dim=256, scaling=Linear(2.0))
        assert Rotary.from_config(form, layer_type="sliding_attention") == Rotary(rotary_dim=128, scaling=Linear(2.0))


YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
STEP = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 32, "long_factor": [2.0] * 32, "factor": 4.0}


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        (YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}, {}),
        (YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}, {}),
        (YARN | {"attention_factor": None, "beta_fast": None, "truncate": None}, {}),
        (YARN | {"factor": 0.5}, {}),
        (YARN, {"original_max_position_embeddings": 2048}),
        ({"rope_type": "yarn", "factor": 4.0}, {}),
        (STEP, {}),
        (STEP | {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}, {"original_max_position_embeddings": 1024}),
        (LONG | {"original_max_position_embeddings": 8192}, {"original_max_position_embeddings": 512}),
        (LONG, {}),
        ({"rope_type": "dynamic", "factor": 3.0}, {}),
    ],
)
def test_rules_give_the_frequencies_of_their_functions(rule, more):
    size = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
    given = size | more | {"rope_theta": 5e4, "rope_scaling": rule}
    config = transformers.LlamaConfig(**copy.deepcopy(given))
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    plain = Rotary(5e4).frequencies(64)[0]
    for length in (None, 100, 100_000):
        expected, factor = functions[rule["rope_type"]](config, seq_len=length)
        for form in (config, given):
            found, own = Rotary.from_config(form).frequencies(64, length)
            assert (abs(found - expected.double().numpy()) <= 4e-7 * plain).all()  # they blend in float32
            assert own == pytest.approx(factor, rel=1e-12)
