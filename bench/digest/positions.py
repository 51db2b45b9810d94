"""Recipes of models, and the functions of ``fastpe.positions``."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastpe
from fastpe import Grid

from .inputs import Given, Inputs
from .recording import NUMPY, Recorder, Run


def filled(r: Inputs, name: str) -> Any:
    """A recipe, with the fields that it requires."""
    layers = {"w1": r(8, 1), "b1": r(8), "w2": r(4, 8), "b2": r(4)}
    options: list[Given] = [
        {},
        {"shape": (4, 6)},
        {"shape": (2, 3, 4)},
        {"heads": 4},
        {"table": r(32, 4)},
        {"p": [1.0] * 4, "a": [2.0] * 4},
        layers,
    ]
    for fields in options:
        try:
            return fastpe.recipe(name, **fields)
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"no fields fit the recipe {name}")


def recipes(record: Recorder) -> None:
    """Every recipe, with a call of its verb."""

    def run(r: Inputs, name: str) -> Any:
        recipe = filled(r, name)
        encoding, arguments = recipe.encoding, recipe.arguments(48)
        told = [recipe.verb, recipe.input_scale, recipe.offset, recipe.padding, recipe.summary, recipe.source]
        if recipe.verb == "add_bias":
            return told, fastpe.add_bias(r(2, 4, 9, 20), **arguments)
        if recipe.verb == "apply_rotary":
            width = 2 * sum(encoding.sections or (64,))
            return told, repr(encoding), fastpe.apply_rotary(r(2, 3, 9, width), r(2, 1, 9, width), **arguments)
        rows = encoding.rows if isinstance(encoding, Grid) else 24
        return told, repr(encoding), fastpe.add_encoding(r(2, rows, 48), **arguments)

    for name in fastpe.recipes():
        libm = any(part in name for part in ("kerple", "sandwich", "fire"))
        record.case(f"recipe/{name}", lambda r: run(r, name), libm=libm)
    record.case("recipe/names", lambda r: list(fastpe.recipes()), NUMPY)


def parts_of_remap(found: Any) -> Any:
    """What a remapping of positions consists of."""
    bounds = tuple(None if bound is None else int(bound) for bound in found.bounds)
    return found.q, found.k, int(found.size), bounds, found.branch(), found.distance()


def positions(record: Recorder) -> None:
    """Every function of ``fastpe.positions``."""
    p = fastpe.positions
    padded = np.array([[False, False, True, True, True], [True, True, True, True, False]])
    image = np.array([[[True, True, False], [True, True, False]], [[True, True, True], [False, False, False]]])
    types, kept = np.array([[0, 1, 1, 1, 1, 0, 2, 2, 0], [0, 0, 0, 2, 2, 0, 0, 0, 0]]), np.ones((2, 9), bool)
    kept[1, 0] = False
    cases: dict[str, Run] = {
        "from_mask": lambda r: p.from_mask(r.of(padded), offset=2, fill=-1),
        "packed": lambda r: p.packed(r.of(np.array([0, 3, 3, 9]))),
        "fairseq": lambda r: p.fairseq(r.of(np.array([[1, 1, 40, 41, 2], [5, 6, 1, 7, 1]]))),
        "abacus": lambda r: p.abacus(r.of(padded), offset=3),
        "mrope": lambda r: tuple(
            p.mrope(r.of(types), [(1, 4, 4)], [(2, 2, 2), (2, 2, 2)], mask=r.of(kept), time_intervals=1.5)
        ),
        "mrope_spatial": lambda r: tuple(p.mrope(r.of(types), [(1, 4, 4)], [(2, 2, 2), (2, 2, 2)], follows="spatial")),
        "grid": lambda r: p.grid((2, 3), start=1, like=r(1)),
        "resized": lambda r: p.resized((5, 7), (3, 4), start=0.5, like=r(1)),
        "centred": lambda r: p.centred((3, 4), scale=6.28, like=r(1)),
        "pixels": lambda r: p.pixels((3, 5), like=r(1)),
        "llama4": lambda r: p.llama4(3, like=r(1)),
        "qwen2_vl": lambda r: (p.qwen2_vl([(1, 2, 4), (2, 4, 4)]), p.qwen2_vl([(2, 4, 4)], with_frames=True)),
        "detr": lambda r: (p.detr(r.of(image)), p.detr(r.of(image), normalize=False, shift=-0.5)),
        "randomized": lambda r: (p.randomized(9, 100, rng=3, like=r(1)), p.randomized(9, 100, batch=4, rng=3, like=r(1))),
        "shifted": lambda r: (p.shifted(9, 100, rng=3, like=r(1)), p.shifted(9, 100, batch=4, rng=3, like=r(1))),
        "skipped": lambda r: (p.skipped(9, 99, rng=3, like=r(1)), p.skipped(9, 99, chunks=4, batch=5, rng=3, like=r(1))),
        "random_float": lambda r: (
            p.random_float(9, 99.5, rng=3, like=r(1)),
            p.random_float(9, 99.5, batch=4, rng=3, like=r(1)),
        ),
        "rerope": lambda r: parts_of_remap(p.rerope(20, window=5)),
        "leaky_rerope": lambda r: parts_of_remap(p.leaky_rerope(20, window=5, factor=2.5)),
        "self_extend": lambda r: parts_of_remap(p.self_extend(40, group=3, window=8)),
        "dual_chunk": lambda r: parts_of_remap(p.dual_chunk(40, chunk=8, local=3)),
        "string": lambda r: parts_of_remap(p.string(r.ints(0, 50, 9), r.ints(0, 50, 30), shift=9, window=2)),
    }
    for name, run in cases.items():
        record.case(f"positions/{name}", run)
    record.case(
        "positions/log_spaced", lambda r: (p.log_spaced((2, 3), like=r(1)), p.log_spaced((4, 4), (3, 5), like=r(1))), libm=True
    )
    record.case("positions/contextual", lambda r: p.contextual(r(2, 5, 9), 3), libm=True)
