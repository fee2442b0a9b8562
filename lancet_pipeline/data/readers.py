"""Samples from Parquet, JSON Lines, the Hugging Face hub or an embedded corpus, all in one schema."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.data.presets import apply_preset
from lancet_pipeline.data.schema import to_samples
from lancet_pipeline.errors import InputError
from lancet_pipeline.study import DataSource


def read_samples(source: DataSource, *, responses: bool = False) -> pa.Table:
    """Read, map and validate one source.

    Args:
        source: where the samples are and how their columns map.
        responses: whether every sample must carry a response.

    Returns:
        Table in `data.schema.SAMPLES`, sorted by `sample_id`, cut to `source.rows`.

    Raises:
        InputError: the source does not exist or its content does not fit; nothing has been computed then.
    """
    place = describe(source)
    rows = read_rows(source)
    if source.columns:
        rows = _renamed(rows, source.columns, place)
    if source.preset != "plain":
        rows = apply_preset(rows, source.preset, place)
    table = to_samples(rows, place, responses=responses, drop_blank=source.blank == "drop")
    if source.rows is None:
        return table
    start, stop = source.rows
    if table.num_rows <= start:
        raise InputError(f"{place}: rows [{start}, {stop}) are empty: it holds {table.num_rows} samples")
    return table.slice(start, stop - start)


def describe(source: DataSource) -> str:
    """A source as messages name it."""
    if source.path:
        return source.path
    if source.hub:
        return source.hub + (f"@{source.revision}" if source.revision else "")
    return f"{source.builtin}:{source.part}"


def read_rows(source: DataSource) -> Iterable[Mapping[str, Any]]:
    """The rows of a source as they stand, before any mapping."""
    if source.builtin:
        return _builtin_rows(source)
    if source.hub:
        return _hub_rows(source)
    path = Path(source.path or "")
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path in the study (it is relative to the study file)")
    if path.suffix == ".parquet":
        try:
            return pq.read_table(path).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from None
    if path.suffix in {".jsonl", ".ndjson"}:
        return _json_lines(path)
    raise InputError(f"{path}: unknown format '{path.suffix}'; use .parquet or .jsonl")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: row {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                ) from None
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: row {number}: not JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: row {number}: must be a JSON object, found {type(row).__name__}")
            yield row


def _hub_rows(source: DataSource) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(source.hub, source.subset, split=source.part or "train", revision=source.revision)
    except Exception as error:  # the hub client raises a dozen types of its own
        raise InputError(
            f"{describe(source)}: could not be loaded from the hub ({type(error).__name__}: {error}); "
            "check name, split and connection, or download it and use `path`"
        ) from error


def _builtin_rows(source: DataSource) -> list[dict[str, Any]]:
    from lancet_pipeline.data.embedded import generate_corpus

    assert source.builtin is not None
    parts = vars(generate_corpus(source.builtin))
    if source.part not in parts:
        raise InputError(f"{describe(source)}: unknown part; known parts: {', '.join(parts)}")
    return parts[source.part]


def _renamed(rows: Iterable[Mapping], columns: Mapping[str, str], place: str) -> Iterator[dict]:
    for row in rows:
        missing = [name for name in columns.values() if name not in row]
        if missing:
            raise InputError(f"{place}: column '{missing[0]}' is missing (it has: {', '.join(row)})")
        yield {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}
