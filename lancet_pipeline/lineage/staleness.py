"""Which assets of a study or of an experiment's variants are stale: not in the store in their present version. No
orchestrator is needed to know it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.config.experiment import Experiment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.changes import known_versions
from lancet_pipeline.lineage.sources import source_versions
from lancet_pipeline.lineage.stages import REPORTS, STAGES, upstream, versions
from lancet_pipeline.store.artifacts import ArtifactStore, open_store


@dataclass(frozen=True)
class PendingRun:
    """What a run of a study or variant has to do. path: the file that the study comes from. versions: of every source and
    asset. stale: the assets to run, inputs first; none where nothing changed."""

    study: Study
    path: Path
    where: Deployment
    versions: dict[str, str]
    stale: list[str]


def stale_assets(
    study: str, store: ArtifactStore, known: Mapping[str, str], wanted: Iterable[str] = tuple(STAGES)
) -> list[str]:
    """Those of the assets `wanted` that are not in the store in the version `known`, in the order given."""
    return [asset for asset in wanted if not store.has(study, asset, known[asset])]


def pending_run(name_or_path: str, where: Deployment, until: str | None = None) -> PendingRun:
    """Validate a study and all that it reads, and find its stale assets: all, or those that the asset `until` needs.

    Raises:
        InputError: anything that does not fit; nothing has been computed or written then.
    """
    if until is not None and until not in STAGES:
        raise InputError(f"--until {until}: no such asset; assets: {', '.join(STAGES)}")
    path = find_study(name_or_path, where.study_directories)
    study = load_study(path)
    known = known_versions(study, where.model_directories)
    wanted = upstream(until) if until else STAGES
    return PendingRun(study, path, where, known, stale_assets(study.name, open_store(where), known, wanted))


def pending_variants(experiment: Experiment, where: Deployment) -> list[PendingRun]:
    """One run per variant, up to the reports, in the order in which they share work. Raises as `variant_versions`."""
    known, wanted, store = variant_versions(experiment, where), upstream(*REPORTS), open_store(where)
    return [
        PendingRun(study, experiment.path, where, known[name], stale_assets(name, store, known[name], wanted))
        for name, study in ((variant.name, variant.study) for variant in experiment.variants)
    ]


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
