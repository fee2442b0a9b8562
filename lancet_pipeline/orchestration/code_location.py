"""Assets, checks, jobs, schedules, sensors and resources of a deployment, assembled in one place."""

from collections.abc import Mapping

import dagster as dg

from lancet_pipeline.assets import correction, data, evaluation, governance, influence, model, selection
from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.orchestration import automation
from lancet_pipeline.orchestration.alerts import run_endings
from lancet_pipeline.orchestration.console import console_logger
from lancet_pipeline.resources import (
    Alerts,
    Compute,
    ModelSource,
    RunSnapshot,
    Store,
    StudyCatalog,
    TrackingServer,
)


def build_definitions(where: Deployment, study_files: Mapping[str, str] | None = None) -> dg.Definitions:
    """A whole deployment. `study_files` (name -> path) adds studies that lie outside its study directories."""
    home = str(where.home)
    catalog = StudyCatalog(
        directories=list(map(str, where.study_directories)),
        experiment_directories=list(map(str, where.experiment_directories)),
        files=dict(study_files or {}),
    )
    store = Store(home=home, artifacts=where.artifacts)
    models = ModelSource(directories=list(map(str, where.model_directories)))
    return dg.Definitions(
        assets=dg.load_assets_from_modules([data, model, influence, selection, correction, evaluation, governance]),
        jobs=[automation.correction_job, automation.experiment_job],
        schedules=automation.study_schedules(catalog),
        sensors=[automation.data_changes, automation.study_sensor, automation.experiment_variants, *run_endings],
        resources={
            "catalog": catalog,
            "store": store,
            "models": models,
            "snapshot": RunSnapshot(catalog=catalog, models=models, store=store),
            "compute": Compute(),
            "signing": where.signing,
            "tracking": TrackingServer(home=home, uri=where.tracking_uri),
            # Named, not given: the page shows what a resource is given.
            "alerts": Alerts(webhook=dg.EnvVar("LANCET_WEBHOOK") if where.alerts else "", page=where.page),
        },
        # One machine, one model in memory at a time: steps of a run share the process.
        executor=dg.in_process_executor,
        loggers={"console": console_logger},
    )
