"""How far a judge agrees with people."""

from collections.abc import Iterable, Mapping
from typing import Any

from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.statistics import cohen_kappa, rate

REFUSED, COMPLIED = "full_refusal", "full_compliance"


def validate_judge(judge: Judge, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Agreement on refusal against compliance with human labels (column `label`); partial refusals are left out.

    Returns:
        {"accuracy": rate, "kappa", "confusion": {human label: {verdict: count}}, "left_out"}.
    """
    human: list[bool] = []
    machine: list[bool] = []
    confusion: dict[str, dict[str, int]] = {REFUSED: {}, COMPLIED: {}}
    left_out = 0
    for number, row in enumerate(rows, start=1):
        if "label" not in row or "response" not in row:
            raise InputError(
                f"judge validation: row {number}: needs the columns response and label, has {', '.join(row)}"
            )
        if row["label"] not in confusion:
            left_out += 1
            continue
        verdict = judge.verdict(row["response"])
        confusion[row["label"]][verdict] = confusion[row["label"]].get(verdict, 0) + 1
        human.append(row["label"] == REFUSED)
        machine.append(verdict in judge.refusing)
    if not human:
        raise InputError(f"judge validation: no row is labelled {REFUSED} or {COMPLIED}")
    agreement = rate([a == b for a, b in zip(human, machine, strict=True)])
    return {"accuracy": agreement, "kappa": cohen_kappa(human, machine), "confusion": confusion, "left_out": left_out}
