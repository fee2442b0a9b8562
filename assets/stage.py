"""What every asset shares: versions, reuse, whole-or-absent output, checks, tracking and metadata.

An asset module states what its stage computes; this module states how a stage becomes a Dagster asset.
"""

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pyarrow as pa

from lancet_pipeline.assets.retries import TRIES, passing_fault, seconds_to_wait
from lancet_pipeline.config.environment import Signing
from lancet_pipeline.config.study import Study
from lancet_pipeline.data.tokenization import load_tokenizer
from lancet_pipeline.errors import IntegrityError, LancetError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.lineage.sources import source_version, unchanged, versioned_source
from lancet_pipeline.lineage.stages import STAGES, Stage
from lancet_pipeline.linfac.engine import Engine
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.progress import Track
from lancet_pipeline.resources import Compute, JudgeSource, ModelSource, RunSnapshot, Store, TrackingServer
from lancet_pipeline.resources.studies import STUDY_PARTITIONS
from lancet_pipeline.store.artifacts import ArtifactStore, environment, now, processor_seconds
from lancet_pipeline.tracking.client import Tracking

R = TypeVar("R")
OWNERS = ["team:model-governance"]


@dataclass(frozen=True)
class Check:
    """The result of one data check; a failed one keeps the asset from being written where it is blocking."""

    name: str
    passed: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What an asset says of its output besides the files: figures, curves over steps, plots (PNG) and tables."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    plots: Mapping[str, bytes] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    checks: Sequence[Check] = ()


@dataclass(frozen=True)
class StageRun:
    """What an asset function works with: its study, its inputs, and the folder `out` for its files."""

    study: Study
    stage: Stage
    store: ArtifactStore
    versions: Mapping[str, str]
    out: Path
    device: str
    compute: Compute
    judge: Judge
    models: ModelSource
    tracking: Tracking
    signing: Signing
    run_id: str
    track: Track

    def input(self, asset: str) -> Path:
        """The verified folder of an input."""
        assert asset in self.stage.inputs, f"{self.stage.name} does not declare {asset} as an input"
        return self.store.read(self.study.name, asset, self.versions[asset])

    def source(self, name: str) -> pa.Table:
        """The samples of a source, the very ones that this run was planned for. Raises InputError where they changed."""
        assert name in self.stage.inputs, f"{self.stage.name} does not declare {name} as an input"
        table, found = versioned_source(self.study, name)
        unchanged(name, self.versions[name], found)
        return table

    def model(self, asset: str, part: str = "") -> tuple[Any, Any]:
        """Model and tokenizer that an input holds."""
        folder = self.input(asset) / part
        model = load_model(folder, dtype=self.study.model.dtype, device=self.device)
        return model, load_tokenizer(folder)

    def engine(self, asset: str, model: Any) -> Engine:
        """Where passes of `model`, which the input `asset` holds, run."""
        return self.compute.engine(self.study, model, self.input(asset))

    def train(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call `function(study, *arguments)`, which trains a model, with a checkpoint where the study's `compute` says."""
        checkpoint = self.store.checkpoint(self.versions[self.stage.name])
        work = partial(function, self.study, *arguments, checkpoint=checkpoint)
        return self.compute.train(self.study, work, self.device, checkpoint.parent, self.track)

    def previous(self) -> Path | None:
        """The verified folder that this stage wrote last with the same code, settings and checkpoint; None where there
        is none, or where the study does not let anything be kept over a change of the data."""
        found = self.store.current(self.study.name, self.stage.name)
        if (
            self.study.model.reuse is None
            or found is None
            or not self.store.has(self.study.name, self.stage.name, found)
        ):
            return None
        manifest = self.store.manifest(self.study.name, self.stage.name, found)
        checkpoints = [inputs.get("checkpoint") for inputs in (manifest["inputs"], self.present_inputs())]
        same = manifest["code_version"] == self.stage.code_version and checkpoints[0] == checkpoints[1]
        if not same or manifest["settings"] != self.stage.settings_of(self.study):
            return None
        try:
            return self.store.read(self.study.name, self.stage.name, found)
        except IntegrityError:
            return None  # broken: it is made anew

    def present_inputs(self) -> dict[str, str]:
        """Version of every input."""
        return {name: self.versions[name] for name in self.stage.inputs}

    def compared_models(self) -> dict[str, Callable[[], tuple[Any, Any]]]:
        """Loaders of the models that evaluations compare, the uncorrected one first."""
        loaders = {"base": lambda: self.model("base_model"), "corrected": lambda: self.model("corrected_model")}
        for name in self.study.evaluation.references:
            loaders[name] = lambda name=name: self.model("reference_models", name)
        return loaders


StageFunction = Callable[[StageRun], Outcome]


@dataclass(frozen=True)
class _Definition:
    """A stage, its function, the descriptions of its checks, and those checks that only warn."""

    stage: Stage
    function: StageFunction
    checks: Mapping[str, str]
    advisory: frozenset[str]


def stage_asset(
    *, kinds: set[str], checks: Mapping[str, str] | None = None, advisory: frozenset[str] = frozenset()
) -> Callable[[StageFunction], dg.AssetsDefinition]:
    """Make the function of a stage its Dagster asset, named and wired as `graph.STAGES` says.

    Args:
        kinds: shown in the UI.
        checks: name -> description of every check that the function returns.
        advisory: checks that warn instead of blocking what depends on the asset.
    """

    def decorate(function: StageFunction) -> dg.AssetsDefinition:
        stage = STAGES[function.__name__]
        definition = _Definition(stage, function, checks or {}, advisory)

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
                for name, text in definition.checks.items()
            ],
        )
        def compute(
            context: dg.AssetExecutionContext,
            snapshot: RunSnapshot,
            store: Store,
            models: ModelSource,
            compute: Compute,
            judge: JudgeSource,
            tracking: TrackingServer,
            signing: dg.ResourceParam[Signing],
        ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
            artifacts = store.open()
            with tried_again(context):
                study, known = snapshot.of(context.partition_key)

                def begin(out: Path) -> StageRun:
                    device = compute.prepare(study)
                    return StageRun(
                        study=study,
                        stage=stage,
                        store=artifacts,
                        versions=known,
                        out=out,
                        device=device,
                        compute=compute,
                        judge=judge.make(study, device, models.paths()),
                        models=models,
                        tracking=tracking.open(),
                        signing=signing,
                        run_id=context.run_id,
                        track=logged_progress(context),
                    )

                with artifacts.lock(study.name):
                    wanted = (study.name, stage.name, known[stage.name])
                    shared = not stage.names_study and study.model.reuse is None
                    there = artifacts.has(*wanted) or artifacts.publish(*wanted)
                    if there or (shared and artifacts.adopt(*wanted)):
                        yield from _reuse(context, definition, study, artifacts, known, tracking.open())
                    else:
                        yield from _materialize(context, definition, study, artifacts, known, begin)

        return compute

    return decorate


def _materialize(
    context: dg.AssetExecutionContext,
    definition: _Definition,
    study: Study,
    artifacts: ArtifactStore,
    known: Mapping[str, str],
    begin: Callable[[Path], StageRun],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Run the stage's function, write its output whole or not at all, and report it to Dagster and MLflow."""
    stage, advisory, version = definition.stage, definition.advisory, known[definition.stage.name]
    settings = stage.settings_of(study)
    record: dict[str, Any] = {
        "code_version": stage.code_version,
        "settings": settings,
        "inputs": {name: known[name] for name in stage.inputs},
        "run_id": context.run_id,
    }
    if study.model.reuse is not None:  # a version alone does not say what is in it then
        computed = [name for name in stage.inputs if name in STAGES]
        record["built_on"] = {name: artifacts.digest(study.name, name, known[name]) for name in computed}
    started, used = time.monotonic(), processor_seconds()
    with artifacts.write(study.name, stage.name, version, record) as out:
        run = begin(out)
        outcome = definition.function(run)
        for source in {"checkpoint", "judge"}.intersection(stage.inputs):  # files that the function opened by itself
            unchanged(source, known[source], source_version(study, source, run.models.paths()))
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
        _save_plots(outcome.plots, out)
        record |= {
            **spent,
            "created": now(),
            "metrics": dict(outcome.metrics),
            "checks": [{"name": c.name, "passed": c.passed, "metadata": _plain(c.metadata)} for c in outcome.checks],
            "environment": environment(),
        }
    mlflow_run = run.tracking.record(
        study.name,
        context.run_id,
        stage.name,
        version=version,
        settings=settings,
        metrics={**outcome.metrics, **spent},
        curves=outcome.curves,
        plots=outcome.plots,
    )
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            **{name: float(value) for name, value in outcome.metrics.items()},
            **{name: dg.MetadataValue.md(markdown_table(rows)) for name, rows in outcome.tables.items()},
            **{name: dg.MetadataValue.md(inline_image(png, name)) for name, png in outcome.plots.items()},
            **spent,
            "path": dg.MetadataValue.path(str(artifacts.folder(study.name, stage.name, version))),
            "mlflow_run": mlflow_run,
            "reused": False,
        },
    )


def _reuse(
    context: dg.AssetExecutionContext,
    definition: _Definition,
    study: Study,
    artifacts: ArtifactStore,
    known: Mapping[str, str],
    tracking: Tracking,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """The version is there already: say so again, with the checks it passed when it was made."""
    stage, version = definition.stage, known[definition.stage.name]
    folder = artifacts.read(study.name, stage.name, version)
    artifacts.confirm(study.name, stage.name, version)
    manifest = artifacts.manifest(study.name, stage.name, version)
    context.log.info(f"{stage.name}: unchanged, version {version[:16]} reused")
    if manifest["run_id"] == context.run_id:  # written by an earlier try of this run, which then could not be tracked
        tracking.record(
            study.name,
            context.run_id,
            stage.name,
            version=version,
            settings=manifest["settings"],
            metrics=manifest["metrics"] | {name: manifest[name] for name in ("seconds", "processor_seconds")},
            curves={},
            plots={path.stem: path.read_bytes() for path in sorted((folder / "plots").glob("*.png"))},
        )
    for check in manifest["checks"]:
        if check["name"] in definition.checks:
            yield dg.AssetCheckResult(passed=check["passed"], check_name=check["name"], metadata=check["metadata"])
    metadata = {**manifest["metrics"], "path": dg.MetadataValue.path(str(folder)), "reused": True}
    yield dg.MaterializeResult(data_version=dg.DataVersion(version), metadata=metadata)


@contextmanager
def tried_again(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Have Dagster try an asset again, after a while, where a database, a server or a network file system was away. All
    other errors are final: they would come again."""
    try:
        yield
    except Exception as error:
        fault = passing_fault(error)
        if fault is None:
            raise
        wait = seconds_to_wait(context.retry_number)
        if context.retry_number < TRIES:
            context.log.warning(f"{fault}; tried again in {wait:.0f} s")
        message = f"a database, a server or a file system is away ({fault}); see that it is there, then run again"
        raise dg.RetryRequested(max_retries=TRIES, seconds_to_wait=wait) from LancetError(message)


def logged_progress(context: dg.AssetExecutionContext) -> Track:
    """A bar where a person watches the terminal, a log line every 30 s elsewhere; both with the time left."""
    import sys

    def track(items: Any, total: int, label: str) -> Iterator[Any]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            console = Console(stderr=True)
            with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
                yield from bar.track(items, total=total, description=label)
            return
        started = reported = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - reported > 30:
                reported = time.monotonic()
                left = (reported - started) / done * (total - done)
                context.log.info(f"{label}: {done} of {total}, about {left:.0f} s left")

    return track


def markdown_table(rows: Sequence[Mapping[str, Any]], limit: int = 30) -> str:
    if not rows:
        return "none"
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows[:limit]:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(name, "") for name in header)]
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ")[:200] for c in cells) + " |")
    if len(rows) > limit:
        lines.append(f"\n{len(rows) - limit} more rows in the artifact.")
    return "\n".join(lines)


def inline_image(png: bytes, name: str) -> str:
    return f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _save_plots(plots: Mapping[str, bytes], out: Path) -> None:
    for name, png in plots.items():
        (out / "plots").mkdir(exist_ok=True)
        target = out / "plots" / f"{name}.png"
        target.unlink(missing_ok=True)  # it may be a link into an artifact that was taken over
        target.write_bytes(png)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in metadata.items()}


__all__ = ["Check", "IntegrityError", "Outcome", "StageRun", "stage_asset"]
