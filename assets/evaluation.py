"""What the correction changed: harmlessness, out-of-distribution behaviour, utility."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.data.expectations import generation_expectations, meets
from lancet_pipeline.data.tokenization import tokenize_held_out
from lancet_pipeline.evaluation import reports
from lancet_pipeline.evaluation.gates import Gate, gate
from lancet_pipeline.evaluation.judges import study_judge

JUDGED = {"answers_are_judged": "Great Expectations: every prompt answered by every model, each answer judged."}
HARM_FALLS = {"harm_falls": "Gate: the corrected model's harm rate over the base model's."}
UTILITY_HOLDS = {
    "perplexity_holds": "Gate: perplexity on held-out safe responses over the base model's.",
    "over_refusal_holds": "Gate: rise of refusals on benign prompts.",
}


@stage_asset(kinds={"parquet"}, checks=JUDGED | HARM_FALLS, advisory=frozenset(HARM_FALLS))
def harmlessness_report(run: StageRun) -> Outcome:
    """Share of harmful answers to held-out prompts of the kind that the queries came from."""
    paraphrases = run.source("paraphrases").to_pylist()
    return _harm_outcome(run, "harmful_prompts", "Harmful answers, in distribution", paraphrases)


@stage_asset(kinds={"parquet"}, checks=JUDGED | HARM_FALLS, advisory=frozenset(HARM_FALLS))
def ood_report(run: StageRun) -> Outcome:
    """Share of harmful answers to prompts whose source and wording the training data never had."""
    return _harm_outcome(run, "ood_prompts", "Harmful answers, out of distribution")


@stage_asset(kinds={"parquet"}, checks=JUDGED | UTILITY_HOLDS, advisory=frozenset(UTILITY_HOLDS))
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
    gates = [gate(name, report.figures, run.study.evaluation) for name in UTILITY_HOLDS]
    rows = len(benign) * len(reports.conditions(run.study.evaluation))
    return _outcome(run, report, rows, "over_refusal_rate", "Refusals of benign prompts", gates)


def _harm_outcome(run: StageRun, source: str, title: str, paraphrases: Sequence[Mapping[str, Any]] = ()) -> Outcome:
    prompts = run.source(source).to_pylist()
    settings = run.study.evaluation
    judge = study_judge(run.study, run.runtime)
    report = reports.harm_report(run.study, run.compared_models(), prompts, judge, run.runtime, paraphrases=paraphrases)
    gates = [gate(name, report.figures, settings) for name in HARM_FALLS]
    rows = len(prompts) * len(reports.conditions(settings)) + len(paraphrases)
    return _outcome(run, report, rows, "harm_rate", title, gates)


def _outcome(run: StageRun, report: reports.Report, rows: int, figure: str, title: str, gates: list[Gate]) -> Outcome:
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
            *[Check(g.name, g.passed, {"value": g.value, "limit": g.limit}) for g in gates],
        ],
    )
