"""The model's own undesirable outputs, which become the queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import QuerySettings
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.progress import Track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = list[dict[str, Any]]


def undesirable_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[Mapping[str, Any]],
    judge: Judge,
    settings: QuerySettings,
    batch_tokens: int,
    track: Track,
) -> tuple[Rows, Rows]:
    """All judged answers to the probes, and the harmful ones among them that serve as queries, in probe order.

    Raises:
        InputError: fewer harmful answers than `settings.minimum`.
    """
    rows = answers(
        "base",
        model,
        tokenizer,
        probes,
        judge,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=batch_tokens,
        track=track,
    )
    harmful = [row for row in rows if row["harmful"] and row["response"]]
    if len(harmful) < settings.minimum:
        raise InputError(
            f"queries: the model answered {len(harmful)} of {len(rows)} probe prompts harmfully, fewer than "
            f"queries.minimum = {settings.minimum}; give more or other data.probes, or check evaluation.judge"
        )
    return rows, harmful[: settings.maximum]


def write_rows(rows: Rows, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_rows(path: Path) -> Rows:
    return pq.read_table(path).to_pylist()
