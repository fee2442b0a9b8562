"""Whether a study's own judge agrees with influence on which samples drive its behaviour and which counter it."""

from dataclasses import dataclass

import pyarrow as pa

from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.selection.tables import Choice


@dataclass(frozen=True)
class Sides:
    """How many responses of each side the judge finds harmful, and sample_ids of countering ones that leave their side."""

    driving: int
    countering: int
    leaving: frozenset[str]


def judged_sides(
    samples: pa.Table, choice: Choice, judge: Judge, *, stop: bool = True, track: Track = no_progress
) -> Sides | None:
    """What the judge says of the selected samples; None from a judge that compares answers with what prompts expect, which no
    training sample does.

    Args:
        stop: whether countering samples that it finds mostly harmful are an error; they all stay otherwise.

    Raises:
        InputError: it finds most countering samples harmful, so that a correction would train the model towards them.
    """
    if judge.reads:
        return None
    roles = dict(zip(choice.samples["sample_id"].to_pylist(), choice.samples["role"].to_pylist(), strict=True))
    rows = [row for row in samples.select(["sample_id", "prompt", "response"]).to_pylist() if row["sample_id"] in roles]
    rows = [row for row in rows if roles[row["sample_id"]] != "neutral"]
    found = judge.decisions([row["prompt"] for row in rows], [row["response"] for row in rows], track)
    harmful = [row["sample_id"] for row, decision in zip(rows, found, strict=True) if decision.verdict in judge.harmful]
    countering = frozenset(name for name in harmful if roles[name] == "countering")
    size = sum(role == "countering" for role in roles.values())
    mostly = 2 * len(countering) > size
    if mostly and stop:
        raise InputError(
            f"pareto: the judge {judge.name} finds {len(countering)} of {size} countering samples harmful, so that the "
            "correction would train the model towards them; add samples that answer such prompts well, or give queries of "
            "each wording of the behaviour. Where the judge is no judge of training samples, set pareto.harmful_countering: report"
        )
    return Sides(len(harmful) - len(countering), len(countering), frozenset() if mostly else countering)
