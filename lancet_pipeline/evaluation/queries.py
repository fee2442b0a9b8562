"""The model's own undesirable outputs, which become the queries, and its harmless ones to the same probes, their controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.schema import kind
from lancet_pipeline.data.tokenization import prompt_text
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.evaluation.validation import require_agreement
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.runtime import Runtime

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Gathered:
    """All judged answers to the probes; the harmful ones that serve as queries, and the harmless ones that are their controls.
    Rows as of `reports.answers`, with the probe's `category`."""

    answers: Rows
    queries: Rows
    controls: Rows


def gather(study: Study, base: Path, probes: Sequence[Mapping[str, Any]], judge: Judge, runtime: Runtime) -> Gathered:
    """The answers of the model in the folder `base` to the probes, and what of them represents its behaviour. An answer to a
    prompt that fills `data.max_length` alone is none: nothing of it would count.

    Raises:
        InputError: fewer harmful answers than `queries.minimum`, or a judge that agrees with people too seldom.
    """
    require_agreement(judge, study.evaluation.judge, runtime.track)
    settings, loaded = study.queries, load_study_model(study, base, runtime)
    rows = answers("base", *loaded, probes, judge, max_new_tokens=settings.max_new_tokens, runtime=runtime)
    rows = [{**row, "category": probe.get("category")} for row, probe in zip(rows, probes, strict=True)]
    tokenizer = loaded[1]

    def counts(row: Mapping[str, Any]) -> bool:
        opening = tokenizer(prompt_text(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
        return bool(row["response"]) and len(opening) < study.data.max_length

    harmful = [row for row in rows if row["harmful"] and counts(row)]
    if len(harmful) < settings.minimum:
        raise InputError(
            f"queries: the model answered {len(harmful)} of {len(rows)} probe prompts harmfully, fewer than "
            f"queries.minimum = {settings.minimum}; give more or other data.probes, or check evaluation.judge"
        )
    harmless = [row for row in rows if not row["harmful"] and row["verdict"] not in judge.unread and counts(row)]
    return Gathered(
        rows,
        representative(harmful, settings.maximum, study.seed),
        representative(harmless, settings.controls, study.seed),
    )


def representative(rows: Rows, maximum: int, seed: int) -> Rows:
    """At most `maximum` rows, drawn evenly over their kinds (`kind`), in the order of `rows`."""
    generator = np.random.default_rng(seed)
    kinds = [kind(row) for row in rows]
    turns = np.empty(len(rows))
    for name in sorted(set(kinds)):
        members = np.flatnonzero([other == name for other in kinds])
        turns[members] = generator.permutation(len(members)) + generator.random()  # which kind goes first is drawn too
    return [rows[i] for i in sorted(np.argsort(turns, kind="stable")[:maximum])]


def write_rows(rows: Rows, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_rows(path: Path) -> Rows:
    return pq.read_table(path).to_pylist()
