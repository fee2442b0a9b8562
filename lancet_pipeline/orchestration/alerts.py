"""What happens when a run that the daemon launched has ended: its MLflow run ends too, and people are told what they must know."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from lancet_pipeline.config.experiment import is_variant
from lancet_pipeline.orchestration.failures import readable_error
from lancet_pipeline.resources import Alerts, TrackingServer

_MLFLOW_STATUS = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}


@dataclass(frozen=True)
class Alert:
    event: str
    message: str
    asset: str = ""
    check: str = ""


def alerts_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[Alert]:
    """What people must know of a run that has ended: failed assets and checks, and a candidate that waits for review."""
    failed = False
    for entry in instance.all_logs(run.run_id):
        event = entry.dagster_event
        if event is None:
            continue
        if event.is_step_failure:
            failed = True
            yield Alert("run_failed", str(readable_error(event)), event.step_key or "")
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                found = ", ".join(f"{name}: {value.value}" for name, value in check.metadata.items())
                asset = check.asset_key.to_user_string()
                yield Alert("check_failed", f"{asset}: {check.check_name} failed ({found})", asset, check.check_name)
        elif event.is_step_materialization and event.asset_key == dg.AssetKey("registered_model"):
            metadata = event.step_materialization_data.materialization.metadata
            if "model_version" in metadata and not metadata["reused"].value:
                version = metadata["model_version"].value
                yield Alert("candidate_registered", f"version {version:.0f} waits for review", "registered_model")
    if run.status == dg.DagsterRunStatus.FAILURE and not failed:
        yield Alert("run_failed", "the run failed outside of its assets, or its process is gone; its log says more")


def _ending(name: str, status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=name,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ends the MLflow run, and posts what people must know to the webhook.",
    )
    def ended(context: dg.RunStatusSensorContext, tracking: TrackingServer, alerts: Alerts) -> None:
        run = context.dagster_run
        study = run.tags.get("dagster/partition")
        if study is None:
            return
        for alert in alerts_of(context.instance, run) if status != dg.DagsterRunStatus.CANCELED else ():
            if not is_variant(study) or alert.event == "run_failed":
                alerts.send(alert.event, study, alert.message, run_id=run.run_id, asset=alert.asset, check=alert.check)
        tracking.open().finish(study, run.run_id, _MLFLOW_STATUS[status])

    return ended


run_endings = [
    _ending("run_succeeded", dg.DagsterRunStatus.SUCCESS),
    _ending("run_failed", dg.DagsterRunStatus.FAILURE),
    _ending("run_canceled", dg.DagsterRunStatus.CANCELED),
]
