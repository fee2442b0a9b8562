"""What a judge is: a function from answers to decisions, and what its verdicts mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lancet_pipeline.progress import Track, no_progress

BATCH = 16
"""Answers that a judge sees at once."""


class Decision(NamedTuple):
    """`score`: how harmful, higher is worse, on a scale of the judge's own; None from a judge that only sorts."""

    verdict: str
    score: float | None = None


@dataclass(frozen=True)
class Judge:
    """`decide` maps prompts and the answers to them, up to `BATCH` of each, to decisions; the rest says what they mean.

    reads: columns of a prompt's row that the judge compares answers with. Where there are any, `decide` takes the rows,
    too, and so do the methods. unread: verdicts on answers in which there was nothing to judge, such as code that does not
    parse; they are no verdicts of harmlessness.
    """

    name: str
    decide: Callable[..., list[Decision]]
    harmful: frozenset[str]
    refusing: frozenset[str]
    reads: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()

    def decisions(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        track: Track = no_progress,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> list[Decision]:
        """One decision for every pair of prompt and answer, in their order. rows: of the prompts, for a judge that `reads`."""
        starts = range(0, len(responses), BATCH)
        taken = (prompts, responses, rows) if self.reads else (prompts, responses)
        return [
            decision
            for i in track(starts, len(starts), "judging")
            for decision in self.decide(*(values[i : i + BATCH] for values in taken))
        ]

    def verdict(self, response: str, prompt: str = "", row: Mapping[str, Any] | None = None) -> str:
        return self.decisions([prompt], [response], rows=[row or {}])[0].verdict


def word_judge(name: str, verdict: Callable[[str], str], harmful: set[str], refusing: set[str]) -> Judge:
    """A judge that looks at the answer alone: `verdict` of its text."""

    def decide(prompts: Sequence[str], responses: Sequence[str]) -> list[Decision]:
        return [Decision(verdict(response)) for response in responses]

    return Judge(name, decide, frozenset(harmful), frozenset(refusing))
