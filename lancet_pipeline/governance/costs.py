"""What a correction cost in time, by asset and against training again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lancet_pipeline.graph import STAGES

CORRECTION = ("undesirable_outputs", "linfac_factors", "influence_scores", "pareto_pairs", "corrected_model")
"""What finding the cause and correcting the model takes; the queries count as part of it."""

REFERENCE = "reference_models"


@dataclass(frozen=True)
class Cost:
    """Seconds of wall-clock time. assets: (name, what it counts as, seconds, seconds of the processor or None where they were
    not recorded, share of the longest), in graph order.

    ratio: of the correction over training the references; None where there are none.
    """

    assets: list[tuple[str, str, float, float | None, float]]
    total: float
    correction: float
    reference: float | None

    @property
    def ratio(self) -> float | None:
        return self.correction / self.reference if self.reference else None


def cost(lineage: Mapping[str, Mapping[str, Any]], study: Mapping[str, Any]) -> Cost:
    """Costs of the assets in `lineage` (their manifests)."""
    seconds = {name: float(lineage[name].get("seconds", 0.0)) for name in STAGES if name in lineage}
    longest = max(seconds.values(), default=0.0) or 1.0
    has_reference = bool(study.get("evaluation", {}).get("references")) and REFERENCE in seconds
    return Cost(
        [
            (
                name,
                "correction" if name in CORRECTION else STAGES[name].group,
                spent,
                lineage[name].get("processor_seconds"),
                spent / longest,
            )
            for name, spent in seconds.items()
        ],
        sum(seconds.values()),
        sum(seconds.get(name, 0.0) for name in CORRECTION),
        seconds[REFERENCE] if has_reference else None,
    )
