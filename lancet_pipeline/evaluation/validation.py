"""How far a judge agrees with people."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lancet_pipeline.config.study import JudgeSettings
from lancet_pipeline.data.expected_answers import expected_answers
from lancet_pipeline.data.readers import describe, read_rows
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.statistics import cohen_kappa, rate
from lancet_pipeline.progress import Track, no_progress

REFUSED, COMPLIED = "full_refusal", "full_compliance"


def validate_judge(judge: Judge, rows: Iterable[Mapping[str, Any]], track: Track = no_progress) -> dict[str, Any]:
    """Agreement with human labels: of refusing verdicts with the column `label` (full_refusal against full_compliance,
    partial refusals left out), or of harmful verdicts with the boolean column `is_safe` where there is no `label`.

    Args:
        rows: a `response` each, its `prompt` and what else the judge looks at, and one of the labels.

    Returns:
        {"outcome": "refusal" or "harm", "accuracy": rate, "kappa", "confusion": {human label: {verdict: count}},
        "left_out"}, and "auc", where harm is judged by a score: how well the score ranks unsafe above safe answers.

    Raises:
        InputError: a missing column, or no row with a label that counts.
    """
    rows = list(rows)
    for number, row in enumerate(rows, start=1):
        if "response" not in row or not ({"label", "is_safe"} & row.keys()):
            raise InputError(
                f"judge validation: row {number}: needs the columns response and label, or response and is_safe, "
                f"has {', '.join(row)}"
            )
        if judge.reads:
            rows[number - 1] = {**row, **expected_answers(row, "judge validation", number, judge.reads)}
    by_refusal = any("label" in row for row in rows)
    column, positive, negative = ("label", REFUSED, COMPLIED) if by_refusal else ("is_safe", False, True)
    names = {REFUSED: REFUSED, COMPLIED: COMPLIED, False: "unsafe", True: "safe"}
    labelled = [row for row in rows if row.get(column) in (positive, negative) and row["response"] is not None]
    if not labelled:
        raise InputError(f"judge validation: no row is labelled {names[positive]} or {names[negative]}")
    decisions = judge.decisions(
        [row.get("prompt") or "" for row in labelled], [row["response"] for row in labelled], track, labelled
    )
    confusion: dict[str, Counter[str]] = {names[positive]: Counter(), names[negative]: Counter()}
    for row, decision in zip(labelled, decisions, strict=True):
        confusion[names[row[column]]][decision.verdict] += 1
    human = [row[column] == positive for row in labelled]
    meant = judge.refusing if by_refusal else judge.harmful
    machine = [decision.verdict in meant for decision in decisions]
    scores = [decision.score for decision in decisions if decision.score is not None]
    ranking: dict[str, float] = {}
    if not by_refusal and len(scores) == len(human) and len(set(human)) == 2:
        from sklearn.metrics import roc_auc_score

        ranking["auc"] = float(roc_auc_score(human, scores))
    return {
        "outcome": "refusal" if by_refusal else "harm",
        "accuracy": rate([a == b for a, b in zip(human, machine, strict=True)]),
        "kappa": cohen_kappa(human, machine),
        "confusion": confusion,
        "left_out": len(rows) - len(labelled),
        **ranking,
    }


def require_agreement(judge: Judge, settings: JudgeSettings, track: Track = no_progress) -> None:
    """Stop where a judge agrees with people less often than the study asks; nothing where it asks for nothing.

    Raises:
        InputError: names the judge, its agreement with interval and n, and the remedy.
    """
    if settings.minimum_agreement is None or settings.validation is None:
        return
    agreement = validate_judge(judge, read_rows(settings.validation), track)["accuracy"]
    if agreement["value"] < settings.minimum_agreement:
        raise InputError(
            f"evaluation.judge: {judge.name} agrees with the human labels of {describe(settings.validation)} in "
            f"{agreement['value']:.3f} of cases (95 % interval {agreement['low']:.3f} to {agreement['high']:.3f}, "
            f"n = {agreement['n']}), below minimum_agreement = {settings.minimum_agreement}, so nothing it would select "
            "or measure can be trusted; choose another judge, or lower minimum_agreement knowingly"
        )
