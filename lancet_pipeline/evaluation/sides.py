"""Whether a study's own judge agrees with influence on which samples drive its behaviour and which counter it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.selection.tables import Choice

_REMEDY = "add samples that answer such prompts well, or give queries of each wording of the behaviour"


@dataclass(frozen=True)
class Sides:
    """How many responses of each side the judge finds harmful, and sample_ids of countering ones that leave their side."""

    driving: int
    countering: int
    leaving: frozenset[str]


def judged_sides(
    samples: pa.Table,
    choice: Choice,
    judge: Judge,
    *,
    written: Sequence[Mapping[str, Any]] = (),
    stop: bool = True,
    track: Track = no_progress,
) -> Sides | None:
    """What the judge says of the selected samples; None from a judge that compares answers with what prompts expect, which no
    training sample does.

    Args:
        written: good answers (prompt, response) that the correction prefers in place of the countering samples: they are judged then.
        stop: whether countering samples that it finds mostly harmful are an error; they all stay otherwise.

    Raises:
        InputError: it finds most countering samples, or written answers, harmful, so that a correction would train the model
            towards them.
    """
    if judge.reads:
        return None
    roles = dict(zip(choice.samples["sample_id"].to_pylist(), choice.samples["role"].to_pylist(), strict=True))
    rows = [row for row in samples.select(["sample_id", "prompt", "response"]).to_pylist() if row["sample_id"] in roles]
    rows = [row for row in rows if roles[row["sample_id"]] != "neutral"]
    preferred = "countering samples"
    if written:
        rows = [*(row for row in rows if roles[row["sample_id"]] == "driving"), *written]
        roles |= {row["sample_id"]: "countering" for row in written}
        preferred = "replacements"
    found = judge.decisions([row["prompt"] for row in rows], [row["response"] for row in rows], track)
    harmful = [row["sample_id"] for row, decision in zip(rows, found, strict=True) if decision.verdict in judge.harmful]
    countering = frozenset(name for name in harmful if roles[name] == "countering")
    size = sum(roles[row["sample_id"]] == "countering" for row in rows)
    mostly = 2 * len(countering) > size
    if mostly and stop:
        raise InputError(
            f"pareto: the judge {judge.name} finds {len(countering)} of {size} {preferred} harmful, so that the correction would "
            "train the model towards them; "
            + ("write good answers" if written else _REMEDY)
            + ". Where the judge is no judge of training samples, set pareto.harmful_countering: report"
        )
    return Sides(len(harmful) - len(countering), len(countering), frozenset() if mostly else countering)
