"""Good answers that people wrote to prompts of training samples whose own are bad."""

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import pyarrow as pa

from lancet_pipeline.config.study import Origin, Study
from lancet_pipeline.correction.trainer import RankedPair
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.readers import describe, read_named_rows
from lancet_pipeline.data.schema import required_text, sample_id
from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer, save_prepared, tokenize
from lancet_pipeline.errors import InputError

REPLACEMENTS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "response")])
FOLDER = "replacements"


def read_replacements(source: Origin | None) -> pa.Table:
    """Good answers (`response`) by the training sample (`sample_id`) that they are for, in the order of the file; no rows where a
    study names no source.

    Raises:
        InputError: the source does not exist, is empty, lacks a column, has a null or blank text, or a sample twice.
    """
    if source is None:
        return REPLACEMENTS.empty_table()
    place = describe(source)
    found: dict[str, str] = {}
    for number, row in enumerate(read_named_rows(source), start=1):
        name, response = (required_text(row, column, place, number) for column in REPLACEMENTS.names)
        if name in found:
            raise InputError(f"{place}: row {number}: sample {name} has an answer already; keep one of them")
        found[name] = response
    if not found:
        raise InputError(f"{place}: holds no answers; give at least one, or leave correction.replacements out")
    return pa.table([list(found), list(found.values())], schema=REPLACEMENTS)


def check_replacements(table: pa.Table, samples: pa.Table, source: Origin | None) -> None:
    """Raises InputError for a row of `table` that is for none of the training `samples`, or answers as that sample does."""
    if source is None:
        return
    own = dict(zip(samples["sample_id"].to_pylist(), samples["response"].to_pylist(), strict=True))
    for number, row in enumerate(table.to_pylist(), start=1):
        name = row["sample_id"]
        if name not in own:
            raise InputError(
                f"{describe(source)}: row {number}: sample {name} is none of data.train; "
                "take its sample_id from the report or the data, or remove the row"
            )
        if row["response"].strip() == own[name].strip():
            raise InputError(
                f"{describe(source)}: row {number}: answers sample {name} as it is answered already; "
                "write a good answer, or remove the row"
            )


def write_replacements(study: Study, table: pa.Table, prepared: Path, out: Path) -> list[dict[str, Any]]:
    """Write the good answers, tokenised as the training data in the folder `prepared`, into `out`, for `replaced_pairs`; nothing
    where there is none. Samples that are too long to be trained on are left out.

    Returns:
        Rows of sample_id (that of the prompt with its new answer), replaces (that of the sample), prompt and response.

    Raises:
        InputError: an answer that is too long.
    """
    good = dict(zip(table["sample_id"].to_pylist(), table["response"].to_pylist(), strict=True))
    source = study.correction.replacements
    if source is None:
        return []
    samples, _ = load_prepared(prepared)
    rows = [
        {
            "sample_id": sample_id(row["prompt"], good[name]),
            "replaces": name,
            "prompt": row["prompt"],
            "response": good[name],
        }
        for row in samples.select(["sample_id", "prompt"]).to_pylist()
        if (name := row["sample_id"]) in good
    ]
    if rows:
        tokenizer, longest = load_tokenizer(prepared / "tokenizer"), study.data.max_length
        sequences = tokenize(tokenizer, rows, max_length=longest, place=describe(source))
        (out / FOLDER).mkdir()
        save_prepared(sequences, pa.Table.from_pylist(rows), out / FOLDER, study.data.shard_size)
    return rows


def replaced_pairs(sequences: Sequence[TokenSequence], choice: Path) -> list[RankedPair]:
    """Pairs of a good answer and the sample that it replaces, of what `write_replacements` left in `choice`."""
    if not (choice / FOLDER).is_dir():
        return []
    by_id = {sequence.sample_id: sequence for sequence in sequences}
    rows, good = load_prepared(choice / FOLDER)
    return [RankedPair(g, by_id[name], 1.0, True) for g, name in zip(good, rows["replaces"].to_pylist(), strict=True)]


def suffice(replaced: Sized, study: Study) -> bool:
    """Whether there are so many good answers that the correction learns from them alone."""
    return len(replaced) >= study.pareto.minimum


def beside(replaced: Sequence[RankedPair], pairs: Sequence[RankedPair]) -> list[RankedPair]:
    """Pairs with good answers, and those of the others whose samples have none."""
    known = {pair.dispreferred.sample_id for pair in replaced}
    others = [pair for pair in pairs if known.isdisjoint((pair.preferred.sample_id, pair.dispreferred.sample_id))]
    return [*replaced, *others]
