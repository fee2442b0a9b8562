"""Run what is out of date, from the command line: a study as one Dagster run, an experiment as one run per variant. Everything
is validated first."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.config.experiment import Experiment, forget_failure, record_failure
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.governance.signing import enclosed_key
from lancet_pipeline.lineage.sources import source_versions
from lancet_pipeline.lineage.stages import REPORTS, STAGES, upstream, versions
from lancet_pipeline.models.loading import find_checkpoint
from lancet_pipeline.orchestration.failures import cause_of
from lancet_pipeline.orchestration.servers import check_servers, choose_storage, lost_server
from lancet_pipeline.store.artifacts import open_store


@dataclass(frozen=True)
class Plan:
    """What a run will do: the study, the version of everything, and the assets that are out of date. path: the file that
    the study comes from. job: the Dagster job that has the assets."""

    study: Study
    path: Path
    where: Deployment
    versions: dict[str, str]
    stale: list[str]
    job: str = "correction"


def plan_run(name_or_path: str, where: Deployment, until: str | None = None) -> Plan:
    """Validate a study and all its inputs, and compare versions with what is in the store.

    Raises:
        InputError: anything that does not fit; nothing has been computed or written then.
    """
    if until is not None and until not in STAGES:
        raise InputError(f"--until {until}: no such asset; assets: {', '.join(STAGES)}")
    path = find_study(name_or_path, where.study_directories)
    study = load_study(path)
    known = versions(study, source_versions(study, where.model_directories))
    return plan_study(study, path, where, known, upstream(until) if until else tuple(STAGES))


def plan_study(
    study: Study,
    path: Path,
    where: Deployment,
    known: Mapping[str, str],
    wanted: Sequence[str],
    job: str = "correction",
) -> Plan:
    """Compare the versions `known` of the assets `wanted` with what is in the store.

    Raises:
        InputError: the disk is too small for what is out of date, or the signer of bundles cannot be used.
    """
    store = open_store(where)
    stale = [asset for asset in wanted if not store.has(study.name, asset, known[asset])]
    if stale:
        _check_disk(study, where)
    if "audit_bundle" in stale:
        enclosed_key(where.signing)  # a signer that cannot be used is found before anything is computed
    return Plan(study, path, where, dict(known), stale, job)


def execute(plan: Plan) -> None:
    """Run the stale assets of a plan in this process.

    Raises:
        LancetError: an asset failed; an InputError where the input is to blame.
    """
    store = open_store(plan.where)
    with store.lock(plan.study.name):
        for asset, version in plan.versions.items():
            if asset in STAGES and asset not in plan.stale and store.has(plan.study.name, asset, version):
                store.confirm(plan.study.name, asset, version)
        if plan.stale:
            check_servers(plan.where)
            try:
                _execute_in_dagster(plan)
            except LancetError:
                raise
            except Exception as error:  # Dagster's own storage raises through the run
                lost = lost_server(plan.where, error)
                if lost is None:
                    raise
                raise lost from None


def variant_versions(experiment: Experiment, where: Deployment) -> dict[str, dict[str, str]]:
    """Versions of everything of every variant, by its name; sources that variants share are read once.

    Raises:
        InputError: a source does not fit.
    """
    sources: dict[str, dict[str, str]] = {}
    known = {}
    for variant in experiment.variants:
        read = variant.study.model_dump_json(include={"data", "model", "evaluation"})
        if read not in sources:
            sources[read] = source_versions(variant.study, where.model_directories)
        known[variant.name] = versions(variant.study, sources[read])
    return known


def plan_experiment(experiment: Experiment, where: Deployment) -> list[Plan]:
    """One plan a variant, up to the reports, in the order in which they share work. Raises InputError as `plan_run`."""
    known = variant_versions(experiment, where)
    wanted = upstream(*REPORTS)
    return [
        plan_study(variant.study, experiment.path, where, known[variant.name], wanted, "experiment")
        for variant in experiment.variants
    ]


def run_experiment(plans: Sequence[Plan], tell: Callable[[str], None]) -> dict[str, str]:
    """Run the plans of an experiment in order. One that fails is recorded, and the others go on.

    Args:
        tell: takes a line for each variant that starts or fails, with the time left.

    Returns:
        The reason of each failure, by variant.
    """
    current, waiting = ([plan for plan in plans if bool(plan.stale) is stale] for stale in (False, True))
    _add_partitions(waiting)
    failures: dict[str, str] = {}
    started = time.monotonic()
    for position, plan in enumerate([*current, *waiting], start=-len(current)):
        if plan.stale:
            left = (time.monotonic() - started) / max(position, 1) * (len(waiting) - position)
            about = f", about {left / 60:.0f} min left" if position else ""
            tell(f"[{position + 1}/{len(waiting)}] {plan.study.name}{about}")
        try:
            execute(plan)
        except LancetError as error:
            failures[plan.study.name] = str(error)
            record_failure(plan.where.home, plan.study.name, str(error), plan.versions)
            tell(f"  failed: {error}")
        else:
            forget_failure(plan.where.home, plan.study.name)
    return failures


def _add_partitions(plans: Sequence[Plan]) -> None:
    """Make the partitions of all plans at once, so that the page shows what is still to run."""
    import dagster as dg

    if plans:
        with dg.DagsterInstance.from_config(str(dagster_home(plans[0].where))) as instance:
            instance.add_dynamic_partitions("study", [plan.study.name for plan in plans])


def _execute_in_dagster(plan: Plan) -> None:
    import dagster as dg

    from lancet_pipeline.orchestration.automation import end_lost_runs, source_events
    from lancet_pipeline.orchestration.code_location import build_definitions

    definitions = build_definitions(plan.where, study_files={plan.study.name: str(plan.path)})
    with dg.DagsterInstance.from_config(str(dagster_home(plan.where))) as instance:
        instance.add_dynamic_partitions("study", [plan.study.name])
        if not plan.where.dagster_postgres_url:  # a database of servers may hold the runs of other homes, too
            end_lost_runs(instance, open_store(plan.where), time.time())
        for arrival in source_events(plan.study.name, plan.versions):
            instance.report_runless_asset_event(arrival)
        result = definitions.resolve_job_def(plan.job).execute_in_process(
            instance=instance,
            partition_key=plan.study.name,
            asset_selection=[dg.AssetKey(asset) for asset in plan.stale],
            run_config={"loggers": {"console": {}}},
            raise_on_error=False,
        )
        untold = _end_tracking(definitions.resources["tracking"].open(), plan.study.name, result)
        if not result.success:  # says more than that the end could not be noted
            raise cause_of(result, plan.where)
        if untold is not None:
            raise LancetError(
                f"all assets are done, but MLflow could not be told that run {result.run_id} ended "
                f"({type(untold).__name__}); see that its server or database is there"
            ) from untold


def _end_tracking(tracking, study: str, result) -> Exception | None:
    """End the MLflow run; the error where that could not be done."""
    try:
        tracking.finish(study, result.run_id, "FINISHED" if result.success else "FAILED")
    except Exception as error:  # whatever MLflow's client raises for a server that is away
        return error
    return None


def dagster_home(where: Deployment) -> Path:
    """DAGSTER_HOME of a deployment, with the project's instance settings in it. Raises InputError as `choose_storage`."""
    folder = where.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_text((Path(__file__).parents[1] / "dagster.yaml").read_text())
    choose_storage(settings, where)
    return folder.absolute()


def _check_disk(study: Study, where: Deployment) -> None:
    """Weights are written once a model, and once more into the registry; artifacts besides take little."""
    weights = 16 * 2**20
    if study.model.checkpoint is not None:
        folder = Path(find_checkpoint(study.model.checkpoint, where.model_directories))
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else weights
    needed = weights * (3 + len(study.evaluation.references)) + 128 * 2**20
    existing = next(path for path in (where.home, *where.home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{where.home}: the disk has {free / 2**20:.0f} MiB free, a run of study '{study.name}' needs about "
            f"{needed / 2**20:.0f} MiB; free some space or use another --home"
        )
