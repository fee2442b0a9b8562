"""The command that brings models in: import-gguf."""

from pathlib import Path
from typing import Annotated

import typer


def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="Where the safetensors checkpoint goes.")],
) -> None:
    """Turn a quantised GGUF file into a float32 safetensors checkpoint."""
    from lancet_pipeline.models.loading import import_gguf as convert

    convert(file, folder)
    print(f"{folder}: written; use it as model.checkpoint of a study")
