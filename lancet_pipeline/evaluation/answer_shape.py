"""Whether answers are still answers: as likely and as varied as the uncorrected model's own, and not one and the same to all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.expected_answers import WANTED, normalised, opens_with
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.evaluation.statistics import paired_counts, rate, upper_difference
from lancet_pipeline.models.likelihood import sequence_losses
from lancet_pipeline.models.loading import LoadedModel
from lancet_pipeline.models.runtime import Runtime

Row = Mapping[str, Any]

PERCENTILE = 0.01
"""Of the uncorrected model's own answers, at either end, which counts as outside their range."""

OPENING = 3
"""Words that make an answer's opening."""


def garbled(
    loaded: LoadedModel,
    answers: Mapping[str, Sequence[Row]],
    max_length: int,
    *,
    skipped: int = 0,
    runtime: Runtime = Runtime(),
) -> dict[str, list[bool]]:
    """Which answers lie outside the range of the uncorrected model's own: less likely to it, a token, than 99 % of them, or with
    more repeated tokens. By model as `answers`, of the answers that could be looked at: those with more tokens than `skipped`, and
    all of those to which the model gives no likelihood.

    Answers are read without their prompts: what is right where the uncorrected model is wrong is unlikely to it after that prompt,
    and still a text as good as others.

    Args:
        loaded: the uncorrected model.
        answers: rows with response and finished, by model; the uncorrected model's own under `base`.
        skipped: tokens at the beginning of each answer that are not looked at.
    """
    model, tokenizer = loaded

    def read(rows: Sequence[Row]) -> np.ndarray:
        numbered = [{**row, "sample_id": str(number), "prompt": ""} for number, row in enumerate(rows)]
        sequences = tokenize(tokenizer, numbered, max_length=max_length, overlength="truncate", place="answers")
        looked = [
            TokenSequence(s.sample_id, s.input_ids, s.response_start + skipped)
            for s in sequences
            if len(s) > max(s.response_start, 1) + skipped  # what is predicted, and not the first token of all
        ]
        losses, _, tokens = sequence_losses(model, looked, runtime.batch_tokens).T
        distinct = [len(np.unique(s.input_ids[s.response_start :])) for s in looked]
        return np.stack([-losses / tokens, 1 - distinct / tokens], 1)

    found = {name: read(rows) for name, rows in answers.items()}
    usual = found["base"][np.isfinite(found["base"][:, 0])]
    if not len(usual):
        return {name: [] for name in found}
    lowest, highest = np.quantile(usual[:, 0], PERCENTILE), np.quantile(usual[:, 1], 1 - PERCENTILE)
    return {name: (~(v[:, 0] >= lowest) | (v[:, 1] > highest)).tolist() for name, v in found.items()}


def openings(texts: Sequence[str]) -> list[str]:
    """The first words of each answer."""
    return [" ".join(text.casefold().split()[:OPENING]) for text in texts]


def commonest(texts: Sequence[str]) -> list[bool]:
    """Whether each answer opens as most of them do."""
    opened = openings(texts)
    most = Counter(opened).most_common(1)[0][0] if opened else ""
    return [opening == most for opening in opened]


def opening_figures(texts: Sequence[str]) -> dict[str, Any]:
    """`opening_share`, the rate of answers that open as most do, and `opening_entropy` of all openings, bits: 0 where all are
    alike."""
    shares = np.array(list(Counter(openings(texts)).values())) / len(texts)
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
    return {"opening_share": rate(commonest(texts)), "opening_entropy": entropy}


def imbalance(rows: Sequence[Row]) -> dict[str, float | int] | None:
    """How far the shares of the answers are from the shares in which they are wanted: the largest difference over answers, and over
    answers that are none of the wanted ones, with the upper end of its one-sided 95 % interval: {value, high, n}. Answers that are
    wanted of one prompt are one, in all their wordings. None where not every prompt has wanted answers, or one is wanted
    throughout."""
    if not rows or not all(row.get(WANTED) for row in rows):
        return None
    wordings = _merged([frozenset(map(normalised, row[WANTED])) for row in rows])
    wanted = [next(i for i, group in enumerate(wordings) if normalised(row[WANTED][0]) in group) for row in rows]
    if len(wordings) < 2:
        return None
    given = [
        next((i for i, group in enumerate(wordings) if opens_with(row["response"], sorted(group))), None)
        for row in rows
    ]
    value, high = 0.0, 0.0
    for answer in (*range(len(wordings)), None):
        both, first, second, neither = paired_counts([w == answer for w in wanted], [g == answer for g in given])
        bounds = upper_difference((both, first, second, neither)), upper_difference((both, second, first, neither))
        value, high = max(value, abs(second - first) / len(rows)), max(high, *bounds)
    return {"value": value, "high": high, "n": len(rows)}


def _merged(groups: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Groups that share a member as one."""
    found: list[frozenset[str]] = []
    for group in dict.fromkeys(groups):
        apart = [other for other in found if not other & group]
        found = [*apart, group.union(*(other for other in found if other & group))]
    return found
