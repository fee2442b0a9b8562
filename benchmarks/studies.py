"""Studies as benchmarks need them: with other seeds, and their artifacts at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer
from lancet_pipeline.lineage.staleness import pending_run
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.orchestration.runs import execute
from lancet_pipeline.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class StudyRun:
    """A study whose assets up to some have been run."""

    study: Study
    store: ArtifactStore
    versions: dict[str, str]

    def folder(self, asset: str) -> Path:
        return self.store.read(self.study.name, asset, self.versions[asset])

    def manifest(self, asset: str) -> dict[str, Any]:
        return self.store.manifest(self.study.name, asset, self.versions[asset])

    def model(self, asset: str, part: str = "") -> tuple[Any, Any]:
        folder = self.folder(asset) / part
        return load_model(folder), load_tokenizer(folder)

    @property
    def data(self) -> tuple[pa.Table, list[TokenSequence]]:
        return load_prepared(self.folder("prepared_data"))


def run_study(path: str, home: Path, *assets: str) -> StudyRun:
    """Run a study as far as `assets`; nothing where nothing changed."""
    where = deployment({}, home)
    for asset in assets:
        run = pending_run(path, where, asset)
        execute(run)
    return StudyRun(run.study, ArtifactStore(home), run.versions)


def with_seed(name: str, seed: int, home: Path, changes: dict[str, Any] | None = None) -> str:
    """Path of a copy of study `name` that differs in its seed and in `changes` (dotted path -> value)."""
    source = find_study(name, deployment({}, home).study_directories)
    study = load_study(source)
    tree = study.model_dump(mode="json") | {"name": f"{study.name}_seed_{seed}", "seed": seed}
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        part = tree
        for key in parents:
            part = part[key]
        part[last] = value
    path = home / "benchmarks" / f"{tree['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return str(path)
