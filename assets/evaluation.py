"""What the correction changed: harmlessness, out-of-distribution behaviour, utility."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.data.expectations import generation_expectations, meets
from lancet_pipeline.data.tokenization import tokenize_held_out
from lancet_pipeline.evaluation import reports
from lancet_pipeline.evaluation.figures import FIGURES
from lancet_pipeline.evaluation.gates import GATES, gate
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.lineage.stages import REPORTS

JUDGED = {"answers_are_judged": "Great Expectations: every prompt answered by every model, each answer judged."}
GATED = {
    report: {name: f"Gate: {kind.explanation}." for name, kind in GATES.items() if kind.report == report}
    for report in REPORTS
}
"""Gates that a report measures, and what they say."""

_asset = {
    report: partial(stage_asset, kinds={"parquet"}, checks=JUDGED | gates, advisory=frozenset(gates))
    for report, gates in GATED.items()
}


@_asset["harmlessness_report"]()
def harmlessness_report(run: StageRun) -> Outcome:
    """Share of harmful answers to held-out prompts of the kind that the queries came from."""
    paraphrases = run.source("paraphrases").to_pylist()
    return _harm_outcome(run, "harmful_prompts", "Harmful answers, in distribution", paraphrases)


@_asset["ood_report"]()
def ood_report(run: StageRun) -> Outcome:
    """Share of harmful answers to prompts whose source and wording the training data never had."""
    return _harm_outcome(run, "ood_prompts", "Harmful answers, out of distribution")


@_asset["utility_report"]()
def utility_report(run: StageRun) -> Outcome:
    """Over-refusal and diversity on benign prompts, perplexity and token accuracy on held-out safe responses."""
    benign = run.source("benign_prompts").to_pylist()
    held_out = run.source("utility_responses").to_pylist()
    report = reports.utility_report(
        run.study,
        run.compared_models(),
        benign,
        lambda tokenizer: tokenize_held_out(tokenizer, held_out, run.study.data),
        study_judge(run.study, run.runtime),
        run.runtime,
    )
    rows = len(benign) * len(reports.conditions(run.study.evaluation))
    return _outcome(run, report, rows, "over_refusal_rate", "Refusals of benign prompts")


def _harm_outcome(run: StageRun, source: str, title: str, paraphrases: Sequence[Mapping[str, Any]] = ()) -> Outcome:
    prompts = run.source(source).to_pylist()
    judge = study_judge(run.study, run.runtime)
    report = reports.harm_report(run.study, run.compared_models(), prompts, judge, run.runtime, paraphrases=paraphrases)
    rows = len(prompts) * len(reports.conditions(run.study.evaluation)) + len(paraphrases)
    return _outcome(run, report, rows, "harm_rate", title)


def _outcome(run: StageRun, report: reports.Report, rows: int, figure: str, title: str) -> Outcome:
    """`rows`: the answers that each model must have given."""
    report.save(run.out)
    table, expected = pd.DataFrame(report.rows), generation_expectations(rows * len(report.figures))
    valid, found = meets(table, expected, run.stage.name, run.out)
    return Outcome(
        metrics=report.metrics(),
        plots={"rates": plots.rates({name: f[figure] for name, f in report.figures.items()}, title)},
        tables={
            "models": report.table(),
            "pairs": report.pairs(),
            "sources": report.sources(),
            "answers": report.side_by_side(),
        },
        checks=[
            Check("answers_are_judged", valid, found),
            *(_check(name, run, report) for name in GATED[run.stage.name]),
        ],
    )


def _check(name: str, run: StageRun, report: reports.Report) -> Check:
    kind = GATES[name]
    measured = report.measured.get(FIGURES[kind.figure].stored)
    if measured is None and kind.optional:
        return Check(name, True, {"outcome": "left out: these prompts name no wanted answers"})
    found = gate(name, measured, run.study.evaluation)
    return Check(name, found.passed, found.shown())
