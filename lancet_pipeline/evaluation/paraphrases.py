"""Prompts in other words, as people or other models wrote them: whether a correction hangs on the wording of a prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from lancet_pipeline.config.study import Origin
from lancet_pipeline.data.readers import describe, read_named_rows
from lancet_pipeline.data.schema import required_text, sample_id
from lancet_pipeline.errors import InputError

PARAPHRASES = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "prompt", "paraphrase")])


def read_paraphrases(source: Origin | None) -> pa.Table:
    """Other wordings of prompts, in the order of the file; no rows where a study names no source.

    Returns:
        Table in `PARAPHRASES`; `sample_id` is that of the prompt with its wording. A prompt may stand in several rows.

    Raises:
        InputError: the source does not exist, lacks a column or has a null or blank text; a wording stands twice, or is
            the prompt itself.
    """
    if source is None:
        return PARAPHRASES.empty_table()
    place = describe(source)
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_named_rows(source), start=1):
        prompt, wording = (required_text(row, column, place, number) for column in ("prompt", "paraphrase"))
        identity = sample_id(prompt, wording)
        if identity in found or wording == prompt:
            raise InputError(
                f"{place}: row {number}: no new wording of {prompt[:60]!r}; remove the row, or write it in other words"
            )
        found[identity] = {"sample_id": identity, "prompt": prompt, "paraphrase": wording}
    return pa.Table.from_pylist(list(found.values()), schema=PARAPHRASES)


def check_paraphrases(table: pa.Table, harmful: pa.Table, source: Origin | None) -> None:
    """Raises InputError for a row of `table` whose prompt is none of the `harmful` ones."""
    known = set(harmful["prompt"].to_pylist())
    for number, prompt in enumerate(table["prompt"].to_pylist(), start=1):
        if source is not None and prompt not in known:
            raise InputError(
                f"{describe(source)}: row {number}: prompt {prompt[:60]!r} is none of data.harmful; "
                "write it as it stands there, or remove the row"
            )


def reworded(prompts: Iterable[Mapping[str, Any]], paraphrases: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `prompts` that have other wordings, once with each of them as their prompt."""
    wordings: dict[str, list[str]] = {}
    for row in paraphrases:
        wordings.setdefault(row["prompt"], []).append(row["paraphrase"])
    return [{**row, "prompt": wording} for row in prompts for wording in wordings.get(row["prompt"], ())]
