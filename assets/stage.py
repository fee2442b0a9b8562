"""How a stage becomes a Dagster asset: versions, reuse, whole-or-absent output, checks, tracking and metadata."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from lancet_pipeline.assets.display import inline_image, logged_progress, markdown_table, save_plots
from lancet_pipeline.assets.retries import tried_again
from lancet_pipeline.assets.stage_run import Governance, Outcome, StageRun
from lancet_pipeline.config.environment import Signing
from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.sources import source_version, unchanged
from lancet_pipeline.lineage.stages import SOURCES, STAGES, TABLES, Stage
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.resources import Compute, ModelSource, RunSnapshot, Store, TrackingServer
from lancet_pipeline.resources.studies import STUDY_PARTITIONS
from lancet_pipeline.store.artifacts import ArtifactStore, environment, now, processor_seconds

OWNERS = ["team:model-governance"]

StageFunction = Callable[..., Outcome]
"""Of a `StageRun`; of a `StageRun` and a `Governance` for a stage of that group."""

Results = Iterator[dg.AssetCheckResult | dg.MaterializeResult]


def stage_asset(
    *, kinds: set[str], checks: Mapping[str, str] | None = None, advisory: frozenset[str] = frozenset()
) -> Callable[[StageFunction], dg.AssetsDefinition]:
    """Make the function of a stage its Dagster asset, named and wired as `lineage.stages.STAGES` says.

    Args:
        kinds: shown in the UI.
        checks: name -> description of every check that the function returns.
        advisory: checks that warn instead of blocking what depends on the asset.
    """
    described = checks or {}

    def decorate(function: StageFunction) -> dg.AssetsDefinition:
        stage = STAGES[function.__name__]

        @dg.asset(
            name=stage.name,
            deps=[dg.AssetKey(name) for name in stage.inputs],
            partitions_def=STUDY_PARTITIONS,
            group_name=stage.group,
            code_version=stage.code_version,
            owners=OWNERS,
            kinds=kinds,
            description=function.__doc__,
            check_specs=[
                dg.AssetCheckSpec(name, asset=stage.name, description=text, blocking=name not in advisory)
                for name, text in described.items()
            ],
        )
        def compute(
            context: dg.AssetExecutionContext,
            snapshot: RunSnapshot,
            store: Store,
            models: ModelSource,
            compute: Compute,
            tracking: TrackingServer,
            signing: dg.ResourceParam[Signing],
        ) -> Results:
            artifacts = store.open()
            with tried_again(context):
                study, known = snapshot.of(context.partition_key)
                with artifacts.lock(study.name):
                    governance = Governance(tracking.open(), signing, context.run_id)
                    work = _Work(context, stage, study, artifacts, known, governance)
                    if work.is_there():
                        yield from work.reuse(described)
                    else:
                        runtime = compute.runtime(study, models.paths(), logged_progress(context))
                        yield from work.materialize(function, advisory, runtime)

        return compute

    return decorate


@dataclass(frozen=True)
class _Work:
    """One stage of one study in one run."""

    context: dg.AssetExecutionContext
    stage: Stage
    study: Study
    store: ArtifactStore
    versions: Mapping[str, str]
    governance: Governance

    @property
    def artifact(self) -> tuple[str, str, str]:
        return self.study.name, self.stage.name, self.versions[self.stage.name]

    def is_there(self) -> bool:
        """Whether this version has been made already, for this study or for another one that may share it."""
        if self.store.has(*self.artifact) or self.store.publish(*self.artifact):
            return True
        return not self.stage.names_study and self.study.model.reuse is None and self.store.adopt(*self.artifact)

    def materialize(self, function: StageFunction, advisory: frozenset[str], runtime: Runtime) -> Results:
        """Run the stage's function, write its output whole or not at all, and report it to Dagster and MLflow."""
        stage, study, known = self.stage, self.study, self.versions
        checkpoint = self.store.checkpoint(known[stage.name])
        record: dict[str, Any] = {
            "code_version": stage.code_version,
            "settings": stage.settings_of(study),
            "inputs": {name: known[name] for name in stage.inputs},
            "run_id": self.context.run_id,
        }
        if study.model.reuse is not None:  # a version alone does not say what is in it then
            computed = [name for name in stage.inputs if name in STAGES]
            record["built_on"] = {name: self.store.digest(study.name, name, known[name]) for name in computed}
        started, used = time.monotonic(), processor_seconds()
        with self.store.write(*self.artifact, record) as out:
            runtime = replace(runtime, journal=self.store.journal, checkpoint=checkpoint)
            run = StageRun(study, stage, self.store, known, out, runtime)
            outcome = function(run, self.governance) if stage.group == "governance" else function(run)
            # Files that the function opened by itself.
            for source in (SOURCES.keys() - TABLES.keys()).intersection(stage.inputs):
                unchanged(source, known[source], source_version(study, source, runtime.model_directories))
            spent = {
                "seconds": round(time.monotonic() - started, 3),
                "processor_seconds": round(processor_seconds() - used, 3),
            }
            failed = [check.name for check in outcome.checks if not check.passed and check.name not in advisory]
            for check in outcome.checks:
                severity = dg.AssetCheckSeverity.WARN if check.name in advisory else dg.AssetCheckSeverity.ERROR
                yield dg.AssetCheckResult(
                    passed=check.passed, check_name=check.name, severity=severity, metadata=dict(check.metadata)
                )
            if failed:
                raise dg.Failure(f"{stage.name}: nothing was written, since checks failed: {', '.join(failed)}")
            save_plots(outcome.plots, out)
            record |= {
                **spent,
                "created": now(),
                "metrics": dict(outcome.metrics),
                "checks": [{"name": c.name, "passed": c.passed, "metadata": c.plain()} for c in outcome.checks],
                "environment": environment(),
            }
        mlflow_run = self._track(record["settings"], {**outcome.metrics, **spent}, outcome)
        metadata = {
            **{name: float(value) for name, value in outcome.metrics.items()},
            **{name: dg.MetadataValue.md(markdown_table(rows)) for name, rows in outcome.tables.items()},
            **{name: dg.MetadataValue.md(inline_image(png, name)) for name, png in outcome.plots.items()},
            **spent,
            "path": dg.MetadataValue.path(str(self.store.folder(*self.artifact))),
            "mlflow_run": mlflow_run,
            "reused": False,
        }
        yield dg.MaterializeResult(data_version=dg.DataVersion(known[stage.name]), metadata=metadata)

    def reuse(self, described: Mapping[str, str]) -> Results:
        """The version is there already: say so again, with the checks it passed when it was made."""
        version = self.versions[self.stage.name]
        folder = self.store.read(*self.artifact)
        self.store.confirm(*self.artifact)
        manifest = self.store.manifest(*self.artifact)
        self.context.log.info(f"{self.stage.name}: unchanged, version {version[:16]} reused")
        if manifest["run_id"] == self.context.run_id:  # of an earlier try of this run, which could not be tracked
            plots = {path.stem: path.read_bytes() for path in sorted((folder / "plots").glob("*.png"))}
            metrics = manifest["metrics"] | {name: manifest[name] for name in ("seconds", "processor_seconds")}
            self._track(manifest["settings"], metrics, Outcome(plots=plots))
        for check in manifest["checks"]:
            if check["name"] in described:
                yield dg.AssetCheckResult(passed=check["passed"], check_name=check["name"], metadata=check["metadata"])
        metadata = {**manifest["metrics"], "path": dg.MetadataValue.path(str(folder)), "reused": True}
        yield dg.MaterializeResult(data_version=dg.DataVersion(version), metadata=metadata)

    def _track(self, settings: Mapping[str, Any], metrics: Mapping[str, float], outcome: Outcome) -> str:
        return self.governance.tracking.record(
            self.study.name,
            self.context.run_id,
            self.stage.name,
            version=self.versions[self.stage.name],
            settings=settings,
            metrics=metrics,
            curves=outcome.curves,
            plots=outcome.plots,
        )
