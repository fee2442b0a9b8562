"""What runs automatically: re-correction when data change, the schedules of studies, and the partitions of studies.

One rule everywhere: run what is out of date by version. Variants of experiments are partitions too, but run only in the job
`experiment`, when a person starts it.
"""

import logging
import time
from collections.abc import Iterable, Mapping

import dagster as dg

from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.changes import (
    Watch,
    fingerprint,
    from_json,
    known_versions,
    look,
    to_json,
)
from lancet_pipeline.lineage.stages import REPORTS, SOURCES, STAGES, upstream
from lancet_pipeline.lineage.staleness import stale_assets
from lancet_pipeline.resources import Alerts, ModelSource, Store, StudyCatalog
from lancet_pipeline.resources.studies import STUDY_PARTITIONS
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.locks import is_locked

log = logging.getLogger("lancet.automation")

LOOK_SECONDS = 8  # the daemon goes round every 5 s, so that a study is looked at every 10 s
READING_SECONDS = 20
"""Seconds after which a tick reads no further study: the daemon gives a tick 60 s."""
LOST_SECONDS = 120

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


def source_events(partition: str, known: Mapping[str, str]) -> list[dg.AssetMaterialization]:
    """The versions of a study's sources as Dagster keeps them. Materialisations, since the input versions of partitioned
    assets are read from those alone."""
    return [
        dg.AssetMaterialization(source, partition=partition, tags={"dagster/data_version": known[source]})
        for source in SOURCES
    ]


@dg.sensor(job=correction_job, minimum_interval_seconds=LOOK_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def data_changes(
    context: dg.SensorEvaluationContext, catalog: StudyCatalog, store: Store, models: ModelSource, alerts: Alerts
) -> dg.SensorResult:
    """Corrects a study again when its data or settings change: studies with `recorrect: on_change` that were corrected once.

    A change is read when it has held still for one look. Content that is not valid starts nothing and is told once; the same
    versions are asked for once, whether their run succeeds or not.
    """
    artifacts, directories = store.open(), models.paths()
    watches, hub = from_json(context.cursor)
    partitions = set(context.instance.get_dynamic_partitions("study"))
    requests, events, added, reasons = [], [], [], []
    started = time.monotonic()
    for name in catalog.names():
        path = catalog.path(name)
        watch = watches.get(name, Watch())
        study = None
        try:
            study = catalog.load(name)
        except InputError as error:
            if watch == Watch():  # of a study that is not watched, nothing is told
                reasons.append(f"{name}: {error}")
                continue
        if study and (study.recorrect == "manual" or artifacts.current(study.name, "registered_model") is None):
            watches.pop(name, None)
            continue
        if time.monotonic() - started > READING_SECONDS:
            reasons.append(f"{name}: looked at in the next tick")
            continue
        found = look(
            watch,
            lambda study=study, path=path: fingerprint(study, path, directories, hub),
            lambda name=name: known_versions(catalog.load(name), directories),
        )
        watches[name] = found.watch
        if found.problem:
            alerts.send("invalid_input", name, found.problem)
        if study is not None and found.versions:
            stale = stale_assets(study.name, artifacts, found.versions)
            if not stale:
                reasons.append(f"{name}: everything is there in these versions")
                continue
            added += [name] if name not in partitions else []
            events += source_events(name, found.versions)
            requests.append(
                dg.RunRequest(
                    run_key=f"{name}-{found.watch.known[:16]}-{found.watch.changes}",
                    partition_key=name,
                    asset_selection=[dg.AssetKey(asset) for asset in stale],
                )
            )
        else:
            reasons.append(f"{name}: {found.reason}")
    end_lost_runs(context.instance, artifacts, time.time())
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "; ".join(reasons) or "no study that was corrected once and is on_change",
        cursor=to_json(watches, hub),
        asset_events=events,
        dynamic_partitions_requests=[STUDY_PARTITIONS.build_add_request(added)] if added else [],
    )


def end_lost_runs(instance: dg.DagsterInstance, artifacts: ArtifactStore, now: float) -> list[str]:
    """Mark runs as failed that are said to go on though no process holds their study: a machine that was switched off says
    nothing, and its study would wait for ever. Returns their ids."""
    lost = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        run = record.dagster_run
        study = run.tags.get("dagster/partition")
        if study is None or record.start_time is None or now - record.start_time < LOST_SECONDS:
            continue
        if not is_locked(artifacts.root, study):
            instance.report_run_failed(
                run, "The process of this run is gone. What it finished is reused by the next run."
            )
            lost.append(run.run_id)
    return lost


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def study_sensor(context: dg.SensorEvaluationContext, catalog: StudyCatalog) -> dg.SensorResult | dg.SkipReason:
    """Every study file is a partition."""
    return _new_partitions(context, catalog.names(), "study")


@dg.sensor(minimum_interval_seconds=30)
def experiment_variants(context: dg.SensorEvaluationContext, catalog: StudyCatalog) -> dg.SensorResult | dg.SkipReason:
    """While it is on, every variant of every experiment file is a partition; it starts no run."""
    return _new_partitions(context, catalog.variants(), "variant")


def _new_partitions(
    context: dg.SensorEvaluationContext, names: Iterable[str], kind: str
) -> dg.SensorResult | dg.SkipReason:
    known = set(context.instance.get_dynamic_partitions("study"))
    added = [name for name in names if name not in known]
    if not added:
        return dg.SkipReason(f"no new {kind}")
    return dg.SensorResult(dynamic_partitions_requests=[STUDY_PARTITIONS.build_add_request(added)])


def study_schedules(catalog: StudyCatalog) -> list[dg.ScheduleDefinition]:
    """One schedule for each study that names a cron expression; it runs what is out of date, or nothing. A file that holds no
    valid study is passed over, so that it stops no other."""
    schedules = []
    for name in catalog.names():
        try:
            study = catalog.load(name)
        except InputError as error:
            log.warning("no schedule: %s", error)
            continue
        if study.schedule:
            schedules.append(_schedule(study.name, study.schedule))
    return schedules


def _schedule(name: str, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(job=correction_job, cron_schedule=cron, name=f"recorrect_{name.replace('-', '_')}")
    def recorrect(
        context: dg.ScheduleEvaluationContext, catalog: StudyCatalog, store: Store, models: ModelSource, alerts: Alerts
    ):
        try:
            study = catalog.load(name)
            known = known_versions(study, models.paths())
        except InputError as error:
            alerts.send("invalid_input", name, str(error))
            return dg.SkipReason(str(error))
        stale = stale_assets(study.name, store.open(), known)
        if not stale:
            return dg.SkipReason(f"{name}: nothing changed")
        context.instance.add_dynamic_partitions("study", [name])
        for event in source_events(name, known):
            context.instance.report_runless_asset_event(event)
        return dg.RunRequest(partition_key=name, asset_selection=[dg.AssetKey(asset) for asset in stale])

    return recorrect
