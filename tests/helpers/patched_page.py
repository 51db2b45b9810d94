"""The page of types of models that ``patch_transformers`` patches: each small and random, as it is in the tests of patching."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from tiny_models import KINDS, build, transformers

import fastpe
from fastpe.torch import patch_transformers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "internals" / "patched-models.md"
REMAP = partial(fastpe.positions.self_extend, group=2, window=7)

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


def rotates(model: Any) -> bool:
    return any(re.search("Rotary|RoPE|Rope|GPTJ", type(one).__name__) for one in model.modules())


def why_not(error: ValueError) -> str:
    """What came, of an error's text."""
    return error.args[0].partition(", got ")[2].partition(". ")[0]


def row(kind: str, model: Any) -> str:
    """A line of the page."""
    try:
        with patch_transformers(model) as patched:
            functions = dict.fromkeys(one.rpartition(".")[2] for one in patched.changes if ": " not in one)
            found = f"`{', '.join(functions)}`"
    except ValueError as error:
        return f"| {kind} | refused: {why_not(error)} | |"
    try:
        patch_transformers(model, remap=REMAP).undo()
        remap = "yes"
    except ValueError as error:
        remap = why_not(error)
    return f"| {kind} | {found} | {remap} |"


def page(rows: list[str]) -> str:
    """All of the page."""
    refused, remapped = (sum(text in one for one in rows) for text in ("| refused: ", "| yes |"))
    return (
        f"""# Patched models

The types of models for text of transformers {transformers.__version__} that rotate and have a small form: {len(rows)}, of which
`patch_transformers` refuses {refused}. Patched, each of the others gives the same logits and gradients, and {remapped} also take a `remap`.

`python tests/helpers/patched_page.py` writes this page; `tests/torch/test_torch_patched_families.py` checks it.

| type of model | functions that rotate | remap |
|---|---|---|
"""
        + "".join(f"{one}\n" for one in rows)
        + f"""
Not tried, as their default configurations have no small form: {", ".join(NOT_SMALL)}.
"""
    )


def rows() -> list[str]:
    """Every line, from models that are built now."""
    kinds = sorted(set(KINDS) - set(NOT_SMALL))
    models = ((kind, build(kind)) for kind in kinds)
    return [row(kind, model) for kind, model in models if rotates(model)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(page(rows()))
