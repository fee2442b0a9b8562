"""What a stage's function works with, and what it says of its output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import IntegrityError
from lancet_pipeline.lineage.sources import unchanged, versioned_source
from lancet_pipeline.lineage.stages import Stage
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import Tracking


@dataclass(frozen=True)
class Check:
    """The result of one data check; a failed one keeps the asset from being written where it is blocking."""

    name: str
    passed: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The metadata as JSON takes it."""
        return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in self.metadata.items()}


@dataclass(frozen=True)
class Outcome:
    """What an asset says of its output besides the files: figures, curves over steps, plots (PNG) and tables."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    plots: Mapping[str, bytes] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    checks: Sequence[Check] = ()


@dataclass(frozen=True)
class Governance:
    """What the stages of governance alone work with, besides their run."""

    tracking: Tracking
    signing: Signing
    run_id: str


@dataclass(frozen=True)
class StageRun:
    """A study, the inputs of one of its stages, the folder `out` for its files, and what it runs on."""

    study: Study
    stage: Stage
    store: ArtifactStore
    versions: Mapping[str, str]
    out: Path
    runtime: Runtime

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
        return load_study_model(self.study, self.input(asset) / part, self.runtime)

    def compared_models(self) -> dict[str, Callable[[], tuple[Any, Any]]]:
        """Loaders of the models that evaluations compare, the uncorrected one first."""
        loaders = {"base": lambda: self.model("base_model"), "corrected": lambda: self.model("corrected_model")}
        for name in self.study.evaluation.references:
            loaders[name] = lambda name=name: self.model("reference_models", name)
        return loaders

    def previous(self) -> Path | None:
        """The verified folder that this stage wrote last with the same code, settings and checkpoint; None where there
        is none, or where the study does not let anything be kept over a change of the data."""
        if self.study.model.reuse is None:
            return None
        found = self.store.current(self.study.name, self.stage.name)
        if found is None or not self.store.has(self.study.name, self.stage.name, found):
            return None
        manifest = self.store.manifest(self.study.name, self.stage.name, found)
        same = manifest["code_version"] == self.stage.code_version
        same = same and manifest["inputs"].get("checkpoint", self.versions["checkpoint"]) == self.versions["checkpoint"]
        if not same or manifest["settings"] != self.stage.settings_of(self.study):
            return None
        try:
            return self.store.read(self.study.name, self.stage.name, found)
        except IntegrityError:
            return None  # broken: it is made anew
