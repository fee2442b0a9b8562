"""The one schema of samples, and the checks that every table passes before anything is computed from it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from lancet_pipeline.data.expected_answers import EXPECTED, expected_answers
from lancet_pipeline.errors import InputError

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string()),
        pa.field("is_safe", pa.bool_()),
        pa.field("category", pa.string()),
    ]
)


_FILL, _DROP = (
    "fill it, or remove the row",
    "fill it, remove the row, or set `blank: drop` for this source in the study",
)


def sample_id(prompt: str, response: str | None) -> str:
    """First 16 hex digits of SHA-256 over prompt + U+001F + response, or over the prompt alone."""
    text = prompt if response is None else f"{prompt}\x1f{response}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kind(row: Mapping[str, Any]) -> str:
    """What a prompt is grouped by: its category, or its source where it has none."""
    return row.get("category") or row.get("source") or "uncategorised"


def rare(kinds: Iterable[str], fewest: int) -> list[str]:
    """Those of `kinds` that come fewer than `fewest` times, and the next rarest until they come as often together."""
    found: list[str] = []
    held = 0
    for name, count in reversed(Counter(kinds).most_common()):
        if count < fewest or 0 < held < fewest:
            found.append(name)
            held += count
    return found


def to_samples(
    parts: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    responses: bool,
    drop_blank: bool = False,
    drop_repeats: bool = False,
    required: Sequence[str] = (),
) -> pa.Table:
    """Validate rows and bring them into the schema, in the order of `sample_id`.

    Args:
        parts: by file or data set, which messages name, mappings with at least `prompt` (and `response` where `responses`).
        responses: whether every row must carry a response.
        drop_blank: leave rows with a null or blank text out instead of refusing the set.
        drop_repeats: leave samples out that stand in an earlier part too, instead of refusing the set.
        required: columns of `EXPECTED` answers that every prompt must have. Sets of responses have none.

    Returns:
        Table in `SAMPLES`; after it a column of lists of texts for each kind of expected answer that the prompts have.

    Raises:
        InputError: an empty part, a missing column, a null or blank text, a wrong type, a duplicate id, expected
            answers that do not fit (`expected_answers`) or that some prompts have and others have not.
    """
    table: dict[str, dict[str, Any]] = {}
    places: dict[str, tuple[str, int]] = {}
    texts = ("prompt", "response") if responses else ("prompt",)
    for place, rows in parts.items():
        empty = True
        for number, row in enumerate(rows, start=1):
            if drop_blank and any(not str(row.get(column, "-") or "").strip() for column in texts):
                continue
            empty = False
            sample = _sample(row, place, number, responses, required)
            identity = sample["sample_id"]
            other, first = places.setdefault(identity, (place, number))
            if (other, first) == (place, number):
                table[identity] = sample
            elif other == place or not drop_repeats:
                raise InputError(
                    f"{place}: row {number}: sample_id {identity} stands already in row {first} of {other}; "
                    "give every sample its own id and remove repeated samples"
                )
        if empty:
            raise InputError(f"{place}: holds no samples; give at least one")
    schema = SAMPLES
    for column in EXPECTED:
        lacking = [identity for identity, sample in table.items() if column not in sample]
        if not lacking:
            schema = schema.append(pa.field(column, pa.list_(pa.string()), nullable=False))
        elif len(lacking) < len(table):
            place, number = places[lacking[0]]
            raise InputError(
                f"{place}: row {number}: has no {column}, which other rows have; fill it, or leave the column out"
            )
    return pa.Table.from_pylist([table[identity] for identity in sorted(table)], schema=schema)


def _sample(
    row: Mapping[str, Any], place: str, number: int, responses: bool, required: Sequence[str]
) -> dict[str, Any]:
    prompt = required_text(row, "prompt", place, number, _DROP)
    answered = responses or row.get("response") is not None
    response = required_text(row, "response", place, number, _DROP) if answered else None
    is_safe, identity, category = row.get("is_safe"), row.get("sample_id"), row.get("category")
    if is_safe is not None and not isinstance(is_safe, bool):
        raise InputError(f"{place}: row {number}: is_safe = {is_safe!r}: must be true, false or null")
    return {
        "sample_id": sample_id(prompt, response) if identity is None else str(identity),
        "source": str(row.get("source") or PurePath(place).name),
        "prompt": prompt,
        "response": response,
        "is_safe": is_safe,
        "category": None if category is None else str(category),
        **({} if responses else expected_answers(row, place, number, required)),
    }


def content_hash(table: pa.Table) -> str:
    """SHA-256 over the rows: the same samples give the same hash whatever file, order or format they came in."""
    digest = hashlib.sha256()
    for row in table.sort_by("sample_id").to_pylist():
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def counts(table: pa.Table, column: str) -> dict[str, int]:
    """Rows by value of `column`, most frequent first; nulls count as `unlabelled`."""
    entries = table[column].value_counts().to_pylist()
    named = {"unlabelled" if e["values"] is None else str(e["values"]): e["counts"] for e in entries}
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))


def required_text(row: Mapping[str, Any], column: str, place: str, number: int, remedy: str = _FILL) -> str:
    """The text in a column of row `number`. Raises InputError where it is missing, null, blank or no text; `remedy` is that of a null
    or blank one."""
    if column not in row:
        raise InputError(
            f"{place}: column '{column}' is missing (it has: {', '.join(row)}); "
            "add it, or name the right column under `columns` in the study"
        )
    value = row[column]
    if value is None:
        raise InputError(f"{place}: row {number}: {column} is null; {remedy}")
    if not isinstance(value, str):
        raise InputError(f"{place}: row {number}: {column} is {type(value).__name__}, not text; convert it")
    if not value.strip():
        raise InputError(f"{place}: row {number}: {column} is blank; {remedy}")
    return value
