"""``apply_rotary``, ``rerotate`` and ``convert_layout``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import Rotary
from fastpe.scaling import DynamicNTK, YaRN

from .arguments import MODES, scalings
from .inputs import DTYPES, VIEWS, Given, Inputs
from .recording import Recorder, libraries

SECTIONS = {
    "sections": {"sections": (4, 4, 4)},
    "sections_interleaved": {"sections": (6, 3, 3), "section_layout": "interleaved"},
    "sections_alternating": {"sections": (4, 4, 4), "section_layout": "alternating", "interleaved": True},
    "sections_own": {"sections": (6, 3, 3), "section_frequencies": "own"},
    "sections_own_interleaved": {"sections": (2, 10), "section_frequencies": "own", "interleaved": True, "base": 100.0},
}
ROTARIES: Given = {
    "half": None,
    "base": Rotary(500_000.0),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(rotary_dim=12),
    "partial_interleaved": Rotary(interleaved=True, rotary_dim=10, rotary_offset=5),
    "partial_offset": Rotary(rotary_offset=4),
    "factor": Rotary(attention_factor=1.375),
    "xpos": Rotary(xpos_scale_base=64.0),
    "xpos_centre": Rotary(interleaved=True, xpos_scale_base=512, xpos_centre=40),
    **{name: Rotary(**fields) for name, fields in SECTIONS.items()},
    **{f"scaling_{name}": Rotary(scaling=rule) for name, rule in scalings(12).items()},
}
TABULATED: dict[str, Callable[[Inputs], Any]] = {
    "table": lambda r: Rotary.tabulated(r(200, 9), r(200, 9)),
    "table_interleaved": lambda r: Rotary.tabulated(
        r(200, 5, dtype="float64"), r(200, 5, dtype="float64"), interleaved=True, rotary_offset=3
    ),
    "table_16_bit": lambda r: Rotary.tabulated(r(200, 12, dtype="bfloat16"), r(200, 12, dtype="float16")),
}


def pair(r: Inputs, dtype: str = "float32", k_dtype: str = "", T: int = 16, view: str = "plain") -> tuple[Any, Any]:
    """Queries and keys of 24 channels; the keys have fewer heads."""
    return r(3, 4, T, 24, dtype=dtype, view=view), r(3, 2, T, 24, dtype=k_dtype or dtype, view=view)


def apply_rotary(record: Recorder) -> None:
    """Encodings, types, layouts, outputs, positions and sections."""
    rotary = fastpe.apply_rotary
    for dtype in DTYPES:
        for name, encoding in ROTARIES.items():
            record.case(f"rotary/{dtype}/{name}", lambda r: rotary(*pair(r, dtype, T=25), encoding, offset=11))
        for name, make in TABULATED.items():
            record.case(f"rotary/{dtype}/{name}", lambda r: rotary(*pair(r, dtype), make(r), offset=90))
        run = lambda r: rotary(*pair(r, dtype), Rotary.tabulated(r(3, 16, 9, dtype=dtype), r(3, 16, 9, dtype=dtype)))
        record.case(f"rotary/{dtype}/table_of_sequences", run)
        for view in VIEWS:
            record.case(f"rotary/{dtype}/{view}", lambda r: rotary(*pair(r, dtype, view=view), offset=3), libraries(view))
            run = lambda r: rotary(r(3, 2, 9, 24, dtype=dtype), out=r(3, 2, 9, 24, dtype=dtype, view=view), offset=3)
            record.case(f"rotary/out/{dtype}/{view}", run, libraries(view))
        for k_dtype in DTYPES:
            record.case(
                f"rotary/{dtype}_with_{k_dtype}",
                lambda r: rotary(*pair(r, dtype, k_dtype), Rotary(xpos_scale_base=99), offset=5),
            )
        decode = lambda r: [
            rotary(r(1, 32, 1, 128, dtype=dtype), r(1, 8, 1, 128, dtype=dtype), offset=n) for n in (0, 1, 2, 900)
        ]
        record.case(f"rotary/{dtype}/decode", decode)
        record.case(
            f"rotary/{dtype}/large", lambda r: rotary(r(1, 8, 700, 128, dtype=dtype), r(1, 2, 700, 128, dtype=dtype), offset=3)
        )
    for name, encoding in ROTARIES.items():
        record.case(f"rotary/inverse/{name}", lambda r: rotary(*pair(r), encoding, offset=-9, inverse=True))
        axes = len(encoding.sections) if encoding is not None and encoding.sections else 0
        places = np.arange(16 * max(axes, 1)).reshape((axes, 16) if axes else 16) * 2
        record.case(f"rotary/k/{name}", lambda r: rotary(None, pair(r)[1], encoding, positions=r.of(places)))
        if encoding is not None and encoding.needs_length:
            for length in (5, 16, 400):
                record.case(f"rotary/seq_len_{length}/{name}", lambda r: rotary(*pair(r), encoding, seq_len=length))
    for mode, make in MODES.items():
        for name in ("half", "interleaved", "scaling_dynamic"):
            dtype = "bfloat16" if name == "interleaved" else "float32"
            run = lambda r: rotary(*pair(r, dtype), ROTARIES[name], **r.given(make(r, 3, 16)))
            record.case(f"rotary/{dtype}/{name}/BHTD/{mode}", run)
        run = lambda r: rotary(r(3, 16, 4, 24), r(3, 16, 2, 24), seq_axis=-3, **r.given(make(r, 3, 16)))
        record.case(f"rotary/BTHD/{mode}", run)
        run = lambda r: rotary(*pair(r), out=pair(r, view="sliced"), **r.given(make(r, 3, 16)))
        record.case(f"rotary/out/{mode}", run)
    for name, fields in SECTIONS.items():
        axes = len(fields["sections"])
        for shape in ((axes, 16), (axes, 3, 16)):
            run = lambda r: rotary(*pair(r), Rotary(**fields), positions=r.ints(-99, 9999, *shape))
            record.case(f"rotary/{name}/positions_{len(shape)}", run)
            run = lambda r: rotary(
                *pair(r, "float16"), Rotary(**fields), positions=r.of(r.rng.random(shape)), mask=r.of(np.arange(16) > 3)
            )
            record.case(f"rotary/{name}/real_positions_{len(shape)}_mask", run)
    apply_rotary_elsewhere(record)


def apply_rotary_elsewhere(record: Recorder) -> None:
    """Other axes and widths, q and k in one array, configurations, and layouts of weights."""
    rotary = fastpe.apply_rotary
    for axis, shape in ((0, (16, 3, 24)), (-2, (16, 24)), (-2, (3, 16, 24)), (1, (3, 16, 2, 5, 24)), (-2, (2, 3, 4, 9, 24))):
        record.case(f"rotary/seq_axis_{axis}_{len(shape)}", lambda r: rotary(r(*shape), seq_axis=axis, offset=70))

    def packed(r: Inputs) -> Any:
        qkv = r(2, 10, 8, 24)
        return rotary(qkv[:, :, :4], qkv[:, :, 4:6], seq_axis=-3, offset=r.of(np.array([5, 77])))

    def config(r: Inputs, scaling: Given, **more: Any) -> Any:
        found = Rotary.from_config(
            {"rope_theta": 1e4, "rope_scaling": scaling, "max_position_embeddings": 64, "head_dim": 24, **more}
        )
        return found.frequencies(24, 300), repr(found), rotary(*pair(r), found, offset=100)

    record.case("rotary/packed", packed)
    for dims in (2, 4, 6, 64, 130):
        record.case(f"rotary/head_{dims}", lambda r: rotary(r(2, 3, 9, dims), r(2, 1, 9, dims), offset=1 << 20))
    for kind, fields in {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        "longrope": {"short_factor": [1.0] * 12, "long_factor": [2.0] * 12, "original_max_position_embeddings": 32},
        "default": {},
    }.items():
        record.case(f"rotary/config/{kind}", lambda r: config(r, {"rope_type": kind, **fields}))
    for way in (("interleaved", "half"), ("half", "interleaved"), ("half", "half")):
        for given in ({}, {"rotary_dim": 6, "rotary_offset": 1}):
            run = lambda r: (fastpe.convert_layout(r(24, 5), *way, 8, **given), fastpe.convert_layout(r(24), *way, 12, **given))
            record.case(f"convert_layout/{'_'.join(way)}/{len(given)}", run)


def rerotate(record: Recorder) -> None:
    """Distances, types, layouts, and changes of the encoding."""
    move, yarn = fastpe.rerotate, Rotary(scaling=YaRN(4.0, 64))
    deltas: dict[str, Callable[[Inputs], Any]] = {
        "int": lambda r: -5,
        "far": lambda r: 2**31 - 1,
        "real": lambda r: 1.5,
        "list": lambda r: [3, -8, 1000],
        "B": lambda r: r.ints(-99, 99, 3),
        "BT": lambda r: r.ints(-(2**31), 2**31, 3, 16),
        "real_BT": lambda r: r.of(r.rng.uniform(-9, 9, (3, 16))),
    }
    plain = {name: rotary for name, rotary in ROTARIES.items() if rotary is None or not rotary.needs_length}
    for dtype in DTYPES:
        for name, delta in deltas.items():
            for view in ("plain", "strided_columns", "channels_first"):
                record.case(
                    f"rerotate/{dtype}/{view}/delta_{name}", lambda r: move(r(3, 4, 16, 24, dtype=dtype, view=view), delta(r))
                )
        for name, encoding in plain.items():
            record.case(f"rerotate/{dtype}/{name}", lambda r: move(r(3, 4, 16, 24, dtype=dtype), 77, encoding))
        for delta in (0, -30):
            between = {"source": Rotary(), "target": yarn, "offset": 9}
            record.case(f"rerotate/{dtype}/other_rule_{delta}", lambda r: move(r(3, 4, 16, 24, dtype=dtype), delta, **between))
    for mode, make in MODES.items():
        run = lambda r: move(r(3, 4, 16, 24), source=yarn, target=Rotary(base=5e5), **r.given(make(r, 3, 16)))
        record.case(f"rerotate/other_rule/{mode}", run)
    length = {"source": Rotary(scaling=DynamicNTK(4.0, 16)), "target": Rotary(scaling=DynamicNTK(4.0, 16)), "offset": 3}
    record.case("rerotate/lengths", lambda r: move(r(3, 4, 16, 24), 2, **length, seq_len=(40, 80)))
    record.case("rerotate/length", lambda r: move(r(3, 4, 16, 24), 2, length["source"], seq_len=80))
    record.case("rerotate/mask", lambda r: move(r(3, 4, 16, 24), 2.25, mask=r.of(np.arange(16) % 3 > 0)))
    record.case("rerotate/BTHD", lambda r: move(r(3, 16, 4, 24), r.ints(-9, 9, 3), seq_axis=1))
    record.case("rerotate/out", lambda r: move(r(3, 4, 16, 24), -3, out=r(3, 4, 16, 24, view="sliced")))
    record.case(
        "rerotate/out_other_rule", lambda r: move(r(3, 4, 16, 24), -3, source=Rotary(), target=yarn, out=r(3, 4, 16, 24))
    )
