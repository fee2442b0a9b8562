"""Options, arguments and first steps that several commands share."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lancet_pipeline.config.environment import Deployment, deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import STUDY_NAME, Study
from lancet_pipeline.errors import InputError

if TYPE_CHECKING:
    from lancet_pipeline.tracking.client import Tracking

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or path to its YAML file.")]
Home = Annotated[Path | None, typer.Option("--home", help="Where results live; LANCET_HOME or .lancet otherwise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StudyDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N; the study's compute.device otherwise.")
]


def deployed(home: Path | None = None) -> Deployment:
    """The deployment that the environment describes. Raises InputError."""
    return deployment(os.environ, home)


def study_name(name_or_path: str) -> str:
    """The name of a study that is given by name or by the path of its file. Raises InputError."""
    if name_or_path.endswith((".yaml", ".yml")):
        return load_study(Path(name_or_path)).name
    if not re.fullmatch(STUDY_NAME, name_or_path):
        raise InputError(f"{name_or_path}: no name of a study: small letters, digits, '-' and '_' only")
    return name_or_path


def study_settings(name_or_path: str, where: Deployment) -> Study:
    """A validated study. Raises InputError."""
    return load_study(find_study(name_or_path, where.study_directories))


def tracking_of(where: Deployment) -> "Tracking":
    """MLflow, as the deployment names it."""
    from lancet_pipeline.tracking.client import Tracking

    return Tracking(home=str(where.home), uri=where.tracking_uri)
