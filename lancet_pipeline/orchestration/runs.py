"""Execute in this process what is stale of a study, as one Dagster run, or of an experiment, as one run per variant."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.config.experiment import is_variant
from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.files import free_bytes
from lancet_pipeline.governance.signing import enclosed_key
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.lineage.staleness import PendingRun
from lancet_pipeline.lineage.variant_failures import forget_failure, record_failure
from lancet_pipeline.models.loading import find_checkpoint
from lancet_pipeline.orchestration.automation import end_lost_runs, source_events
from lancet_pipeline.orchestration.code_location import build_definitions
from lancet_pipeline.orchestration.failures import cause_of
from lancet_pipeline.orchestration.instance import dagster_home
from lancet_pipeline.orchestration.servers import check_servers, lost_server
from lancet_pipeline.store.artifacts import open_store
from lancet_pipeline.tracking.client import Tracking


def execute(run: PendingRun) -> None:
    """Run the stale assets.

    Raises:
        LancetError: an asset failed; an InputError where the input is to blame, the disk is too small, or the signer of
            bundles cannot be used.
    """
    if run.stale:
        _check_disk(run.study, run.where)
    if "audit_bundle" in run.stale:
        enclosed_key(run.where.signing)  # a signer that cannot be used is found before anything is computed
    store = open_store(run.where)
    with store.lock(run.study.name):
        for asset, version in run.versions.items():
            if asset in STAGES and asset not in run.stale and store.has(run.study.name, asset, version):
                store.confirm(run.study.name, asset, version)
        if run.stale:
            check_servers(run.where)
            try:
                _execute_in_dagster(run)
            except LancetError:
                raise
            except Exception as error:  # Dagster's own storage raises through the run
                if (lost := lost_server(run.where, error)) is not None:
                    raise lost from None
                raise


def run_experiment(runs: Sequence[PendingRun], tell: Callable[[str], None]) -> dict[str, str]:
    """Run the runs of an experiment in order. One that fails is recorded, and the others go on.

    Args:
        tell: takes a line for each variant that starts or fails, with the time left.

    Returns:
        The reason of each failure, by variant.

    Raises:
        InputError: the disk is too small for a variant; none has run then.
    """
    current, waiting = ([run for run in runs if bool(run.stale) is stale] for stale in (False, True))
    for run in waiting:
        _check_disk(run.study, run.where)
    if waiting:  # all partitions at once, so that the page shows what is still to run
        with dg.DagsterInstance.from_config(str(dagster_home(waiting[0].where))) as instance:
            instance.add_dynamic_partitions("study", [run.study.name for run in waiting])
    failures: dict[str, str] = {}
    started = time.monotonic()
    for position, run in enumerate([*current, *waiting], start=-len(current)):
        if run.stale:
            left = (time.monotonic() - started) / max(position, 1) * (len(waiting) - position)
            about = f", about {left / 60:.0f} min left" if position else ""
            tell(f"[{position + 1}/{len(waiting)}] {run.study.name}{about}")
        try:
            execute(run)
        except LancetError as error:
            failures[run.study.name] = str(error)
            record_failure(run.where.home, run.study.name, str(error), run.versions)
            tell(f"  failed: {error}")
        else:
            forget_failure(run.where.home, run.study.name)
    return failures


def _execute_in_dagster(run: PendingRun) -> None:
    definitions = build_definitions(run.where, study_files={run.study.name: str(run.path)})
    with dg.DagsterInstance.from_config(str(dagster_home(run.where))) as instance:
        instance.add_dynamic_partitions("study", [run.study.name])
        if not run.where.dagster_postgres_url:  # a database of servers may hold the runs of other homes, too
            end_lost_runs(instance, open_store(run.where), time.time())
        for arrival in source_events(run.study.name, run.versions):
            instance.report_runless_asset_event(arrival)
        job = definitions.resolve_job_def("experiment" if is_variant(run.study.name) else "correction")
        result = job.execute_in_process(
            instance=instance,
            partition_key=run.study.name,
            asset_selection=[dg.AssetKey(asset) for asset in run.stale],
            run_config={"loggers": {"console": {}}},
            raise_on_error=False,
        )
        untold = None
        tracking = Tracking(str(run.where.home), run.where.tracking_uri)
        try:
            tracking.finish(run.study.name, result.run_id, "FINISHED" if result.success else "FAILED")
        except Exception as error:  # whatever MLflow's client raises for a server that is away
            untold = error
        if not result.success:  # says more than that the end could not be noted
            raise cause_of(result, run.where)
        if untold is not None:
            raise LancetError(
                f"all assets are done, but MLflow could not be told that run {result.run_id} ended "
                f"({type(untold).__name__}); see that its server or database is there"
            ) from untold


def _check_disk(study: Study, where: Deployment) -> None:
    """Weights are written once a model, and once more into the registry; artifacts besides take little."""
    weights = 16 * 2**20
    if study.model.checkpoint is not None:
        folder = Path(find_checkpoint(study.model.checkpoint, where.model_directories))
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else weights
    needed = weights * (3 + len(study.evaluation.references)) + 128 * 2**20
    free = free_bytes(where.home)
    if free < needed:
        raise InputError(
            f"{where.home}: the disk has {free / 2**20:.0f} MiB free, a run of study '{study.name}' needs about "
            f"{needed / 2**20:.0f} MiB; free some space or use another --home"
        )
