"""What the evidence does not show, and what it shows to be wrong: said wherever the figures are. The sentences are those of
the template `texts.j2`."""

from typing import Any

from lancet_pipeline.evaluation.figures import measured
from lancet_pipeline.governance.comparison import compare
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.wording import environment

FEW_PROMPTS = 100


def review(evidence: Evidence) -> dict[str, Any]:
    """What every page about a correction says of it.

    Returns:
        verdict: the outcome in a sentence or two; outcome: what became of each figure; assistance: what people wrote for the
        correction, a list; failures: what this run itself shows
        to have gone wrong, a list; limits: what the figures cannot say, a list; measured: the figures
        that every model has.
    """
    shown = measured(evidence.figures)
    smallest = min(values[figure.name]["n"] for values in evidence.figures.values() for figure in shown if figure.rate)
    return {
        "verdict": _sentences("verdict", evidence)[0],
        "outcome": _sentences("outcome", evidence)[0],
        "assistance": _sentences("assistance", evidence),
        "failures": _sentences("known_failures", evidence, compare(evidence.generations)),
        "limits": _sentences("limits", evidence, smallest, FEW_PROMPTS),
        "measured": shown,
    }


def alternative_text(plot: str, evidence: Evidence) -> str:
    """A plot's main figures in a sentence, for those who do not see it; a plain title for a plot that is not known."""
    texts = environment(escaped=False).get_template("plots.j2").module
    known = next((ending for ending in vars(texts) if plot.endswith(ending)), None)
    return str(getattr(texts, known)(evidence)).strip() if known else f"Plot: {plot.replace('_', ' ')}."


def _sentences(macro: str, *values: Any) -> list[str]:
    text = getattr(environment(escaped=False).get_template("texts.j2").module, macro)(*values)
    return [line.strip() for line in text.splitlines() if line.strip()]
