"""The one registry of what is measured of a model, and how its figures are written.

A new figure is one entry in `FIGURES`, beside the report that measures it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure of a model.

    report: the asset that measures it. source: what it is measured on. rate: whether its values are `{"value", "low", "high",
    "n"}`, a share of n prompts with its 95 % interval; plain numbers otherwise. name: as in `lancet summary --json`. label: in
    the terminal. title: in report and model card. key: its name in the report's figures.json, where that is another.
    main: whether experiments and the registry of models are told of it. relative: whether it says something only as a ratio to
    the base model's, which experiments show then. answers: the answers named by its prompts that it rests on: wanted_answers, or
    expected_answers, which only the judge `expected` reads.
    """

    report: str
    source: str
    name: str
    label: str
    title: str
    key: str = ""
    rate: bool = True
    main: bool = False
    relative: bool = False
    answers: str = ""

    @property
    def stored(self) -> str:
        """Its name in what its report writes."""
        return self.key or self.name

    def value(self, figures: Mapping[str, Any]) -> float:
        """Its value among the `figures` of a model, without an interval."""
        return figures[self.name]["value"] if self.rate else figures[self.name]

    def text(self, figures: Mapping[str, Any]) -> str:
        return (rate_text if self.rate else number_text)(figures[self.name])


_harm = partial(Figure, "harmlessness_report", "harmful_prompts")
_ood = partial(Figure, "ood_report", "ood_prompts")
_benign = partial(Figure, "utility_report", "benign_prompts")
_held_out = partial(Figure, "utility_report", "utility_responses", rate=False)
_words = partial(Figure, "utility_report", "benign_prompts", rate=False)
_IN, _OUT = "Harmful answers, in distribution", "Harmful answers, out of distribution"
_REFUSED, _RIGHT = "Refusals of benign prompts", "Benign prompts answered with the wanted answer"
_GARBLED, _IMBALANCE = "Answers outside the range of the base model's", "Distance of answers from their wanted shares"
_DIVERGED = "Likelihood lost by the base model's good answers to benign prompts, worst category, nats a token"
_UNPARSED = "Answers without code that parses"
_EXPECTED, _WANTED = "expected_answers", "wanted_answers"
_OFF = "answers off balance"
_SAMPLED, _BROKEN, _PARSED = "  sampled answers", "  answers that do not parse", "  harm among those that do"

FIGURES = {
    figure.name: figure
    for figure in (
        _harm("harm_rate", "harm rate", _IN, main=True, answers=_EXPECTED),
        _harm("sampled_harm_rate", _SAMPLED, f"{_IN}, sampled", answers=_EXPECTED),
        _harm("paraphrased_harm_rate", "  paraphrased prompts", f"{_IN}, prompts in other words", answers=_EXPECTED),
        _harm("harmful_garbled_rate", "  garbled answers", f"{_GARBLED}, to harmful prompts", "garbled_rate"),
        _harm("imbalance", _OFF, _IMBALANCE, rate=False, answers=_WANTED),
        _harm("broken_rate", _BROKEN, f"{_UNPARSED}, in distribution"),
        _harm("parsed_harm_rate", _PARSED, f"{_IN}, of those that parse"),
        _ood("ood_harm_rate", "OOD harm rate", _OUT, "harm_rate", main=True, answers=_EXPECTED),
        _ood("sampled_ood_harm_rate", _SAMPLED, f"{_OUT}, sampled", "sampled_harm_rate", answers=_EXPECTED),
        _ood("ood_garbled_rate", "  garbled answers", f"{_GARBLED}, out of distribution", "garbled_rate"),
        _ood("ood_imbalance", _OFF, f"{_IMBALANCE}, out of distribution", "imbalance", rate=False, answers=_WANTED),
        _ood("ood_broken_rate", _BROKEN, f"{_UNPARSED}, out of distribution", "broken_rate"),
        _ood("ood_parsed_harm_rate", _PARSED, f"{_OUT}, of those that parse", "parsed_harm_rate"),
        _benign("over_refusal_rate", "over-refusal", _REFUSED, main=True),
        _benign("sampled_over_refusal_rate", _SAMPLED, f"{_REFUSED}, sampled"),
        _benign("benign_harm_rate", "harm on benign prompts", "Harmful answers to benign prompts", answers=_EXPECTED),
        _benign("garbled_rate", "garbled answers", f"{_GARBLED}, to benign prompts"),
        _benign("opening_share", "alike openings", "Answers to benign prompts that open as most do"),
        _words("category_divergence", "worst category, divergence", _DIVERGED),
        _words("category_fall", "worst category, answers lost", "Good answers to benign prompts lost, worst category"),
        _words("opening_entropy", "opening entropy", "Entropy of the openings of answers to benign prompts, bits"),
        _benign("benign_imbalance", _OFF, f"{_IMBALANCE}, of benign prompts", rate=False, answers=_WANTED),
        _benign("benign_rate", "benign answers right", _RIGHT, answers=_WANTED),
        _benign("sampled_benign_rate", _SAMPLED, f"{_RIGHT}, sampled", answers=_WANTED),
        _held_out("perplexity", "perplexity", "Perplexity on held-out safe responses", main=True, relative=True),
        _held_out("token_accuracy", "token accuracy", "Tokens of held-out safe responses that are the first choice"),
        _words("distinct_1", "distinct-1", "Different words (distinct-1)"),
        _words("distinct_2", "distinct-2", "Different word pairs (distinct-2)", main=True),
        _words("self_bleu", "self-BLEU", "Likeness of the answers to one another (self-BLEU)"),
    )
}
"""By name, in the order in which they are shown; a report's first is the one its paired tests are of. Rates of sampled answers
and of paraphrased prompts are there only where the study asks for them, those of right answers where benign prompts have them, those of answers that parse
where a judge reads code."""

CONDITIONS = {"harmlessness_report": "condition", "ood_report": "ood_condition"}
"""Report -> name of its `condition` (`condition.condition_figures`) beside the figures of a model, where there is one."""

SIDE_EFFECTS = "side_effects"
"""What the utility report has of every model but the base one: its `side_effects.side_effects`, beside its figures."""


def main_figures() -> list[Figure]:
    return [figure for figure in FIGURES.values() if figure.main]


def figures_of(report: str) -> list[Figure]:
    """The figures that a report may have, the main one first."""
    return [figure for figure in FIGURES.values() if figure.report == report]


def measured(models: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """The figures that every model has."""
    return [figure for figure in FIGURES.values() if all(figure.name in figures for figures in models.values())]


def rate_text(rate: Mapping[str, Any]) -> str:
    """`0.12 (0.08 to 0.17, n = 200)`: the value, its 95 % interval, the number of prompts."""
    return f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}, n = {rate['n']})"


def number_text(value: Any) -> str:
    """A number with four significant digits; words for what is no finite number."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if math.isnan(value):
        return "not defined"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
