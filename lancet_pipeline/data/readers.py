"""Samples from Parquet, JSON Lines, the Hugging Face hub or an embedded corpus, all in one schema."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import DataSource, Origin
from lancet_pipeline.data.duplicates import nearly_among
from lancet_pipeline.data.expected_answers import EXPECTED
from lancet_pipeline.data.pararel import pararel_rows
from lancet_pipeline.data.presets import apply_preset
from lancet_pipeline.data.schema import to_samples
from lancet_pipeline.errors import InputError

_JSON_LINES = {".jsonl", ".ndjson"}
FORMATS = {".parquet", *_JSON_LINES}


def read_samples(source: DataSource, *, responses: bool = False, required: Sequence[str] = ()) -> pa.Table:
    """Read, map and validate one source.

    Args:
        source: where the samples are and how their columns map.
        responses: whether every sample must carry a response.
        required: columns of expected answers that every prompt must have.

    Returns:
        Table as of `data.schema.to_samples`, sorted by `sample_id`, cut to `source.rows`. Where no responses are asked for, each
        prompt stands there once, with the first of its samples: data sets of answers repeat their prompts, and a prompt
        that is asked twice would count twice in every rate.

    Raises:
        InputError: the source does not exist or its content does not fit; nothing has been computed then.
    """
    place, path = describe(source), Path(source.path or "")
    if source.path and source.note and not path.exists():
        raise InputError(f"{path}: no such file or folder; it holds {source.note}")
    of_files = source.path is not None and source.preset != "pararel" and path.is_dir()
    files = data_files(path) if of_files else [source.path]
    parts = [source.model_copy(update={"path": file and str(file)}) for file in files]
    table = to_samples(
        {describe(part): _rows(part, place) for part in parts},
        responses=responses,
        drop_blank=source.blank == "drop",
        drop_repeats=source.preset != "plain",
        required=required,
    )
    table = table if responses else _distinct_prompts(table, place)
    if source.apart_from:
        others = [read_samples(DataSource(path=path, blank="drop"))["prompt"] for path in source.apart_from]
        kept = ~nearly_among(table["prompt"].to_pylist(), [prompt for part in others for prompt in part.to_pylist()])
        if not kept.any():
            raise InputError(f"{place}: every prompt stands in {', '.join(source.apart_from)} too; give others")
        table = table.filter(pa.array(kept))
    if source.rows is None:
        return table
    start, stop = source.rows
    if table.num_rows <= start:
        raise InputError(f"{place}: rows [{start}, {stop}) are empty: it holds {table.num_rows} samples")
    return table.slice(start, stop - start)


def _rows(source: DataSource, whole: str) -> Iterable[Mapping[str, Any]]:
    """The rows of one file, or of a source that is no folder; those without a source of their own get that of `whole`."""
    place: str = describe(source)
    rows: Iterable[Mapping[str, Any]]
    if source.preset == "pararel":
        rows = pararel_rows(Path(source.path or ""), source.part or "", _file_rows)
    elif source.preset == "plain":
        rows = read_named_rows(source)
    else:
        rows = apply_preset(read_named_rows(source), source.preset, place)
    if place == whole:
        return rows
    name = Path(whole).name  # a sample that moves from one file of a folder to another is the same sample
    return ({**row, "source": (source.preset == "plain" and row.get("source")) or name} for row in rows)


def _distinct_prompts(table: pa.Table, place: str) -> pa.Table:
    rows, first = table.to_pylist(), {}
    for number, row in enumerate(rows):
        kept = rows[first.setdefault(row["prompt"], number)]
        if any(row.get(column) != kept.get(column) for column in EXPECTED):
            raise InputError(
                f"{place}: prompt {row['prompt'][:60]!r} stands there with different expected answers; give it one row, "
                "and several answers as a list"
            )
    return table.take(list(first.values()))


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder that is a source, by name; hidden files, other formats and subfolders are passed over.

    Raises:
        InputError: there is none.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in FORMATS and not path.name.startswith((".", "_")) and path.is_file()
    )
    if not files:
        raise InputError(f"{folder}: holds no .parquet or .jsonl file; put one there, or correct the path in the study")
    return files


def describe(source: Origin) -> str:
    """A source as messages name it."""
    if source.path:
        return source.path + (f":{source.part}" if source.part else "")
    if source.hub:
        return source.hub + (f"@{source.revision}" if source.revision else "")
    return f"{source.builtin}:{source.part}"


def read_rows(source: Origin) -> Iterable[Mapping[str, Any]]:
    """The rows of a source as they stand, before any mapping."""
    if source.builtin:
        return _builtin_rows(source)
    if source.hub:
        return _hub_rows(source)
    path = Path(source.path or "")
    if path.is_dir():
        return (row for file in data_files(path) for row in _file_rows(file))
    return _file_rows(path)


def _file_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or folder; put it back, or correct the path in the study (it is relative to the study file)"
        )
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: unknown format '{path.suffix}'; use .parquet or .jsonl")
    content = read_unchanged(path)
    if path.suffix in _JSON_LINES:
        return _json_lines(path, content)
    try:
        return pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({error}); write it again, or wait until it is written whole"
        ) from None


def read_unchanged(path: Path) -> bytes:
    """The bytes of a file, all from one state of it.

    Raises:
        InputError: it was written, replaced or removed meanwhile, or may not be read.
    """
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = file.read()
        after = path.stat()
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}; put it back, or let this user read it") from None
    if len(content) != before.st_size or _state(before) != _state(after):
        raise InputError(f"{path}: changed while it was read; wait until it is written whole, then run again")
    return content


def _state(of: os.stat_result) -> tuple[int, int, int]:
    return of.st_ino, of.st_size, of.st_mtime_ns


def _json_lines(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.BytesIO(content), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: row {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        except json.JSONDecodeError as error:
            cut = "" if line.endswith(b"\n") else "; the file ends inside this row: write it whole"
            raise InputError(f"{path}: row {number}: not JSON ({error.msg}, column {error.colno}){cut}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number}: must be a JSON object, found {type(row).__name__}")
        yield row


def _hub_rows(source: Origin) -> Iterable[Any]:
    from datasets import load_dataset

    assert source.hub is not None
    try:
        return load_dataset(source.hub, source.subset, split=source.part or "train", revision=source.revision)
    except Exception as error:  # the hub client raises a dozen types of its own
        raise InputError(
            f"{describe(source)}: could not be loaded from the hub ({type(error).__name__}: {error}); "
            "check name, split and connection, or download it and use `path`"
        ) from error


def _builtin_rows(source: Origin) -> Iterable[Mapping[str, Any]]:
    from lancet_pipeline.data.embedded import generate_corpus, paraphrases_file

    assert source.builtin is not None
    if source.part == "paraphrases":
        return _file_rows(paraphrases_file(source.builtin))
    parts = vars(generate_corpus(source.builtin))
    if source.part not in parts:
        raise InputError(f"{describe(source)}: unknown part; known parts: {', '.join(parts)}, paraphrases")
    return parts[source.part]


def read_named_rows(source: Origin) -> Iterator[dict[str, Any]]:
    """The rows of a source, with the names of columns that its `columns` give. Raises InputError where one is missing."""
    for row in read_rows(source):
        missing = [name for name in source.columns.values() if name not in row]
        if missing:
            raise InputError(f"{describe(source)}: column '{missing[0]}' is missing (it has: {', '.join(row)})")
        yield {**row, **{ours: row[theirs] for ours, theirs in source.columns.items()}}
