"""Where one deployment keeps things and looks for them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lancet_pipeline.study import PACKAGED_STUDIES


@dataclass(frozen=True)
class Deployment:
    """home: artifacts, and MLflow's and Dagster's storage where no server is named. study_directories: studies by
    name, first match wins. model_directories: checkpoints by their last name part, before the hub is asked.
    tracking_uri: an MLflow server; empty for a SQLite file below home."""

    home: Path
    study_directories: tuple[Path, ...]
    model_directories: tuple[Path, ...]
    tracking_uri: str = ""


def deployment(environ: Mapping[str, str], home: Path | None = None) -> Deployment:
    """The deployment that LANCET_HOME, LANCET_STUDIES, LANCET_MODELS and MLFLOW_TRACKING_URI describe.

    Args:
        home: goes before LANCET_HOME.
    """
    root = (home or Path(environ.get("LANCET_HOME", ".lancet"))).expanduser().absolute()
    local_studies = [Path("studies").absolute()] if Path("studies").is_dir() else []
    return Deployment(
        root,
        tuple(dict.fromkeys([*_paths(environ, "LANCET_STUDIES"), *local_studies, PACKAGED_STUDIES])),
        tuple(dict.fromkeys([*_paths(environ, "LANCET_MODELS"), root / "models", Path(".lancet/models").absolute()])),
        environ.get("MLFLOW_TRACKING_URI", ""),
    )


def _paths(environ: Mapping[str, str], name: str) -> list[Path]:
    return [Path(part).expanduser().absolute() for part in environ.get(name, "").split(os.pathsep) if part]
