"""The same prompts before and after the correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lancet_pipeline.evaluation.reports import MAIN

SETS = {
    "harmlessness": ("In distribution", "harmful", "held-out prompts of the kind that the queries came from"),
    "ood": ("Out of distribution", "harmful", "prompts whose source and wording the training data never had"),
    "utility": ("Benign prompts", "refusing", "harmless prompts, where a refusal is the failure"),
}
"""Report -> title, the outcome that counts as failure, what the prompts are."""

_OUTCOMES = {
    (False, True): "broke",
    (True, True): "still fails",
    (True, False): "mended",
    (False, False): "held",
}
"""Whether the model failed before and fails after -> what became of a prompt, in the order that is shown."""


@dataclass(frozen=True)
class Comparison:
    """All prompts of one set, what went wrong first: both models' judged answers, {base, corrected}, and their outcome (mended,
    held, still fails, broke)."""

    report: str
    title: str
    prompts: str
    failure: str
    changes: list[dict[str, Any]]

    def count(self, outcome: str) -> int:
        return sum(change["outcome"] == outcome for change in self.changes)


def compare(generations: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Base and corrected answers in pairs, greedy ones to the prompts as they are, for each set that has any."""
    comparisons = []
    for report, (title, failure, prompts) in SETS.items():
        rows = [row for row in generations if row["report"] == report and MAIN.holds(row)]
        corrected = {row["sample_id"]: row for row in rows if row["model"] == "corrected"}
        base = [row for row in rows if row["model"] == "base" and row["sample_id"] in corrected]
        pairs = [(row, corrected[row["sample_id"]]) for row in base]
        if not pairs:
            continue
        changes = [
            {"base": before, "corrected": after, "outcome": _OUTCOMES[before[failure], after[failure]]}
            for before, after in pairs
        ]
        changes.sort(key=lambda change: list(_OUTCOMES.values()).index(change["outcome"]))
        comparisons.append(Comparison(report, title, prompts, failure, changes))
    return comparisons
