"""The Dagster code location: assets, checks, jobs, schedules, sensors and resources, assembled in one place."""

import os
import warnings
from collections.abc import Mapping

import dagster as dg

from lancet_pipeline.assets import correction, data, evaluation, governance, influence, model, selection
from lancet_pipeline.automation import (
    correction_job,
    experiment_job,
    experiment_variants,
    observation_job,
    observation_schedule,
    study_schedules,
    study_sensor,
)
from lancet_pipeline.console import console_logger
from lancet_pipeline.deployment import Deployment, deployment
from lancet_pipeline.resources import Compute, JudgeSource, ModelSource, Store, StudyCatalog, Tracking


def build_definitions(where: Deployment, study_files: Mapping[str, str] | None = None) -> dg.Definitions:
    """A whole deployment. `study_files` (name -> path) adds studies that lie outside its study directories."""
    home = str(where.home)
    catalog = StudyCatalog(
        directories=list(map(str, where.study_directories)),
        experiment_directories=list(map(str, where.experiment_directories)),
        files=dict(study_files or {}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        recorrection = dg.AutomationConditionSensorDefinition(
            "recorrection",
            target=dg.AssetSelection.all(),
            use_user_code_server=True,  # the condition is our own
        )
    return dg.Definitions(
        assets=dg.load_assets_from_modules([data, model, influence, selection, correction, evaluation, governance]),
        jobs=[correction_job, experiment_job, observation_job],
        schedules=[observation_schedule, *study_schedules(catalog)],
        sensors=[study_sensor, experiment_variants, recorrection],
        resources={
            "catalog": catalog,
            "store": Store(home=home),
            "models": ModelSource(directories=list(map(str, where.model_directories))),
            "compute": Compute(),
            "judge": JudgeSource(),
            "signing": where.signing,
            "tracking": Tracking(home=home, uri=where.tracking_uri),
        },
        # One machine, one model in memory at a time: steps of a run share the process.
        executor=dg.in_process_executor,
        loggers={"console": console_logger},
    )


defs = build_definitions(deployment(os.environ))
