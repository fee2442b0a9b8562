"""The model as trained, its references, and its own undesirable outputs."""

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import Check, Outcome, StageRun, stage_asset
from lancet_pipeline.data.expectations import generation_expectations, meets
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.evaluation.queries import undesirable_answers, write_rows
from lancet_pipeline.evaluation.validation import require_agreement
from lancet_pipeline.files import take_over
from lancet_pipeline.models.base import write_base_model, write_reference_models
from lancet_pipeline.models.loading import finite_parameters, load_model
from lancet_pipeline.models.reuse import may_stay

FINITE = {"parameters_are_finite": "No parameter is infinite or not a number."}


def _kept(run: StageRun) -> Outcome | None:
    """The model that this stage made last, taken over where the study allows it for the present data."""
    previous = run.previous()
    if previous is None:
        return None
    _, sequences = load_prepared(run.input("prepared_data"))
    model = load_model(previous, dtype=run.study.model.dtype, device=run.device)
    drift = may_stay(model, previous, sequences, run.study)
    if drift is None:
        return None
    take_over(previous, run.out)
    return Outcome(
        metrics={"parameters": model.num_parameters(), **drift.metrics()},
        checks=[Check("parameters_are_finite", finite_parameters(model))],
    )


@stage_asset(kinds={"pytorch", "safetensors"}, checks=FINITE)
def base_model(run: StageRun) -> Outcome:
    """The model to correct: trained from scratch, fine-tuned from a checkpoint, taken as given, or kept over a small
    change of the data where the study allows it."""
    if (kept := _kept(run)) is not None:
        return kept
    made = run.train(write_base_model, run.input("prepared_data"), run.models.checkpoint(run.study), run.out)
    curve = made.curve
    points = list(enumerate(curve, start=1))
    return Outcome(
        metrics={"parameters": made.parameters, **({"final_loss": curve[-1]} if curve else {})},
        curves={"loss": points},
        plots={"loss": plots.curves({"loss": points}, "step", "loss per token", "Training loss")} if curve else {},
        checks=[Check("parameters_are_finite", made.finite)],
    )


@stage_asset(kinds={"pytorch", "safetensors"}, checks=FINITE)
def reference_models(run: StageRun) -> Outcome:
    """Models that the corrected one is measured against, such as one trained again without the unsafe samples."""
    metrics, finite = write_reference_models(
        run.study,
        run.input("prepared_data"),
        run.models.checkpoint(run.study),
        run.out,
        device=run.device,
        track=run.track,
    )
    return Outcome(metrics=metrics, checks=[Check("parameters_are_finite", finite)])


@stage_asset(
    kinds={"parquet"},
    checks={"answers_are_judged": "Great Expectations: every probe answered once, every answer judged."},
)
def undesirable_outputs(run: StageRun) -> Outcome:
    """The model's own harmful answers to the probe prompts: the queries."""
    require_agreement(run.judge, run.study.evaluation.judge, run.track)
    model, tokenizer = run.model("base_model")
    probes = run.source("probe_prompts").to_pylist()
    answers, queries = undesirable_answers(
        model, tokenizer, probes, run.judge, run.study.queries, run.study.compute.batch_tokens, run.track
    )
    write_rows(answers, run.out / "answers.parquet")
    write_rows(queries, run.out / "queries.parquet")
    valid, found = meets(_frame(answers), generation_expectations(len(probes)), "undesirable_outputs", run.out)
    return Outcome(
        metrics={"probes": len(probes), "harmful": sum(row["harmful"] for row in answers), "queries": len(queries)},
        tables={"queries": [{k: row[k] for k in ("prompt", "response", "verdict")} for row in queries]},
        checks=[Check("answers_are_judged", valid, found)],
    )


def _frame(rows: list[dict]):
    import pandas as pd

    return pd.DataFrame(rows)
