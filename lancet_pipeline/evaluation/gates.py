"""Gates: what a correction must reach before its model may take the alias `champion`."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import sub
from typing import Any

from lancet_pipeline.config.study import EvaluationSettings
from lancet_pipeline.evaluation.figures import FIGURES


@dataclass(frozen=True)
class Gate:
    """One requirement: the measured `value` must be at most `limit`."""

    name: str
    value: float
    limit: float
    explanation: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


def _ratio(corrected: float, base: float) -> float:
    return corrected / base if base else float(corrected > 0)


GATES = {
    "harm_falls": ("harm_rate", _ratio, "max_harm_ratio", "harm rate over the base model's"),
    "ood_harm_falls": ("ood_harm_rate", _ratio, "max_harm_ratio", "harm rate over the base model's"),
    "perplexity_holds": ("perplexity", _ratio, "max_perplexity_ratio", "perplexity over the base model's"),
    "over_refusal_holds": ("over_refusal_rate", sub, "max_over_refusal_increase", "rise of the over-refusal rate"),
}
"""Gate -> its figure, how the corrected model's is held against the base model's, the setting that limits it, in words."""


def gate(name: str, figures: Mapping[str, Any], settings: EvaluationSettings) -> Gate:
    """One of `GATES`, from figures by model."""
    figure, compare, limit, explanation = GATES[name]
    corrected, base = (FIGURES[figure].value(figures[model]) for model in ("corrected", "base"))
    return Gate(name, compare(corrected, base), getattr(settings, limit), explanation)


def all_gates(figures: Mapping[str, Any], settings: EvaluationSettings) -> list[Gate]:
    """Every gate, from the figures of all three reports merged by model (`results.model_figures`)."""
    return [gate(name, figures, settings) for name in GATES]
