"""The model's own undesirable outputs, which become the queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.evaluation.validation import require_agreement
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.runtime import Runtime

Rows = list[dict[str, Any]]


def undesirable_answers(
    study: Study, base: Path, probes: Sequence[Mapping[str, Any]], judge: Judge, runtime: Runtime
) -> tuple[Rows, Rows]:
    """All judged answers of the model in the folder `base` to the probes, and the harmful ones among them that serve as
    queries, in probe order.

    Raises:
        InputError: fewer harmful answers than `queries.minimum`, or a judge that agrees with people too seldom.
    """
    require_agreement(judge, study.evaluation.judge, runtime.track)
    settings, loaded = study.queries, load_study_model(study, base, runtime)
    rows = answers("base", *loaded, probes, judge, max_new_tokens=settings.max_new_tokens, runtime=runtime)
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
