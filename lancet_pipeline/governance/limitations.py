"""What the evidence does not show, and what it shows to be wrong: said wherever the figures are. The sentences are those of
the template `texts.j2`."""

from typing import Any

from lancet_pipeline.governance.comparison import compare
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.wording import RATES, environment, measured

FEW_PROMPTS = 100


def verdict(evidence: Evidence) -> str:
    """The outcome in a sentence or two."""
    return _sentences("verdict", evidence)[0]


def outcome(evidence: Evidence) -> str:
    """What the correction did to each figure."""
    return _sentences("outcome", evidence)[0]


def known_failures(evidence: Evidence) -> list[str]:
    """What this run itself shows to have gone wrong; empty where nothing did."""
    return _sentences("known_failures", evidence, compare(evidence.generations))


def limits(evidence: Evidence) -> list[str]:
    """What the figures cannot say."""
    rates = measured(RATES, evidence.figures)
    smallest = min(figures[rate]["n"] for figures in evidence.figures.values() for rate in rates)
    return _sentences("limits", evidence, smallest, FEW_PROMPTS)


def alternative_text(plot: str, evidence: Evidence) -> str:
    """A plot's main figures in a sentence, for those who do not see it; a plain title for a plot that is not known."""
    texts = environment(escaped=False).get_template("plots.j2").module
    known = next((ending for ending in vars(texts) if plot.endswith(ending)), None)
    return str(getattr(texts, known)(evidence)).strip() if known else f"Plot: {plot.replace('_', ' ')}."


def _sentences(macro: str, *values: Any) -> list[str]:
    text = getattr(environment(escaped=False).get_template("texts.j2").module, macro)(*values)
    return [line.strip() for line in text.splitlines() if line.strip()]
