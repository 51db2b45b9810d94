"""Graphs of ONNX that onnxruntime runs, beside fastpe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxscript onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript onnxruntime")
import fastpe  # noqa: E402
from fastpe import scaling  # noqa: E402
from fastpe.torch import RotaryEmbedding, SinusoidalEncoding, functional, onnx_translations, patch_transformers  # noqa: E402

pytestmark = [*torch_marks.PATCHES, pytest.mark.filterwarnings("ignore")]  # of the exporter


class Calls(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


def exported(model: Any, given: tuple[Any, ...], folder: Path, shapes: Any = None) -> Any:
    """A session of onnxruntime."""
    program = torch.onnx.export(
        model, given, dynamo=True, custom_translation_table=onnx_translations(), dynamic_shapes=shapes, verbose=False
    )
    program.save(folder / "graph.onnx")
    return onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])


def answers(session: Any, *given: Any) -> list[Any]:
    names = [one.name for one in session.get_inputs()]
    return [torch.from_numpy(one) for one in session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))]


def tensor(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-9, torch.float16: 4e-3}  # of sums of values up to 4
ROTARY = {
    "half": fastpe.Rotary(),
    "interleaved": fastpe.Rotary(interleaved=True),
    "part": fastpe.Rotary(rotary_dim=8),
    "part interleaved, in the middle": fastpe.Rotary(interleaved=True, rotary_dim=8, rotary_offset=4),
    "yarn": fastpe.Rotary(scaling=scaling.YaRN(4.0, 64)),
}
ADDED = {
    "interleaved": fastpe.Sinusoidal(),
    "concatenated": fastpe.Sinusoidal(layout="concatenated", amplitude=0.5),
    "cosines first": fastpe.Sinusoidal(cos_first=True, position_scale=0.5),
    "shifted": fastpe.Sinusoidal(layout="concatenated", cos_first=True, frequency_shift=1),
    "stretched": fastpe.Sinusoidal(scaling=scaling.Linear(4.0)),
}


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_of_any_length(name: str, tmp_path: Path) -> None:
    module = RotaryEmbedding(ROTARY[name])
    rows = torch.export.Dim("rows")
    session = exported(module, (tensor(2, 4, 10, 16), tensor(2, 2, 10, 16)), tmp_path, ({2: rows}, {2: rows}))
    for length in (10, 300):
        q, k = tensor(2, 4, length, 16), tensor(2, 2, length, 16)
        for found, wanted in zip(answers(session, q, k), module(q, k), strict=True):
            assert float((found - wanted).abs().max()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ADDED)
def test_additions_of_any_length(name: str, tmp_path: Path) -> None:
    module = SinusoidalEncoding(ADDED[name], input_scale=2.0)
    session = exported(module, (tensor(2, 10, 16),), tmp_path, ({1: torch.export.Dim("rows")},))
    for length in (10, 300):
        x = tensor(2, length, 16)
        assert float((answers(session, x)[0] - module(x)).abs().max()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype: Any, tmp_path: Path) -> None:
    module, x = RotaryEmbedding(), tensor(1, 2, 12, 16, dtype=dtype)
    found = answers(exported(module, (x,), tmp_path), x)[0]
    assert found.dtype == dtype
    assert float((found - module(x)).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("seq_axis", [-2, -3])
@pytest.mark.parametrize("shape", [(6,), (2, 6)])
@pytest.mark.parametrize("inverse", [False, True])
def test_positions_far_away(seq_axis: int, shape: Any, inverse: bool, tmp_path: Path) -> None:
    """To 2^31, as exact as near; whole turns are dropped in float64."""
    positions = torch.tensor([0, 7, 1000, 131_000, 1_000_003, 2**31 - 1]).expand(*shape).contiguous()
    x = tensor(2, 3, 6, 16) if seq_axis == -2 else tensor(2, 6, 3, 16)

    def rotate(x: Any, positions: Any) -> Any:
        return functional.apply_rotary(x, None, fastpe.Rotary(), positions=positions, seq_axis=seq_axis, inverse=inverse)

    found = answers(exported(Calls(rotate), (x, positions), tmp_path), x, positions)[0]
    assert float((found - rotate(x, positions)).abs().max()) <= 1e-5


@pytest.mark.parametrize("offset", [5, [3, 100]])
def test_offsets(offset: Any, tmp_path: Path) -> None:
    given = torch.tensor(offset) if isinstance(offset, list) else offset

    def add(x: Any) -> Any:
        return functional.add_encoding(x, fastpe.Sinusoidal(), offset=given)

    x = tensor(2, 9, 16)
    assert float((answers(exported(Calls(add), (x,), tmp_path), x)[0] - add(x)).abs().max()) <= TOLERANCE[torch.float32]


def test_a_patched_model(tmp_path: Path) -> None:
    from small_models import build, tokens

    model = build("llama")

    def logits(ids: Any) -> Any:
        return model(ids, use_cache=False).logits

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(ids, use_cache=False).logits

    with torch.no_grad(), patch_transformers(model):
        session = exported(Logits(), (tokens(2, 12),), tmp_path, ({1: torch.export.Dim("rows", max=4000)},))
        for length in (12, 50):
            found = answers(session, tokens(2, length))[0]
            assert float((found - logits(tokens(2, length))).abs().max()) <= 1e-4


def test_what_has_no_translation_is_refused(tmp_path: Path) -> None:
    module = Calls(lambda x: functional.add_encoding(x, fastpe.Sinusoidal(), mask=torch.ones(1, 10, dtype=torch.bool)))
    with pytest.raises(Exception, match="with a mask or cu_seqlens"):
        exported(module, (tensor(1, 10, 16),), tmp_path)
