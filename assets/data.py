"""Sources, observed by content, and the prepared data."""

import shutil
import warnings

import dagster as dg

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.data.expectations import meets, sample_expectations
from lancet_pipeline.data.schema import counts
from lancet_pipeline.data.tokenization import (
    FITTED,
    kept_tokenizer,
    load_prepared,
    load_tokenizer,
    prepare,
    record_fitted,
)
from lancet_pipeline.lineage.sources import observed
from lancet_pipeline.lineage.stages import SOURCES
from lancet_pipeline.resources import ModelSource, StudyCatalog
from lancet_pipeline.resources.studies import STUDIES, STUDY_PARTITIONS


def _observed(name: str, description: str) -> dg.SourceAsset:
    @dg.observable_source_asset(name=name, description=description, group_name="data", partitions_def=STUDY_PARTITIONS)
    def observe(
        context: dg.OpExecutionContext, catalog: StudyCatalog, models: ModelSource
    ) -> dg.DataVersionsByPartition:
        studies = context.instance.get_dynamic_partitions(STUDIES)
        return dg.DataVersionsByPartition(observed(name, studies, catalog.load, models.paths(), context.log.warning))

    return observe


with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)
    sources = [_observed(source.name, source.description) for source in SOURCES.values()]


@stage_asset(
    kinds={"parquet"},
    checks={
        "samples_are_valid": "Great Expectations: ids unique, no null or blank text, lengths within the context.",
        "responses_are_learnable": "Every sample has response tokens, which alone carry loss.",
    },
)
def prepared_data(run: StageRun) -> Outcome:
    """Training samples, validated, tokenised and sharded, with the tokenizer that was used."""
    samples = run.source("training_data")
    settings = run.study.model
    from_scratch, previous = settings.checkpoint is None, None
    if settings.checkpoint is not None:
        tokenizer = load_tokenizer(run.runtime.find(settings.checkpoint), settings.revision)
    else:
        previous = run.previous()
        tokenizer = kept_tokenizer(previous, samples, run.study)
    prepare(run.study, samples, run.out, tokenizer)
    if previous and tokenizer:
        shutil.copyfile(previous / FITTED, run.out / FITTED)
    elif from_scratch and settings.reuse is not None:
        record_fitted(samples, run.out)
    kept, sequences = load_prepared(run.out)
    lengths = [len(sequence) for sequence in sequences]
    responses = [len(sequence) - sequence.response_start for sequence in sequences]
    table = kept.to_pandas().assign(tokens=lengths, response_tokens=responses)
    valid, found = meets(table, sample_expectations(run.study.data.max_length), "prepared_data", run.out)
    labels = kept["is_safe"].to_pylist()
    return Outcome(
        metrics={"samples": len(lengths), "tokens": sum(lengths), "unsafe_samples": labels.count(False)}
        | {"labelled_samples": len(labels) - labels.count(None)},
        plots={"lengths": plots.histogram({"tokens": lengths}, "tokens", "Sequence lengths")},
        tables={"by_category": [{"category": k, "samples": n} for k, n in counts(kept, "category").items()]},
        checks=[
            Check("samples_are_valid", valid, found),
            Check("responses_are_learnable", min(responses) > 0, {"shortest response": min(responses)}),
        ],
    )
