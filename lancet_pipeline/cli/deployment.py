"""The commands of a deployment: ui, which shows its pages; gc, which frees space; import-gguf, which brings models in."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from lancet_pipeline.cli.options import AsJson, Home, deployed, tracking_of
from lancet_pipeline.cli.terminal import print_unreferenced, show
from lancet_pipeline.errors import InputError
from lancet_pipeline.store.artifacts import open_store


def gc(
    home: Home = None,
    as_json: AsJson = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed; without it, nothing is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
) -> None:
    """List, and delete when asked to, what no last run, registered version or audit bundle refers to."""
    from lancet_pipeline.store.retention import find_unreferenced, journal_bytes, remove

    where = deployed(home)
    tracking = tracking_of(where)

    def registry(study: str) -> list[Mapping[str, str]]:
        return [version.artifacts for version in tracking.registered(study)]

    found = find_unreferenced(where.home, registry, artifacts=where.artifacts)
    journal = journal_bytes(where.home)
    size = sum(item.bytes for item in found.items)
    if not as_json:
        print_unreferenced(found.items, open_store(where).place)
        for study in found.locked:
            print(f"skipped     study {study}: a run is going on")
        print(
            f"journal     {decimal(journal)} in {where.home / 'journal'}; it only saves time, and may be removed by hand"
        )
        print("mlflow      runs and models that were deleted in MLflow are removed by `mlflow gc`")
    removed = 0
    if delete and found.items:
        if not yes:
            if not sys.stdin.isatty():
                raise InputError("lancet gc --delete: nobody to ask; add --yes to delete without a question")
            typer.confirm(f"Delete {len(found.items)} of these, {decimal(size)}?", abort=True, err=True)
        removed = remove(where.home, found.items, registry, where.artifacts)

    def ending(_: object) -> None:
        if removed:
            print(f"removed     {removed} of {len(found.items)}")
        elif found.items:
            print(f"next        lancet gc --delete{f' --home {home}' if home else ''}")

    items = [{**asdict(item), "path": str(item.path)} for item in found.items]
    report = {"unreferenced": items, "bytes": size, "locked": found.locked, "journal_bytes": journal}
    show({**report, "removed": removed}, as_json, ending)


def ui(home: Home = None, dagster_port: int = 3000, mlflow_port: int = 5000) -> None:
    """Start Dagster's and MLflow's pages, and Dagster's daemon, on the loopback interface; Ctrl-C stops them all."""
    from lancet_pipeline.orchestration.pages import serve

    serve(deployed(home), dagster_port, mlflow_port)


def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="Where the safetensors checkpoint goes.")],
) -> None:
    """Turn a quantised GGUF file into a float32 safetensors checkpoint."""
    from lancet_pipeline.models.loading import import_gguf as convert

    convert(file, folder)
    print(f"{folder}: written; use it as model.checkpoint of a study")
