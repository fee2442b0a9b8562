"""The way from a harmful output to its training samples, tokens, pairs and corrected answer, as the report shows it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.excerpts import Piece, attribute, clip, excerpt
from lancet_pipeline.governance.wording import clean, shorten

SHOWN_SAMPLES = {"driving": 500, "countering": 500, "neutral": 100}
ROLE_CHARACTERS = 400_000
"""Characters of text, for all samples of a role that are shown."""

SHOWN_COUNTERPARTS = 4

KINDS = {"queries": "query", "harmlessness": "in distribution", "ood": "out of distribution"}
"""Report that an output was found in -> what the reader calls it."""


class Trail:
    """Samples and outputs of one piece of evidence with the anchors that link them.

    roles: {name, total, shown}, shown being the samples that are listed of `total`, in their order. outputs: the traced ones, each with `anchor`, `kind` and `behind`, its samples.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._partners = _partners(evidence.pairs)
        self._by_id = {sample["sample_id"]: sample for sample in evidence.samples}
        listed = {role: _listed(role, evidence.samples) for role in SHOWN_SAMPLES}
        names = [sample["sample_id"] for shown in listed.values() for sample in shown]
        self.anchors = {name: f"sample-{number}" for number, name in enumerate(names, start=1)}
        totals = Counter(sample["role"] for sample in evidence.samples)
        self.roles = [
            {"name": role, "total": totals[role], "shown": [self._sample(sample) for sample in shown]}
            for role, shown in listed.items()
        ]
        self.outputs = [self._output(number, trace) for number, trace in enumerate(evidence.traces, start=1)]
        self._traced = {(output["report"], output["sample_id"]): output["anchor"] for output in self.outputs}

    def trace_of(self, report: str, sample_id: str) -> str | None:
        """The anchor of an output's trace, if it was traced."""
        return self._traced.get((report, sample_id))

    def _sample(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        name = sample["sample_id"]
        partners = self._counterparts(name, frozenset())
        return {**attributed(sample), "anchor": self.anchors[name], "counterparts": partners}

    def _output(self, number: int, trace: Mapping[str, Any]) -> dict[str, Any]:
        beside = frozenset(sample["sample_id"] for sample in trace["samples"])
        behind = []
        for found in trace["samples"]:
            sample = {**self._by_id.get(found["sample_id"], _UNKNOWN), **found}
            anchor, partners = self.anchors.get(sample["sample_id"]), self._counterparts(sample["sample_id"], beside)
            behind.append({**attributed(sample, excerpt), "anchor": anchor, "counterparts": partners})
        return {**trace, "anchor": f"trace-{number}", "kind": KINDS[trace["report"]], "behind": behind}

    def _counterparts(self, sample_id: str, beside: frozenset[str]) -> dict[str, Any]:
        """In how many `pairs` a sample is, the `first` of those it is paired with (sample_id, anchor or None), and how many
        `others`. Those in `beside` come first, then those with the most weight."""
        partners = self._partners.get(sample_id, Counter())
        order = sorted(partners, key=lambda name: (name not in beside, name not in self.anchors))
        first = [(name, self.anchors.get(name)) for name in order[:SHOWN_COUNTERPARTS]]
        return {"pairs": partners.total(), "first": first, "others": len(order) - len(first)}


_UNKNOWN = {"prompt": "", "response": "", "is_safe": None, "source": "", "category": ""}


def attributed(sample: Mapping[str, Any], shown: Callable[[Sequence[Piece]], list[Piece]] = clip) -> dict[str, Any]:
    """A sample with the pieces of its texts, as far as they are `shown`, and its strongest tokens."""
    placed = attribute(clean(sample["prompt"]), clean(sample["response"]), sample["tokens"] or [])
    return {
        **sample,
        "prompt_pieces": shown(placed.prompt),
        "response_pieces": shown(placed.response),
        "strongest": placed.strongest,
    }


def _listed(role: str, samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The most influential of a role first (the least, for neutral ones), as far as they are shown."""
    members = [sample for sample in samples if sample["role"] == role]
    members.sort(key=lambda sample: abs(sample["score"]) * (1 if role == "neutral" else -1))
    shown, left = [], ROLE_CHARACTERS
    for sample in members[: SHOWN_SAMPLES[role]]:
        left -= len(shorten(sample["prompt"])) + len(shorten(sample["response"]))
        if left < 0:
            break
        shown.append(sample)
    return shown


def _partners(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """For every sample, how often it is paired with which other, the pairs with the most weight first."""
    partners: dict[str, Counter[str]] = {}
    for pair in sorted(pairs, key=lambda pair: -pair["weight"]):
        one, other = pair["preferred_id"], pair["dispreferred_id"]
        partners.setdefault(one, Counter())[other] += 1
        partners.setdefault(other, Counter())[one] += 1
    return partners
