"""Options and arguments that several commands share."""

import re
from pathlib import Path
from typing import Annotated

import typer

from lancet_pipeline.config.study import STUDY_NAME, load_study
from lancet_pipeline.errors import InputError

Home = Annotated[Path | None, typer.Option("--home", help="Where results live; LANCET_HOME or .lancet otherwise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def study_name(name_or_path: str) -> str:
    """The name of a study that is given by name or by the path of its file. Raises InputError."""
    if name_or_path.endswith((".yaml", ".yml")):
        return load_study(Path(name_or_path)).name
    if not re.fullmatch(STUDY_NAME, name_or_path):
        raise InputError(f"{name_or_path}: no name of a study: small letters, digits, '-' and '_' only")
    return name_or_path
