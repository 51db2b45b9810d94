"""The rotary encoding (RoPE): its frequencies, its pairs, and how to read it from a model's configuration."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._backends.plans import RotaryPlan
from .._core import checks, phase
from .._core.checks import message
from .protocol import Rotational
from .rotary_table import RotaryTable

if TYPE_CHECKING:
    from .. import scaling
    from .._core.annotations import AnyArray

SECTION_LAYOUTS = ("contiguous", "interleaved", "alternating")
SECTION_FREQUENCIES = ("shared", "own")
# What source and target of rerotate have in common; they may differ in what sets frequencies and the attention factor.
KEPT = ("interleaved", "rotary_dim", "rotary_offset", "sections", "section_layout", "xpos_scale_base", "xpos_centre")


@dataclass(frozen=True)
class Rotary(Rotational):
    """Rotations of pairs of channels by an angle proportional to the position, for queries and keys.

    ``(u, v) -> m (u cos a - v sin a, v cos a + u sin a)``, ``a = p * w_i``, ``w_i = base^(-2i/d)`` for i = 0 ... d/2 - 1, d =
    ``rotary_dim``, m the attention factor.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv 2104.09864). Sun et al., "A
    Length-Extrapolatable Transformer", 2022 (arXiv 2212.10554): xPos.

    Parameters
    ----------
    base
        A finite number > 0: 10 000 in most models, 500 000 in Llama 3. Models call it ``rope_theta``.
    interleaved
        False: pair i is channels i and i + d/2 (GPT-NeoX, and all Llama-like models in Hugging Face's layout). True: channels 2i and
        2i + 1 (the paper, GPT-J, Meta's Llama). The weights of one do not fit the other.
    rotary_dim, rotary_offset
        How many channels rotate, an even number, and the first of them. Others are left as they are. None: all from the first on.
    scaling
        A rule of ``fastpe.scaling`` for contexts longer than those trained on, or None.
    sections
        For positions with several axes (time, height, width): how many of the d/2 frequencies each axis has. Their sum is d/2.
    section_layout
        ``"contiguous"``: the first axis has the first frequencies, and so on (Qwen2-VL). ``"interleaved"``: frequency i has axis
        i mod A while that axis still has some left, else the first axis (Qwen3-VL). ``"alternating"``: all axes but the first
        alternate, and the first has the last frequencies (ERNIE 4.5 VL).
    section_frequencies
        ``"shared"``: one geometric row of frequencies, divided among the axes. ``"own"``: each axis of n frequencies has a row of its
        own, that of width 2n, in its places (axial rotary encodings of images and video: vision towers, CogVideoX, Flux).
    attention_factor
        m, in place of the scaling rule's own.
    xpos_scale_base
        xPos: queries are multiplied by ``z_i^((p - c)/xpos_scale_base)`` and keys divided by it, ``z_i = (2i + 0.4 d)/(1.4 d)``. At least
        2; 512 in the paper. None: no xPos.
    xpos_centre
        c. With 0, cached keys stay valid. The paper's code takes the middle of the sequence, which keeps the factors near 1: more than
        about 35 000 positions from c a float32 factor is 0 or infinite, more than 4500 from c a float16 one.
    """

    base: float = 10000.0
    interleaved: bool = False
    rotary_dim: int | None = None
    rotary_offset: int = 0
    scaling: scaling.Scaling | None = None
    sections: tuple[int, ...] | None = None
    section_layout: str = "contiguous"
    section_frequencies: str = "shared"
    attention_factor: float | None = None
    xpos_scale_base: float | None = None
    xpos_centre: int = 0

    __hash__ = Rotational.__hash__

    def __post_init__(self) -> None:
        found: dict[str, Any] = {"base": checks.positive_number("Rotary", "base", self.base)}
        checks.boolean("Rotary", "interleaved", self.interleaved)
        if self.rotary_dim is not None:
            found["rotary_dim"] = checks.width("Rotary", "rotary_dim", self.rotary_dim)
            if found["rotary_dim"] % 2:
                raise ValueError(message("Rotary", "rotary_dim must be even", str(found["rotary_dim"])))
        found["rotary_offset"] = checks.integer("Rotary", "rotary_offset", self.rotary_offset)
        if found["rotary_offset"] < 0:
            raise ValueError(message("Rotary", "rotary_offset must be 0 or more", str(found["rotary_offset"])))
        if self.scaling is not None:
            from .. import scaling

            scaling.check("Rotary", self.scaling)
        if self.sections is not None:
            found["sections"] = _sections(self.sections)
        checks.one_of("Rotary", "section_layout", self.section_layout, SECTION_LAYOUTS)
        checks.one_of("Rotary", "section_frequencies", self.section_frequencies, SECTION_FREQUENCIES)
        if self.section_frequencies == "own" and self.sections is None:
            raise ValueError(message("Rotary", "section_frequencies 'own' needs sections", "None"))
        if self.attention_factor is not None:
            found["attention_factor"] = checks.positive_number("Rotary", "attention_factor", self.attention_factor)
        if self.xpos_scale_base is not None:
            found["xpos_scale_base"] = checks.positive_number("Rotary", "xpos_scale_base", self.xpos_scale_base)
            if found["xpos_scale_base"] < 2:
                raise ValueError(message("Rotary", "xpos_scale_base must be at least 2", f"{found['xpos_scale_base']:g}"))
        found["xpos_centre"] = checks.integer("Rotary", "xpos_centre", self.xpos_centre)
        if abs(found["xpos_centre"]) > 2**30:
            raise ValueError(message("Rotary", "xpos_centre must lie within 2^30 of 0", str(found["xpos_centre"])))
        super().__post_init__(**found)

    @property
    def needs_length(self) -> bool:
        return self.scaling is not None and self.scaling.needs_length

    @property
    def softmax_scale(self) -> float:  # type: ignore[override]
        """By what attention multiplies its scores, beside ``1/sqrt(D)``: 1, but for ``YaRN`` with ``mscale_all_dim`` (DeepSeek).

        ``apply_rotary`` does not: it sees a part of each head. D is the width of the whole.

        Examples
        --------
        >>> import fastpe
        >>> rule = fastpe.scaling.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
        >>> round(fastpe.Rotary(scaling=rule).softmax_scale, 6)
        1.873854
        """
        return 1.0 if self.scaling is None else self.scaling.softmax_scale

    def frequencies(self, head_dim: int, seq_len: int | None = None) -> tuple[npt.NDArray[np.float64], float]:
        """Return the frequencies for a head of width D, (rotary_dim / 2,) float64 in radians a position; and the attention factor.

        Both are rounded once. ``seq_len`` is as for ``Sinusoidal.frequencies``.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Rotary(scaling=fastpe.scaling.Linear(4)).frequencies(4)
        (array([0.25  , 0.0025]), 1.0)
        """
        checks.width("Rotary.frequencies", "head_dim", head_dim)
        checks.sequence_length("Rotary.frequencies", seq_len)
        plan = self.plan(head_dim, seq_len)
        return plan.angular.copy(), plan.attention_factor

    def plan(self, head_dim: int, seq_len: int | None = None) -> RotaryPlan:
        return _plan(self, head_dim, seq_len if self.needs_length else None)

    @property
    def position_axes(self) -> int | None:  # type: ignore[override]
        return None if self.sections is None else len(self.sections)

    @property
    def differs_for_keys(self) -> bool:
        return self.xpos_scale_base is not None

    def check_like(self, function: str, target: Any) -> None:
        super().check_like(function, target)
        for name in KEPT:
            own, other = getattr(self, name), getattr(target, name)
            if own != other:
                raise ValueError(message(function, f"source and target must have the same {name}", f"{own} and {other}"))

    def width(self, head_dim: int) -> int:
        """How many channels of a head rotate."""
        found = head_dim - self.rotary_offset if self.rotary_dim is None else self.rotary_dim
        if self.rotary_offset + found > head_dim or found < 2:
            got = f"rotary_dim {self.rotary_dim} and rotary_offset {self.rotary_offset} for a head of {head_dim}"
            raise ValueError(message("Rotary", "the channels that rotate must lie in the head", got))
        if found % 2:
            got = f"{found} of a head of {head_dim}"
            raise ValueError(message("Rotary", "the number of channels that rotate must be even", got, "Give rotary_dim."))
        return found

    @staticmethod
    def tabulated(cos: AnyArray, sin: AnyArray, *, interleaved: bool = False, rotary_offset: int = 0) -> RotaryTable:
        """Return an encoding that takes its cosines and sines from a table of yours; see ``RotaryTable``."""
        return RotaryTable(cos, sin, interleaved, rotary_offset)

    @classmethod
    def from_config(
        cls, config: object, *, part: str | None = None, layer_type: str | None = None, interleaved: bool | None = None
    ) -> Rotary:
        """Return the encoding that a Hugging Face configuration describes.

        Parameters
        ----------
        config : a configuration object, its dict, or a model
            Read are the base (``rope_theta`` and its older names), the rule (``rope_parameters`` or ``rope_scaling``), how much of a head
            rotates (``partial_rotary_factor``, ``rotary_dim``, ...), the layout of pairs, ``mrope_section``, bases by type of layer,
            and, where a rule needs them, ``max_position_embeddings`` and the width of a head. The rest is what the model's own code does,
            by ``model_type``.
        part
            Which of several configurations inside to read: ``"text"``, ``"vision"``, ``"thinker.vision"``. None: the model itself, else its
            text.
        layer_type
            Which type of layer to read, if they differ: ``"full_attention"``, ``"sliding_attention"``.
        interleaved
            None: ``rope_interleave`` if the configuration has it, else as the code of its ``model_type`` in Hugging Face's library; False
            for a dict without ``model_type``.

        Raises
        ------
        KeyError, ValueError
            No key names a base; a rule needs a key that is not there; a key says something of rotation and is not understood; parts or
            layers differ; the model is not known, or one encoding cannot say what it does. The message names the key.

        Notes
        -----
        As Hugging Face does: ``yarn`` ignores ``mscale`` without ``mscale_all_dim``; a missing ``factor`` of ``yarn`` and ``longrope`` is
        ``max_position_embeddings / original_max_position_embeddings``; ``dynamic`` scales from ``max_position_embeddings``. Vision towers
        take positions of two axes, in the order of the model's own. DeepSeek's code leaves rotated pairs in half layout; scores are the
        same. ``llama_4_scaling_beta`` is no rotation: attention multiplies queries by it.

        Examples
        --------
        >>> import fastpe
        >>> config = {"rope_theta": 10000.0, "head_dim": 128, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
        >>> fastpe.Rotary.from_config(config)
        Rotary(base=10000.0, interleaved=False, rotary_dim=None, rotary_offset=0, scaling=Linear(factor=4.0), sections=None, ...
        """
        from .from_config import fields

        return cls(**fields(config, part, layer_type, interleaved))


def _sections(sections: Any) -> tuple[int, ...]:
    if not isinstance(sections, (tuple, list)) or len(sections) < 2:
        raise TypeError(message("Rotary", "sections must be a sequence of 2 or more integers", checks.describe(sections)))
    found = tuple(checks.integer("Rotary", f"sections[{i}]", size) for i, size in enumerate(sections))
    if min(found) < 0:
        raise ValueError(message("Rotary", "sections must be 0 or more", str(found)))
    return found


@functools.lru_cache(maxsize=128)
def _plan(encoding: Rotary, head_dim: int, seq_len: int | None) -> RotaryPlan:
    width = encoding.width(head_dim)
    from .. import scaling

    rule = encoding.scaling if encoding.scaling is not None else scaling.Linear(1.0)
    axes = _axes(encoding, width // 2)
    groups = axes.tolist() if encoding.section_frequencies == "own" else [0] * (width // 2)
    with phase.precise():
        sizes = {group: groups.count(group) for group in groups}
        parts = {group: rule.apply(scaling.Plain(encoding.base, 2 * n, n, seq_len)) for group, n in sizes.items()}
        following = {group: iter(part) for group, (part, _) in parts.items()}
        frequencies, factor = [next(following[group]) for group in groups], parts[groups[0]][1]
        try:
            angular, turns = phase.rounded(frequencies)
        except OverflowError as error:
            text = f"{error} for {encoding} and a head of {head_dim}"
            raise ValueError(message("Rotary", "frequencies must lie below 2^32 turns a position", text)) from None
    return RotaryPlan(
        key=(encoding, head_dim, seq_len),
        head_dim=head_dim,
        rotary_dim=width,
        first_channel=encoding.rotary_offset,
        interleaved=encoding.interleaved,
        angular=angular,
        turns=turns,
        axes=axes,
        attention_factor=factor if encoding.attention_factor is None else encoding.attention_factor,
        growths=_growths(encoding.xpos_scale_base, width),
        centre=encoding.xpos_centre,
        of_length=seq_len is not None,
    )


def _growths(scale_base: float | None, width: int) -> npt.NDArray[np.uint64] | None:
    """-log2(z_i) / scale_base in units of 2^-64, ``z_i = (i/(width/2) + 0.4)/1.4``: queries shrink and keys grow by it a position."""
    if scale_base is None:
        return None
    with phase.precise():
        zs = (Decimal(5 * i + width) / Decimal("3.5") / width for i in range(width // 2))
        octaves = (-z.ln() / Decimal(2).ln() / Decimal(scale_base) for z in zs)
        return np.array([int(octave * 2**64 + Decimal("0.5")) for octave in octaves], np.uint64)


def _axes(encoding: Rotary, count: int) -> npt.NDArray[np.int64]:
    """The axis of the positions to which each frequency belongs."""
    if encoding.sections is None:
        return np.zeros(count, np.int64)
    if sum(encoding.sections) != count:
        got = f"{encoding.sections}, {sum(encoding.sections)} in all"
        raise ValueError(message("Rotary", f"sections must add up to the number of frequencies, {count}", got))
    if encoding.section_layout == "contiguous":
        return np.repeat(np.arange(len(encoding.sections)), encoding.sections)
    if encoding.section_layout == "alternating":
        first, *others = encoding.sections
        if len(set(others)) > 1:
            rule = "sections that alternate must have one size, but the first"
            raise ValueError(message("Rotary", rule, str(encoding.sections)))
        return np.array([1 + i % len(others) for i in range(count - first)] + [0] * first)
    axes = np.arange(count) % len(encoding.sections)
    return np.where(np.arange(count) < np.asarray(encoding.sections)[axes] * len(encoding.sections), axes, 0)
