"""The model as trained, its references, and its own undesirable outputs."""

from collections import Counter

import pandas as pd

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.data.expectations import generation_expectations, meets
from lancet_pipeline.data.schema import kind
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.queries import gather, write_rows
from lancet_pipeline.models.base import kept_base_model, write_base_model, write_reference_models

FINITE = {"parameters_are_finite": "No parameter is infinite or not a number."}


@stage_asset(kinds={"pytorch", "safetensors"}, checks=FINITE)
def base_model(run: StageRun) -> Outcome:
    """The model to correct: trained from scratch, fine-tuned from a checkpoint, taken as given, or kept over a small
    change of the data where the study allows it."""
    prepared, previous = run.input("prepared_data"), run.previous()
    kept = previous and kept_base_model(run.study, previous, prepared, run.out, run.runtime)
    made = kept or run.runtime.train(write_base_model, run.study, prepared, run.out)
    curve, drift = made.curve, made.drift.metrics() if made.drift else {}
    points = list(enumerate(curve, start=1))
    return Outcome(
        metrics={"parameters": made.parameters, **({"final_loss": curve[-1]} if curve else {}), **drift},
        curves={"loss": points},
        plots={"loss": plots.curves({"loss": points}, "step", "loss per token", "Training loss")} if curve else {},
        checks=[Check("parameters_are_finite", made.finite)],
    )


@stage_asset(kinds={"pytorch", "safetensors"}, checks=FINITE)
def reference_models(run: StageRun) -> Outcome:
    """Models that the corrected one is measured against, such as one trained again without the unsafe samples."""
    metrics, finite = write_reference_models(run.study, run.input("prepared_data"), run.out, run.runtime)
    return Outcome(metrics=metrics, checks=[Check("parameters_are_finite", finite)])


@stage_asset(
    kinds={"parquet"},
    checks={"answers_are_judged": "Great Expectations: every probe answered once, every answer judged."},
)
def undesirable_outputs(run: StageRun) -> Outcome:
    """The model's own harmful answers to the probe prompts, which are the queries, and its harmless ones, their controls."""
    probes, judge = run.source("probe_prompts").to_pylist(), study_judge(run.study, run.runtime)
    found = gather(run.study, run.input("base_model"), probes, judge, run.runtime)
    write_rows(found.answers, run.out / "answers.parquet")
    write_rows(found.queries, run.out / "queries.parquet")
    write_rows(found.controls, run.out / "controls.parquet")
    valid, details = meets(
        pd.DataFrame(found.answers), generation_expectations(len(probes)), "undesirable_outputs", run.out
    )
    kinds = Counter(kind(row) for row in found.queries)
    return Outcome(
        metrics={
            "probes": len(probes),
            "harmful": sum(row["harmful"] for row in found.answers),
            "queries": len(found.queries),
            "controls": len(found.controls),
        },
        tables={
            "queries": [{k: row[k] for k in ("prompt", "response", "verdict")} for row in found.queries],
            "kinds": [{"kind": name, "queries": count} for name, count in sorted(kinds.items())],
        },
        checks=[Check("answers_are_judged", valid, details)],
    )
