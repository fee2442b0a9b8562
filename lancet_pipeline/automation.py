"""What runs without a hand on it: the job, the studies' schedules, and the partitions that studies make."""

import dagster as dg

from lancet_pipeline.artifacts import ArtifactStore
from lancet_pipeline.graph import SOURCES, STAGES, versions
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
observation_job = dg.define_asset_job(
    "observation",
    selection=dg.AssetSelection.assets(*SOURCES),
    description="Content versions of all sources of all studies, so that a change of the data is seen.",
)
observation_schedule = dg.ScheduleDefinition("observe_sources", job=observation_job, cron_schedule="* * * * *")


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
