"""``python -m fastpe model``: every part and type of layer of a configuration, and what is said of one that cannot be read."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import one_line, png_size

import fastpe
from fastpe._tools import cli
from fastpe._tools.model_config import entries
from fastpe.scaling import Linear, Llama3

RULE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RULE["original_max_position_embeddings"] = 8192
LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "rope_theta": 5e5}
LLAMA |= {"max_position_embeddings": 131072, "rope_scaling": RULE}
GEMMA: dict[str, Any] = {"model_type": "gemma3_text", "head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
GEMMA |= {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
GEMMA["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
VISION = {"model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "num_heads": 16}
COLUMNS = {"model_type": "inkling2_vision", "rope_theta": 1e4}


def asked(config: Any, *options: str, tmp_path: Path) -> int:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return cli.main(["model", str(tmp_path / "config.json"), *options])


def test_one_encoding(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert asked(LLAMA, tmp_path=tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "llama"
    assert said[1:4] == [
        "  encoding      Rotary(base=500000.0, scaling=Llama3())",
        "  head          128 channels, all rotate, in pairs i and i + 64",
        "  rule          Llama3, factor 8, original max position 8,192",
    ]
    assert said[4].split()[:5] == ["Llama", "3.1:", "keep", "wavelengths", "below"]
    longest = 2 * math.pi / fastpe.Rotary(5e5, scaling=Llama3()).frequencies(128)[0].min()
    assert said[5:] == [
        f"  wavelengths   6.283 to {longest:,.6g} positions",
        "  attention     factor 1, softmax scale 1",
        "  trained       8,192 positions; the configuration allows 131,072",
    ]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert asked(LLAMA, "--json", tmp_path=tmp_path) == 0
    (found,) = json.loads(capsys.readouterr().out)["encodings"]
    assert found.pop("encoding") == json.loads(fastpe.Rotary(5e5, scaling=Llama3()).text)
    assert found == {
        "model_type": "llama",
        "part": "",
        "layer_type": None,
        "layers": None,
        "head_dim": 128,
        "error": None,
        "trained_length": 8192,
        "longest_length": 131072,
        "attention_factor": 1.0,
        "softmax_scale": 1.0,
    }


def test_types_of_layers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    full, sliding = entries(GEMMA, None)
    assert (full.layer_type, full.layers, full.head_dim) == ("full_attention", (1, 3), 256)
    assert full.encoding == fastpe.Rotary(1e6, scaling=Linear(8.0))
    assert (sliding.layer_type, sliding.layers, sliding.encoding) == ("sliding_attention", (2, 3), fastpe.Rotary())
    assert (full.trained, full.longest, sliding.trained) == (None, 131072, 131072)  # where positions are divided, nobody knows
    assert asked(GEMMA, tmp_path=tmp_path) == 0
    said = capsys.readouterr().out
    assert "gemma3_text: full_attention (1 of 3 layers)\n" in said
    assert "  length        the configuration allows 131,072 positions\n" in said
    same = GEMMA | {"rope_scaling": None, "rope_local_base_freq": 1e6}
    assert [one.layer_type for one in entries(same, None)] == [None]
    cohere = {"model_type": "cohere2", "rope_theta": 5e4, "sliding_window": 4096, "head_dim": 128}
    cohere["layer_types"] = ["sliding_attention", "full_attention"]
    assert asked(cohere, tmp_path=tmp_path) == 0
    said = capsys.readouterr().out
    assert "cohere2: full_attention (1 of 2 layers)\n  encoding      none, these layers do not rotate\n" in said


def test_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {"model_type": "some_vl", "text_config": LLAMA, "vision_config": VISION}
    text, vision = entries(config, None)
    assert (text.part, text.head_dim, text.encoding) == ("text", 128, fastpe.Rotary.from_config(config, part="text"))
    assert (vision.part, vision.head_dim, vision.encoding) == ("vision", 80, fastpe.Rotary.from_config(config, part="vision"))
    assert entries({"model_type": "a", "audio_config": {"model_type": "whisper"}, "text_config": LLAMA}, None)[0].part == "text"
    flat = LLAMA | {"vision_config": VISION}
    assert [one.part for one in entries(flat, None)] == ["", "vision"]
    assert asked(config | {"vision_config": COLUMNS}, tmp_path=tmp_path) == 2
    said = capsys.readouterr()
    assert "llama: text\n  encoding      Rotary(" in said.out
    assert "inkling2_vision: vision\n  not read      Rotary.from_config: one encoding cannot say what it does" in said.out
    assert said.err == ""
    assert asked(config | {"vision_config": COLUMNS}, "--json", tmp_path=tmp_path) == 2
    text_part, other = json.loads(capsys.readouterr().out)["encodings"]
    assert (text_part["error"], other["encoding"]) == (None, None)
    assert "columns come before its rows" in other["error"]


def test_widths() -> None:
    """What is given to the verb: DeepSeek's queries have a part that rotates, with an axis of its own."""
    mla = {
        "model_type": "deepseek_v3",
        "rope_theta": 1e4,
        "qk_rope_head_dim": 64,
        "hidden_size": 7168,
        "num_attention_heads": 128,
    }
    assert [one.head_dim for one in entries(mla, None)] == [64]
    v4 = {"model_type": "deepseek_v4", "head_dim": 512, "qk_rope_head_dim": 64, "partial_rotary_factor": 0.125}
    v4 |= {"rope_theta": 1e4, "compress_rope_theta": 1.6e5}
    assert [(one.layer_type, one.head_dim) for one in entries(v4, None)] == [("main", 512), ("compress", 512)]
    assert [one.head_dim for one in entries({"rope_theta": 1e4}, None)] == [None]


def test_where_a_configuration_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert asked(LLAMA, tmp_path=tmp_path) == 0
    expected = capsys.readouterr().out
    assert cli.main(["model", str(tmp_path)]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(LLAMA).encode())))
    assert cli.main(["model", "-"]) == 0
    assert capsys.readouterr().out == expected * 2


def test_the_pairs_of_an_unknown_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mystery = {"model_type": "mystery", "rope_theta": 1e4, "head_dim": 64}
    assert asked(mystery, tmp_path=tmp_path) == 2
    assert "interleaved must be given for a model that is not known, got 'mystery'" in one_line(capsys)
    for option, pairs in (("--interleaved", "2i and 2i + 1"), ("--no-interleaved", "i and i + 32")):
        assert asked(mystery, option, tmp_path=tmp_path) == 0
        assert f"64 channels, all rotate, in pairs {pairs}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("config", "columns"), [(LLAMA, 1), (GEMMA, 2)])
def test_the_picture(config: Any, columns: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert asked(config, "-o", str(tmp_path / "waves.png"), tmp_path=tmp_path) == 0
    assert capsys.readouterr().out.endswith(f"\n\nsaved {tmp_path / 'waves.png'}\n")
    assert png_size(tmp_path / "waves.png") == (max(1200, 750 * columns), 810)
    assert asked(config, "--json", "-o", str(tmp_path / "waves.svg"), tmp_path=tmp_path) == 0
    json.loads(capsys.readouterr().out)
    drawn = (tmp_path / "waves.svg").read_text()
    for text in (
        ("trained length 8,192", "target length 131,072") if columns == 1 else ("sliding_attention: base 10,000, D = 256",)
    ):
        assert f"<!-- {text} -->" in drawn


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("{", (), "CONFIG must be JSON, got '"),
        (b"\xff\xfe\xf6", (), "CONFIG must be JSON, got '"),
        ("[1]", (), "CONFIG must be a JSON object, as models' config.json, got list"),
        ("{}", (), "nothing in config describes a rotary encoding"),
        ('{"model_type": "gpt2"}', (), "nothing in config describes a rotary encoding"),
        ('{"rope_theta": 1e4, "head_dim": 5}', (), "the number of channels that rotate must be even, got 5"),
        ('{"rope_theta": 1e4, "rope_scaling": [1]}', (), "rope_parameters must be a dict"),
        ('{"rope_theta": 1e4}', ("-o", "x.png"), "-o needs the width of a head, got none. Add head_dim"),
        ('{"rope_theta": 1e4, "head_dim": 8}', ("-o", "x.nosuch"), "path must end with one of"),
        ('{"rope_theta": 1e4, "head_dim": 8}', ("-o", "nosuch/x.png"), "'nosuch/x.png' cannot be used: No such file"),
    ],
)
def test_refusals(text: Any, options: Any, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["model", str(tmp_path / "config.json"), *options]) == 2
    assert expected in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_files_that_are_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch.json"):
        assert cli.main(["model", str(path)]) == 2
        assert "cannot be used: No such file" in one_line(capsys)
