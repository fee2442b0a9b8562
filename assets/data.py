"""Sources, observed by content, and the prepared data."""

import shutil
import warnings

import dagster as dg
import pyarrow.compute as pc

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import Check, Outcome, StageRun, stage_asset
from lancet_pipeline.config.experiment import is_variant
from lancet_pipeline.data.expectations import meets, sample_expectations
from lancet_pipeline.data.schema import counts
from lancet_pipeline.data.tokenization import FITTED, kept_tokenizer, load_prepared, prepare, record_fitted
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.sources import source_version
from lancet_pipeline.lineage.stages import SOURCES
from lancet_pipeline.resources import ModelSource, StudyCatalog
from lancet_pipeline.resources.studies import STUDY_PARTITIONS


def _observed(name: str, description: str) -> dg.SourceAsset:
    @dg.observable_source_asset(name=name, description=description, group_name="data", partitions_def=STUDY_PARTITIONS)
    def observe(
        context: dg.OpExecutionContext, catalog: StudyCatalog, models: ModelSource
    ) -> dg.DataVersionsByPartition:
        partitions = context.instance.get_dynamic_partitions(STUDY_PARTITIONS.name)
        found = {}
        for study in partitions:
            if is_variant(study):
                continue
            try:
                found[study] = source_version(catalog.load(study), name, models.paths())
            except InputError as error:  # one study's broken file hides no other study's data
                context.log.warning(str(error))
        return dg.DataVersionsByPartition(found)

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
    from_scratch = run.study.model.source == "scratch"
    previous = run.previous() if from_scratch else None
    tokenizer = kept_tokenizer(previous, samples, run.study) if from_scratch else run.models.tokenizer(run.study)
    prepare(run.study, samples, run.out, tokenizer)
    if previous and tokenizer:
        shutil.copyfile(previous / FITTED, run.out / FITTED)
    elif from_scratch and run.study.model.reuse is not None:
        record_fitted(samples, run.out)
    kept, sequences = load_prepared(run.out)
    lengths = [len(sequence) for sequence in sequences]
    responses = [len(sequence) - sequence.response_start for sequence in sequences]
    table = kept.to_pandas().assign(tokens=lengths, response_tokens=responses)
    valid, found = meets(table, sample_expectations(run.study.data.max_length), "prepared_data", run.out)
    unsafe = pc.sum(pc.equal(kept["is_safe"], False)).as_py()
    return Outcome(
        metrics={"samples": len(lengths), "tokens": sum(lengths), "unsafe_samples": unsafe or 0},
        plots={"lengths": plots.histogram({"tokens": lengths}, "tokens", "Sequence lengths")},
        tables={"by_category": [{"category": k, "samples": n} for k, n in counts(kept, "category").items()]},
        checks=[
            Check("samples_are_valid", valid, found),
            Check("responses_are_learnable", min(responses) > 0, {"shortest response": min(responses)}),
        ],
    )
