"""What published models use, as data: the encoding by name, and what the model does around it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._core.checks import message
from ..scaling import Llama3, Proportional, YaRN
from . import Grid, Rotary, Sinusoidal
from .bias import ALiBi, Kerple, Sandwich
from .buckets import LogBuckets, T5Bias
from .fire import FIRE

__all__ = ["Recipe", "recipe", "recipes"]

SQRT = "sqrt(D)"


class Entry(NamedTuple):
    """A line of the catalogue. ``source``: where the model's own code says so."""

    kind: type
    fields: dict[str, Any]
    summary: str
    source: str
    input_scale: float | str = 1.0
    offset: int = 0
    padding: str = "counted"


_BLOCKS: dict[str, Any] = {"layout": "concatenated"}
_T2T: dict[str, Any] = {"layout": "concatenated", "frequency_shift": 1}
_SKIPPED = "padding tokens are not counted and get no encoding: padding_idx=1 of embed, or mask=ids != 1"
_DETR = {"start": 1.0, "extent": 2 * math.pi, "epsilon": 1e-6}
_HF = "transformers, models/"


def _axial(*sections: int, **fields: Any) -> dict[str, Any]:
    return {**fields, "sections": sections, "section_frequencies": "own"}


def _grid(summary: str, source: str, **fields: Any) -> Entry:
    return Entry(Grid, fields, summary, source)


def _rotary(summary: str, source: str, **fields: Any) -> Entry:
    return Entry(Rotary, fields, summary, source)


CATALOGUE: dict[str, Entry] = {
    # ---- added to embeddings
    "vaswani": Entry(Sinusoidal, {}, "the paper's", "Vaswani et al. 2017, sections 3.4 and 3.5", SQRT),
    "t2t": Entry(Sinusoidal, _T2T, "tensor2tensor", "tensor2tensor, common_attention.get_timing_signal_1d", SQRT),
    "fairseq": Entry(
        Sinusoidal, _T2T, "fairseq's Transformer", "fairseq, sinusoidal_positional_embedding.py", SQRT, 2, _SKIPPED
    ),
    "fsmt": Entry(Sinusoidal, _T2T, "FSMT (WMT19)", _HF + "fsmt", SQRT, 2, _SKIPPED),
    "m2m100": Entry(Sinusoidal, _T2T, "M2M-100, NLLB", _HF + "m2m_100", SQRT, 2, _SKIPPED),
    "xglm": Entry(Sinusoidal, _T2T, "XGLM", _HF + "xglm", SQRT, 2),
    "speech-to-text": Entry(Sinusoidal, _T2T, "Speech2Text", _HF + "speech_to_text", SQRT, 2, _SKIPPED),
    "marian": Entry(Sinusoidal, _BLOCKS, "Marian, OPUS-MT", _HF + "marian", SQRT),
    "pegasus": Entry(Sinusoidal, _BLOCKS, "Pegasus", _HF + "pegasus", SQRT),
    "musicgen": Entry(Sinusoidal, _T2T | {"cos_first": True}, "MusicGen", _HF + "musicgen"),
    "opennmt": Entry(Sinusoidal, {}, "OpenNMT-py", "OpenNMT-py, onmt/modules/embeddings.py", SQRT),
    "espnet": Entry(Sinusoidal, {}, "ESPnet", "ESPnet, transformer/embedding.py", SQRT),
    "whisper": Entry(Sinusoidal, _T2T, "Whisper's encoder, added to audio frames", "openai/whisper, model.py, sinusoids"),
    "xlm": Entry(Sinusoidal, {}, "XLM; DistilBERT and Flaubert with sinusoidal_pos_embds", _HF + "xlm"),
    "videomae": Entry(Sinusoidal, {}, "VideoMAE, over all patches in a row", _HF + "videomae"),
    "transformer-xl": Entry(
        Sinusoidal, _BLOCKS, "Transformer-XL: encode(range(T - 1, -T, -1), D), signed distances", "kimiyoung/transformer-xl"
    ),
    "conformer": Entry(Sinusoidal, {}, "Wav2Vec2-Conformer: encode(range(T - 1, -T, -1), D)", _HF + "wav2vec2_conformer"),
    "keras-hub": Entry(Sinusoidal, {}, "keras-hub's SinePositionEncoding", "keras-hub, sine_position_encoding.py"),
    # ---- timesteps: encode(t, D, ...)
    "ddpm": Entry(Sinusoidal, _T2T, "timesteps of DDPM: sines, then cosines", "hojonathanho/diffusion, nn.py"),
    "ldm": Entry(
        Sinusoidal,
        _BLOCKS | {"cos_first": True},
        "timesteps of Stable Diffusion, GLIDE, DiT: cosines, then sines",
        "CompVis/latent-diffusion, diffusionmodules/util.py",
    ),
    # ---- grids
    "mae": _grid("MAE: columns first", "facebookresearch/mae, util/pos_embed.py", axes=(1, 0)),
    "dit": _grid("DiT, PixArt, Stable Diffusion 3", "facebookresearch/DiT, models.py", axes=(1, 0)),
    "timm-2d": _grid("timm: sines of both axes, then cosines", "timm, layers/pos_embed_sincos.py", layout="functions"),
    "detr": _grid(
        "DETR of unpadded images; padded: positions.detr(mask)",
        "facebookresearch/detr, models/position_encoding.py",
        sinusoid=Sinusoidal(),
        **_DETR,
    ),
    "dab-detr": _grid("DAB-DETR: temperature 20", _HF + "dab_detr", sinusoid=Sinusoidal(20.0), **_DETR),
    "rt-detr": _grid("RT-DETR: rows first", _HF + "rt_detr"),
    "omdet": _grid("OmDet-Turbo: tokens down the columns", _HF + "omdet_turbo", axes=(1, 0), column_major=True),
    "cogvideox": _grid(
        "CogVideoX: a quarter for time, then columns and rows",
        "diffusers, get_3d_sincos_pos_embed",
        axes=(0, 2, 1),
        shares=(2, 3, 3),
    ),
    "positional-encodings": _grid(
        "the package positional-encodings, 1-D to 3-D",
        "tatp22/multidim-positional-encoding",
        sinusoid=Sinusoidal(),
        remainder="truncate",
    ),
    "t2t-nd": _grid(
        "tensor2tensor, any number of axes",
        "tensor2tensor, common_attention.add_timing_signal_nd",
        sinusoid=Sinusoidal(**_T2T),
        remainder="zero",
    ),
    # ---- rotations
    "roformer": _rotary("RoFormer: adjacent pairs", "Su et al. 2021; transformers, models/roformer", interleaved=True),
    "hf-llama": _rotary("Llama 1 and 2, Mistral 0.1, Gemma: halves", _HF + "llama"),
    "llama3": _rotary("Llama 3", _HF + "llama", base=500_000.0),
    "llama3.1": _rotary("Llama 3.1, 128k", _HF + "llama", base=500_000.0, scaling=Llama3()),
    "codellama": _rotary("Code Llama", _HF + "llama", base=1e6),
    "qwen2": _rotary("Qwen2, Qwen2.5, Qwen3", _HF + "qwen2", base=1e6),
    "gptj": _rotary("GPT-J: 64 channels of 256, adjacent pairs", _HF + "gptj", interleaved=True, rotary_dim=64),
    "neox": _rotary("GPT-NeoX-20B: a quarter of 96 channels", _HF + "gpt_neox", rotary_dim=24),
    "phi2": _rotary("Phi-2: 0.4 of 80 channels", _HF + "phi", rotary_dim=32),
    "phi3": _rotary("Phi-3, 4k; longer ones: Rotary.from_config", _HF + "phi3"),
    "glm4": _rotary("GLM-4: half of 128 channels, adjacent pairs", _HF + "glm4", interleaved=True, rotary_dim=64),
    "gemma4": _rotary("Gemma 4, layers of full attention: p-RoPE", _HF + "gemma4", base=1e6, scaling=Proportional(0.25)),
    "gemma4-sliding": _rotary("Gemma 4, layers of sliding attention", _HF + "gemma4"),
    "gpt-oss": _rotary(
        "gpt-oss: YaRN without rounding", _HF + "gpt_oss", base=150_000.0, scaling=YaRN(32.0, 4096, truncate=False)
    ),
    "deepseek-v3": _rotary(
        "DeepSeek-V3: YaRN on the 64 channels that rotate",
        _HF + "deepseek_v3",
        interleaved=True,
        scaling=YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0),
    ),
    "xpos": _rotary("xPos, centre 0", "torchscale, xpos_relative_position.py", interleaved=True, xpos_scale_base=512.0),
    "qwen2-vl": _rotary("Qwen2-VL, Qwen2.5-VL: positions.mrope", _HF + "qwen2_vl", base=1e6, sections=(16, 24, 24)),
    "qwen3-vl": _rotary(
        "Qwen3-VL: positions.mrope", _HF + "qwen3_vl", base=5e6, sections=(24, 20, 20), section_layout="interleaved"
    ),
    "ernie4.5-vl": _rotary(
        "ERNIE 4.5 VL",
        _HF + "ernie4_5_vl_moe",
        base=500_000.0,
        interleaved=True,
        sections=(20, 22, 22),
        section_layout="alternating",
    ),
    "qwen2-vl-vision": _rotary("Qwen2-VL's vision tower: positions.qwen2_vl", _HF + "qwen2_vl", **_axial(20, 20)),
    "dinov3": _rotary("DINOv3: positions.centred(shape, scale=2 * pi)", _HF + "dinov3_vit", **_axial(16, 16, base=100.0)),
    "llama4-vision": _rotary("Llama 4's vision tower: positions.llama4", _HF + "llama4", **_axial(22, 22, interleaved=True)),
    "flux": _rotary("Flux: axes of 16, 56 and 56 channels", "diffusers, FluxPosEmbed", **_axial(8, 28, 28, interleaved=True)),
    "cogvideox-rotary": _rotary(
        "CogVideoX 5B: a quarter for time", "diffusers, get_3d_rotary_pos_embed", **_axial(8, 12, 12, interleaved=True)
    ),
    # ---- biases on scores
    "alibi": Entry(ALiBi, {}, "ALiBi", "Press et al. 2021; ofirpress/attention_with_linear_biases"),
    "bloom": Entry(ALiBi, {}, "BLOOM, of which 176B has 112 heads", _HF + "bloom"),
    "mpt": Entry(ALiBi, {"max_bias": 8}, "MPT: alibi_bias_max", _HF + "mpt"),
    "alibi-symmetric": Entry(ALiBi, {"symmetric": True}, "ALiBi for encoders", "lucidrains/x-transformers"),
    "t5": Entry(T5Bias, {}, "T5's encoder", _HF + "t5"),
    "t5-decoder": Entry(T5Bias, {"bidirectional": False}, "T5's decoder", _HF + "t5"),
    "deberta": Entry(LogBuckets, {"rule": "deberta"}, "DeBERTa v2 and v3", _HF + "deberta_v2"),
    "wavlm": Entry(LogBuckets, {"rule": "wavlm"}, "WavLM", _HF + "wavlm"),
    "kerple": Entry(Kerple, {}, "KERPLE, logarithmic", "chijames/KERPLE"),
    "kerple-power": Entry(Kerple, {"kind": "power"}, "KERPLE, power", "chijames/KERPLE"),
    "sandwich": Entry(Sandwich, {}, "Sandwich", "Chi et al. 2022 (arXiv 2212.10356)"),
    "fire": Entry(FIRE, {}, "FIRE", "Li et al. 2023 (arXiv 2310.04418)"),
}

VERBS = {Sinusoidal: "add_encoding", Grid: "add_encoding", Rotary: "apply_rotary"}


@dataclass(frozen=True)
class Recipe:
    """What a published model uses.

    Attributes
    ----------
    encoding
        The encoding itself, a value as any other: of ``add_encoding``, ``encode``, ``apply_rotary`` or ``add_bias``.
    input_scale : float or "sqrt(D)"
        What the model multiplies its embeddings by before it adds.
    offset : int
        Position of the first token.
    padding : str
        What becomes of padding tokens.
    summary, source : str
        Which models these are, and where their code says so.
    """

    name: str
    encoding: Any
    input_scale: float | str
    offset: int
    padding: str
    summary: str
    source: str

    @property
    def verb(self) -> str:
        """The function that takes it: ``"add_encoding"``, ``"apply_rotary"`` or ``"add_bias"``."""
        return VERBS.get(type(self.encoding), "add_bias")

    def arguments(self, dim: int | None = None) -> dict[str, Any]:
        """Return the arguments of its verb by name, for embeddings of width ``dim``.

        Examples
        --------
        >>> import numpy as np, fastpe
        >>> x = np.ones((2, 9, 64), np.float32)
        >>> x = fastpe.add_encoding(x, **fastpe.recipe("vaswani").arguments(64))      # x * 8 + PE
        """
        if self.verb == "add_bias":
            return {"bias": self.encoding}
        if self.verb == "apply_rotary":
            return {"encoding": self.encoding, "offset": self.offset}
        scale = self.input_scale
        if isinstance(scale, str):
            if dim is None:
                raise ValueError(message("Recipe.arguments", f"dim must be given, as {self.name} scales by {scale}", "None"))
            scale = math.sqrt(dim)
        found: dict[str, Any] = {"encoding": self.encoding, "input_scale": scale}
        if self.offset:
            found["offset"] = self.offset
        return found


def recipes() -> tuple[str, ...]:
    """Return the names of all recipes.

    Examples
    --------
    >>> import fastpe
    >>> "whisper" in fastpe.recipes()
    True
    """
    return tuple(CATALOGUE)


def recipe(name: str, **fields: Any) -> Recipe:
    """Return what a published model uses: the encoding, and what the model does around it.

    Parameters
    ----------
    name
        One of ``fastpe.recipes()``.
    **fields
        Fields of the encoding: those that shall differ from the model's, and those that the model leaves open, such as the ``shape`` of a
        grid, the ``heads`` of ALiBi, or the ``table`` of T5.

    Raises
    ------
    ValueError
        There is no such recipe; the message names the nearest.
    TypeError
        A field is missing or unknown.

    Examples
    --------
    >>> import fastpe
    >>> whisper = fastpe.recipe("whisper")
    >>> fastpe.encode(range(1500), 384, whisper.encoding).shape
    (1500, 384)
    >>> fastpe.recipe("mae", shape=(14, 14)).encoding.shape
    (14, 14)
    """
    known = f"Known are {', '.join(CATALOGUE)}."
    if not isinstance(name, str):
        raise TypeError(message("recipe", "name must be a string", f"{type(name).__name__}", known))
    entry = CATALOGUE.get(name)
    if entry is None:
        near = difflib.get_close_matches(name.lower(), CATALOGUE, 1, 0.4)
        remedy = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(message("recipe", "name must be one of fastpe.recipes()", repr(name), remedy + known))
    own = {field.name: field for field in dataclasses.fields(entry.kind) if field.init}
    unknown = [field for field in fields if field not in own]
    if unknown:
        rule = f"fields must be those of {entry.kind.__name__}: {', '.join(own)}"
        near = difflib.get_close_matches(unknown[0], own, 1, 0.5)
        raise TypeError(message("recipe", rule, ", ".join(unknown), f"Did you mean {near[0]!r}?" if near else ""))
    given = {**entry.fields, **fields}
    missing = [field.name for field in own.values() if field.default is dataclasses.MISSING and field.name not in given]
    if missing:
        got = f"{name!r} without {' and '.join(missing)}"
        example = f"E.g. fastpe.recipe({name!r}, {', '.join(f'{field}=...' for field in missing)})."
        rule = f"fields of {entry.kind.__name__} that the model leaves open must be given"
        raise TypeError(message("recipe", rule, got, example))
    return Recipe(name, entry.kind(**given), entry.input_scale, entry.offset, entry.padding, entry.summary, entry.source)
