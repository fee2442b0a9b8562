"""What runs without a hand on it: the jobs, the studies' schedules, and the partitions that studies make.

Variants of experiments are partitions too, but run only in the job `experiment`, when a person starts it.
"""

import dagster as dg

from lancet_pipeline.artifacts import ArtifactStore
from lancet_pipeline.experiment import is_variant
from lancet_pipeline.graph import REPORTS, SOURCES, STAGES, upstream, versions
from lancet_pipeline.inputs import source_versions
from lancet_pipeline.resources import ModelSource, Store, StudyCatalog
from lancet_pipeline.resources.studies import STUDY_PARTITIONS
from lancet_pipeline.study import Study

correction_job = dg.define_asset_job(
    "correction",
    selection=dg.AssetSelection.assets(*STAGES),
    partitions_def=STUDY_PARTITIONS,
    description="Training data in, corrected, evaluated and registered model out. What is up to date is reused.",
)
experiment_job = dg.define_asset_job(
    "experiment",
    selection=dg.AssetSelection.assets(*upstream(*REPORTS)),
    partitions_def=STUDY_PARTITIONS,
    description="Up to the three reports, without a bundle or a registered model: launch it over an experiment's "
    "variants. The sensor experiment_variants makes their partitions.",
)
observation_job = dg.define_asset_job(
    "observation",
    selection=dg.AssetSelection.assets(*SOURCES),
    description="Content versions of all sources of all studies, so that a change of the data is seen.",
)
observation_schedule = dg.ScheduleDefinition("observe_sources", job=observation_job, cron_schedule="* * * * *")


class OfStudies(dg.AutomationCondition):
    """True for the partitions of studies, not for those of variants."""

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        candidates = context.candidate_subset
        studies = {key for key in candidates.expensively_compute_partition_keys() if not is_variant(key)}
        return dg.AutomationResult(context, candidates.compute_intersection_with_partition_keys(studies))


EAGER_FOR_STUDIES = OfStudies() & dg.AutomationCondition.eager()


def stale_assets(study: Study, store: ArtifactStore, known: dict[str, str]) -> list[str]:
    """The assets of a study that are not in the store in their present version, inputs first."""
    return [name for name in STAGES if not store.has(study.name, name, known[name])]


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def study_sensor(context: dg.SensorEvaluationContext, catalog: StudyCatalog) -> dg.SensorResult | dg.SkipReason:
    """Every study file is a partition."""
    known = set(context.instance.get_dynamic_partitions("study"))
    added = [name for name in catalog.names() if name not in known]
    if not added:
        return dg.SkipReason("no new study")
    return dg.SensorResult(dynamic_partitions_requests=[STUDY_PARTITIONS.build_add_request(added)])


@dg.sensor(minimum_interval_seconds=30)
def experiment_variants(context: dg.SensorEvaluationContext, catalog: StudyCatalog) -> dg.SensorResult | dg.SkipReason:
    """While it is on, every variant of every experiment file is a partition; it starts no run."""
    known = set(context.instance.get_dynamic_partitions("study"))
    added = [name for name in catalog.variants() if name not in known]
    if not added:
        return dg.SkipReason("no new variant")
    return dg.SensorResult(dynamic_partitions_requests=[STUDY_PARTITIONS.build_add_request(added)])


def study_schedules(catalog: StudyCatalog) -> list[dg.ScheduleDefinition]:
    """One schedule for each study that names a cron expression; it runs what is out of date, or nothing."""
    studies = [catalog.load(name) for name in catalog.names()]
    return [_schedule(study.name, study.schedule) for study in studies if study.schedule]


def _schedule(name: str, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(job=correction_job, cron_schedule=cron, name=f"recorrect_{name.replace('-', '_')}")
    def recorrect(context: dg.ScheduleEvaluationContext, catalog: StudyCatalog, store: Store, models: ModelSource):
        study = catalog.load(name)
        stale = stale_assets(study, store.open(), versions(study, source_versions(study, models.paths())))
        if not stale:
            return dg.SkipReason(f"{name}: nothing changed")
        context.instance.add_dynamic_partitions("study", [name])
        return dg.RunRequest(partition_key=name, asset_selection=[dg.AssetKey(asset) for asset in stale])

    return recorrect
