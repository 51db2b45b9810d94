"""What small models and the literature agree on, whatever the seed: checked by the reduced lab at every change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ORDERINGS", "REDUCED", "REDUCED_LENGTHS", "Ordering", "check"]

TASK, METRIC = "text", "nats per character"


@dataclass(frozen=True)
class Ordering:
    """``first`` less ``second``, each an encoding at a length, must lie above ``more`` or below ``less``, in nats per character."""

    says: str
    first: tuple[str, int]
    second: tuple[str, int]
    more: float | None = None
    less: float | None = None

    def holds(self, difference: float) -> bool:
        return (self.more is None or difference > self.more) and (self.less is None or difference < self.less)

    @property
    def bound(self) -> str:
        return f"> {self.more:g}" if self.more is not None else f"< {self.less:g}"


ORDERINGS = [
    Ordering("sinusoidal fails by 2x", ("sinusoidal", 2), ("sinusoidal", 1), more=1.0),
    Ordering("rotary fails by 4x", ("rotary", 4), ("rotary", 1), more=1.0),
    Ordering("ALiBi stays flat to 8x", ("alibi", 8), ("alibi", 1), less=0.05),
    Ordering("NTK beats plain rotary at 2x", ("rotary_ntk", 2), ("rotary", 2), less=-0.3),
    Ordering("YaRN beats plain rotary at 4x", ("rotary_yarn", 4), ("rotary", 4), less=-1.0),
    Ordering("ReRoPE at 8x is within 0.1 of rotary at 1x", ("rotary_rerope", 8), ("rotary", 1), less=0.1),
]

# What the reduced lab reads: both sides of each ordering.
REDUCED = sorted({name for ordering in ORDERINGS for name, _ in (ordering.first, ordering.second)})
REDUCED_LENGTHS = tuple(sorted({factor for ordering in ORDERINGS for _, factor in (ordering.first, ordering.second)}))


def check(results: dict[str, Any]) -> list[tuple[Ordering, float]]:
    """Return the orderings for which results has both sides, each with its difference in nats per character."""
    encodings = results["tasks"].get(TASK, {}).get("encodings", {})

    def value(side: tuple[str, int]) -> float | None:
        metrics = encodings.get(side[0], {}).get("lengths", {}).get(str(side[1]))
        return None if metrics is None else metrics[METRIC]

    both = [(ordering, value(ordering.first), value(ordering.second)) for ordering in ORDERINGS]
    return [(ordering, first - second) for ordering, first, second in both if first is not None and second is not None]
