"""Every rotary module of the installed transformers, its configuration, and what its model's own code makes of random q and k."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import inspect
import json
import math
import pathlib
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cases as shapes_and_libraries
import pytest

torch = pytest.importorskip("torch")
transformers = shapes_and_libraries.transformers()

ROWS = 7
STEPS = torch.tensor([[0, 1, 2, 5, 17, 90, 33]])
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "internals" / "configurations.md"
MODELS = pathlib.Path(transformers.__file__).parent / "models"
# What a default configuration must have for its model to rotate at all, or to have an even width.
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
COMPASS = {"full_attention": {"rope_type": "default", "rope_theta": 5e4}}
CROSSED = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 16, 16, 16]}
CHANGES: dict[str, dict[str, Any]] = {
    "CohereCompassTextConfig": {"rope_parameters": COMPASS},
    "EsmConfig": {"position_embedding_type": "rotary"},
    "GraniteMoeHybridConfig": {"position_embedding_type": "rope"},
    "Glm4MoeConfig": {"head_dim": 128},
    "Glm4vMoeTextConfig": {"head_dim": 128},
    "Glm4vTextConfig": {"rope_parameters": HALF},
    "GlmOcrTextConfig": {"rope_parameters": HALF, "head_dim": 128},
    "GlmImageTextConfig": {"rope_parameters": HALF},
    "HunYuanVLTextConfig": {"rope_parameters": CROSSED, "head_dim": 128},
    "MiniMaxM3VLTextConfig": {"rope_parameters": HALF | {"rope_theta": 5e6}},
    "Qwen3OmniMoeTextConfig": {"head_dim": 128},
    "Qwen3OmniMoeTalkerTextConfig": {"head_dim": 128},
    "SeamlessM4TConfig": {"position_embeddings_type": "rotary"},
    "Wav2Vec2BertConfig": {"position_embeddings_type": "rotary"},
    "Wav2Vec2ConformerConfig": {"position_embeddings_type": "rotary"},
    "Zamba2Config": {"use_mem_rope": True},
}
# The configuration of modules whose signature does not say it.
CONFIGURED = {
    "ClvpRotaryPositionalEmbedding": "ClvpEncoderConfig",
    "SeamlessM4TConformerRotaryPositionalEmbedding": "SeamlessM4TConfig",
    "Wav2Vec2BertRotaryPositionalEmbedding": "Wav2Vec2BertConfig",
    "Wav2Vec2ConformerRotaryPositionalEmbedding": "Wav2Vec2ConformerConfig",
    "Qwen3OmniMoeRotaryEmbedding": "Qwen3OmniMoeCode2WavConfig",
    "Qwen3OmniMoeTalkerRotaryEmbedding": "Qwen3OmniMoeTalkerTextConfig",
    "DeepseekOcr2VisionRotaryEmbedding": "DeepseekOcr2VisionEncoderConfig",
}
# What cannot be read, and why; a release of transformers with another adds a row here, or in `fastpe/encodings/config_models.py`.
REFUSED = {
    "clvp.ClvpRotaryPositionalEmbedding": "the key use_rotary_embedding is not understood",  # its values rotate too
    "efficientloftr.EfficientLoFTRRotaryEmbedding": "all heads rotate as one",
    "esmfold2.EsmFold2RotaryEmbedding": "is not understood and may change the rotation",  # atoms in space
    "gemma4.Gemma4VisionRotaryEmbedding": "each half of a head rotates on its own",
    "hunyuan_vl.HunYuanVLRotaryEmbedding": "which is not a rotation",
    "inkling2.Inkling2VisionRotaryEmbedding": "its columns come before its rows",
    "kimi_k25.Kimi_K25VisionRotaryEmbedding": "its columns come before its rows",
    "mistral_large4.MistralLarge4TextRotaryEmbedding": "its frequencies were learned",
    "musicflamingo.MusicFlamingoRotaryEmbedding": "its angles depend on time stamps",
    "nanochat.NanoChatRotaryEmbedding": "it turns the other way",
    "step3p7.Step3p7VisionRotaryEmbedding": "its columns come before its rows",
}
# Without a module of their own: functions that make a table.
TABLES = {"gptj": "GPTJConfig", "codegen": "CodeGenConfig", "roformer": "RoFormerConfig"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A rotary module, an object that configures it, and a type of layer."""

    name: str
    module: Any
    rotary: Any
    config: Any
    layer_type: str | None

    @property
    def model_type(self) -> str:
        return str(self.config.model_type or "")

    def written(self) -> dict[str, Any]:
        """The configuration in each of the forms in which it may be given."""
        written = {name: json.loads(self.config.to_json_string(use_diff=name == "diff")) for name in ("JSON", "diff")}
        return {"object": self.config, **written}


def configured(name: str) -> Any:
    """A configuration of a class of transformers, by its name."""
    for path in sorted(MODELS.rglob("configuration_*.py")):
        if re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE):
            return getattr(_imported(path), name)(**copy.deepcopy(CHANGES.get(name, {})))
    raise LookupError(name)


def _imported(path: pathlib.Path) -> Any:
    return importlib.import_module(f"transformers.models.{'.'.join(path.relative_to(MODELS).with_suffix('').parts)}")


def _inside(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, transformers.PretrainedConfig):
            yield from _inside(value)


def _class_of(rotary: Any) -> Any:
    with contextlib.suppress(Exception):
        for hint in typing.get_type_hints(rotary.__init__).values():
            if isinstance(hint, type) and issubclass(hint, transformers.PretrainedConfig):
                return hint
    return None


def _configuration(rotary: Any) -> Any:
    """The configuration with which a rotary module is made: that of its signature, or a part of it."""
    if rotary.__name__ in CONFIGURED:
        return configured(CONFIGURED[rotary.__name__])
    kind = _class_of(rotary)
    first = kind(**copy.deepcopy(CHANGES.get(kind.__name__, {})))
    tried = list(_inside(first))
    texts = [one for one in tried if str(one.model_type).endswith(("_text", "_text_model"))]
    wanted = "vision" in rotary.__name__.lower()
    for one in tried if wanted else [*tried[:1], *texts, *tried[1:]]:
        changed = type(one)(**copy.deepcopy(CHANGES[type(one).__name__])) if type(one).__name__ in CHANGES else one
        with contextlib.suppress(Exception):
            rotary(changed)
            return changed
    return first


def cases() -> Iterator[Case]:
    """One for each rotary module and type of layer."""
    transformers.logging.set_verbosity_error()
    for path in sorted(MODELS.rglob("modeling_*.py")):
        if not re.search(r"rotary|rope", path.read_text(), re.IGNORECASE):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _imported(path)
            rotaries = {name: found for name, found in vars(module).items() if _is_rotary(name, found, module)}
            pairs = [(found, _configuration(found)) for found in rotaries.values()]
            pairs += _others(path.parent, list(rotaries.values()), {config.model_type for _, config in pairs})
            for found, config in pairs:
                for layer_type in _layer_types(config):
                    yield Case(f"{path.stem[9:]}.{found.__name__}", module, found, config, layer_type)
            if path.parent.name in TABLES:
                yield Case(path.parent.name, module, None, configured(TABLES[path.parent.name]), None)


def _others(folder: pathlib.Path, rotaries: list[Any], seen: set[str]) -> Iterator[tuple[Any, Any]]:
    """Further configurations of a folder that its rotary modules take."""
    for path in sorted(folder.glob("configuration_*.py")):
        for config in _made(_imported(path)):
            if config.model_type in seen or not config.__dict__.get("rope_parameters"):
                continue
            for rotary in rotaries:
                with contextlib.suppress(Exception):
                    rotary(config)
                    yield rotary, config
                    break


def _made(module: Any) -> Iterator[Any]:
    """The configurations of a module that can be made without arguments."""
    for name, found in list(vars(module).items()):
        if isinstance(found, type) and issubclass(found, transformers.PretrainedConfig) and found.__module__ == module.__name__:
            with contextlib.suppress(Exception):
                yield found(**copy.deepcopy(CHANGES.get(name, {})))


def _is_rotary(name: str, found: Any, module: Any) -> bool:
    own = isinstance(found, type) and issubclass(found, torch.nn.Module) and found.__module__ == module.__name__
    return own and re.search(r"Rotary|RoPE|Rope", name) is not None and "Attention" not in name


def _layer_types(config: Any) -> list[str | None]:
    """The types of layer that the module has frequencies for."""
    rules = config.__dict__.get("rope_parameters")
    named = [name for name, rule in rules.items() if isinstance(rule, Mapping)] if isinstance(rules, Mapping) else []
    used = [name for name in named if name in (config.__dict__.get("layer_types") or ())]
    return list(used or named or [None])


# ---- what the model computes -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rotated:
    """q before and after the model's own functions, where its rows stand, and whether it leaves pairs in half layout."""

    q: torch.Tensor
    result: torch.Tensor
    positions: torch.Tensor
    seq_axis: int
    halves: bool = False


def rotated(case: Case, axes: int | None) -> Rotated:
    """What the model's own code does with a random q at the positions of ``axes`` axes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if case.rotary is None:
            return _by_table(case)
        rotary = case.rotary(case.config).eval()
        if re.search("SeamlessM4TConformer|Wav2Vec2", case.name):
            return _speech(case, rotary)
        special = SPECIAL.get(case.name.split(".")[1])
        tables, positions = special(rotary, case.config) if special else _tables(case, rotary, axes)
        return _applied(case, tables, positions)


def _positions(axes: int | None) -> torch.Tensor:
    rows = STEPS[0]
    return rows if axes is None else torch.stack([rows, rows * 2 + 1, rows.flip(0)][:axes])


def _tables(case: Case, rotary: Any, axes: int | None) -> tuple[Any, torch.Tensor]:
    """Cosines and sines, or complex numbers, of the module; positions (T,) or (axes, T)."""
    named = case.layer_type is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    keywords = {"layer_type": case.layer_type} if named else {}
    positions, x = _positions(axes), torch.zeros(1, ROWS, 8)
    if axes is None:
        shapes = [positions[None]]
    elif getattr(rotary, "rope_type", None) == "axial":
        shapes = [positions.T, positions.T[None]]
    else:
        shapes = [positions[:, None]]
    for one in shapes[:-1]:
        with contextlib.suppress(IndexError, RuntimeError):
            return rotary(x, one, **keywords), positions
    return rotary(x, shapes[-1], **keywords), positions


def _apply_function(case: Case) -> Callable[..., Any]:
    """The function with which the attention that this module serves rotates."""
    named = {name: one for name, one in vars(case.module).items() if re.match(r"(vision_)?apply_.*(rot|rope)", name)}
    found = {name: one for name, one in named.items() if inspect.isfunction(one)}
    vision = re.search(r"Vision|ViT|MLCD|Pixtral", case.name) is not None
    text = ("apply_rotary_pos_emb$",) if "Audio" in case.name else ("interleave", "apply_rotary_pos_emb$", "^apply_rotary")
    for wanted in ("vision", "2d", "apply") if vision else text:
        for name, one in sorted(found.items()):
            if re.search(wanted, name):
                return one
    raise LookupError(case.name)


def _applied(case: Case, tables: Any, positions: torch.Tensor) -> Rotated:
    function = _apply_function(case)
    parameters, generator = inspect.signature(function).parameters, torch.Generator().manual_seed(0)
    complex_ones = isinstance(tables, torch.Tensor) and tables.is_complex()
    width = tables.shape[-1] * 2 if complex_ones else tables[0].shape[-1]
    head = _entry(case.config, "head_dim") or (_entry(case.config, "hidden_size") or 0) // (
        _entry(case.config, "num_attention_heads") or 1
    )
    arguments = (tables,) if complex_ones else tuple(tables)
    errors = []
    for wide in dict.fromkeys([head, width, 2 * width]):
        for shape, axis in (((1, 2, ROWS, wide), -2), ((1, ROWS, 2, wide), -3), ((ROWS, 2, wide), -3)):
            q = torch.randn(shape, generator=generator)
            flat = not complex_ones and tables[0].dim() == 2
            keywords = {"unsqueeze_dim": (0 if flat else 1) if axis == -2 else 2} if "unsqueeze_dim" in parameters else {}
            both = [q, q.clone()] if len(parameters) - len(keywords) > 1 + len(arguments) else [q]
            try:
                result = function(*both, *arguments, **keywords)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                errors.append(error)
                continue
            result = result[0] if isinstance(result, tuple) else result
            if result.shape == q.shape:
                return Rotated(q, result, positions, axis, halves="interleave" in function.__name__)
    raise errors[0]


def _entry(config: Any, name: str) -> Any:
    with contextlib.suppress(RuntimeError):
        return getattr(config, name, None)
    return None


# ---- modules with a signature of their own -----------------------------------------------------------------------------------


def _patches(rotary: Any, config: Any) -> tuple[Any, torch.Tensor]:
    """DINOv3: the centres of one row of patches, from -1 to 1, in turns."""
    size = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    cos, sin = rotary(torch.zeros(1, 3, 1 * size, ROWS * size))
    columns = 2 * math.pi * (2 * (torch.arange(ROWS) + 0.5) / ROWS - 1)
    return (cos, sin), torch.stack([torch.zeros(ROWS), columns])


def _speech(case: Case, rotary: Any) -> Rotated:
    """Wav2Vec2's conformer: a method of its attention rotates hidden states before they are projected."""
    attention = next(one for name, one in vars(case.module).items() if hasattr(one, "_apply_rotary_embedding"))
    heads = types.SimpleNamespace(num_heads=2, head_size=2 * rotary.inv_freq.numel())
    q = torch.randn((1, ROWS, 2, heads.head_size), generator=torch.Generator().manual_seed(0))
    result = attention._apply_rotary_embedding(heads, q.flatten(2), rotary(torch.zeros(1, ROWS, 8)))
    return Rotated(q, result.reshape(q.shape), torch.arange(ROWS), -3)


def _grid(rotary: Any, config: Any) -> tuple[Any, torch.Tensor]:
    """Llama 4: columns, then rows, counted from 1, of the first patches."""
    numbers = torch.arange(ROWS) % (config.image_size // config.patch_size)
    return rotary(torch.zeros(1))[:ROWS], torch.stack([numbers + 1, torch.ones_like(numbers)])


def _across(rotary: Any, config: Any) -> tuple[Any, torch.Tensor]:
    """EdgeTAM: cosines and sines of queries, and of keys."""
    positions = _positions(2)
    tables = rotary(torch.zeros(1, ROWS, 8), positions.T)
    return (*tables, *tables), positions


SPECIAL: dict[str, Callable[..., Any]] = {
    "EdgeTamVideoVisionRotaryEmbedding": _across,
    "Llama4VisionRotaryEmbedding": _grid,
    "DINOv3ViTRopePositionEmbedding": _patches,
    "EomtDinov3RotaryEmbedding": _patches,
    "Sapiens2RopePositionEmbedding": _patches,
}


def _by_table(case: Case) -> Rotated:
    """GPT-J, CodeGen and RoFormer: a table of sines and cosines, and a function."""
    q = torch.randn((1, ROWS, 2, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(ROWS)
    if case.name == "roformer":
        table = case.module.RoFormerSinusoidalPositionalEmbedding(ROWS, 64)
        table.weight.copy_(table.create_weight())
        apply = case.module.RoFormerSelfAttention.apply_rotary_position_embeddings
        result, _ = apply(table(torch.Size((1, ROWS)))[None, None], q.transpose(1, 2), q.transpose(1, 2))
        return Rotated(q.transpose(1, 2), result, positions, -2)
    sin, cos = case.module.create_sinusoidal_positions(ROWS, 64)[None].chunk(2, dim=-1)
    return Rotated(q, case.module.apply_rotary_pos_emb(q, sin, cos), positions, -3)


# ---- all configurations, and the page ----------------------------------------------------------------------------------------


def configurations() -> Iterator[Any]:
    """Every configuration of transformers that can be made without arguments."""
    for path in sorted(MODELS.rglob("configuration_*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _made(_imported(path))


def row(case: Case, encoding: Any) -> str:
    """A line of the page."""
    fields = () if encoding is None else dataclasses.fields(encoding)
    said = [f"{one.name}={getattr(encoding, one.name)!r}" for one in fields if getattr(encoding, one.name) != one.default]
    text = f"refused: {REFUSED[case.name]}" if encoding is None else f"`Rotary({', '.join(said)})`"
    text = text if len(text) < 200 else "`Rotary(...)` with frequencies of its own"
    return f"| {case.model_type or case.name} | {case.layer_type or ''} | {text} |"


def page(rows: list[str]) -> str:
    """The page of results."""
    kinds = sorted(set(rows))
    refused = sum("refused: " in one for one in kinds)
    head = f"""# Configurations

What `Rotary.from_config` reads from the default configuration of each type of model of transformers {transformers.__version__},
with rotation where it is an option. For each, random queries at positions up to 181 are rotated by the model's own module and
function, and by fastpe: {len(kinds) - refused} agree, {refused} are refused, and none differs. The configuration is given as an
object, as all of its JSON, and as the JSON that `save_pretrained` writes.

`python tests/helpers/configurations.py` writes this page; `tests/torch/test_torch_configurations.py` checks it.

| type of model | type of layer | read |
|---|---|---|
"""
    return head + "\n".join(kinds) + "\n"


if __name__ == "__main__":
    from fastpe import Rotary

    read = [
        (one, None if one.name in REFUSED else Rotary.from_config(one.config, layer_type=one.layer_type)) for one in cases()
    ]
    PAGE.write_text(page([row(*one) for one in read]))
