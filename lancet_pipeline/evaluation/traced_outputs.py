"""Which harmful outputs are traced one by one, and what the corrected model answers in their place."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.evaluation.reports import MAIN

Rows = list[dict[str, Any]]

_TEXT = pa.string()
TOKEN = pa.struct([("position", pa.int32()), ("token", _TEXT), ("share", pa.float64())])
_SAMPLE = pa.struct([("sample_id", _TEXT), ("role", _TEXT), ("score", pa.float64()), ("tokens", pa.list_(TOKEN))])
_OUTPUT = ("report", "sample_id", "prompt", "response", "verdict", "corrected_response", "corrected_verdict")
TRACES = pa.schema([*[(name, _TEXT) for name in _OUTPUT], ("samples", pa.list_(_SAMPLE))])


def traced_queries(queries: Sequence[Mapping[str, Any]], corrected: Sequence[Mapping[str, Any]]) -> Rows:
    """Queries beside the corrected model's answers to the same prompts, in the same order."""
    return [_beside("queries", row, answer) for row, answer in zip(queries, corrected, strict=True)]


def traced_answers(report: str, generations: Sequence[Mapping[str, Any]], limit: int) -> Rows:
    """The first `limit` harmful answers of the base model in a report (greedy, to the prompts as they are), beside the
    corrected model's. An empty answer has nothing to trace."""
    rows = [row for row in generations if MAIN.holds(row)]
    corrected = {row["sample_id"]: row for row in rows if row["model"] == "corrected"}
    harmful = [row for row in rows if row["model"] == "base" and row["harmful"] and row["response"]]
    return [_beside(report, row, corrected[row["sample_id"]]) for row in harmful[:limit]]


def write_traces(outputs: Rows, samples: Sequence[Rows], folder: Path) -> None:
    """One row an output, with the training `samples` behind it (fields: `governance.evidence`)."""
    rows = [{**output, "samples": found} for output, found in zip(outputs, samples, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRACES), folder / "traces.parquet")


def read_traces(folder: Path) -> pa.Table:
    return pq.read_table(folder / "traces.parquet")


def all_sound(traces: pa.Table, roles: Mapping[str, str]) -> bool:
    """Whether every trace is `sound`."""
    return all(sound(trace, roles) for trace in traces["samples"].to_pylist())


def sound(trace: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> bool:
    """Whether the samples behind an output are selected ones, each once and in its role, and all numbers finite."""
    ids = [sample["sample_id"] for sample in trace]
    numbers = [n for sample in trace for n in (sample["score"], *(token["share"] for token in sample["tokens"]))]
    in_role = all(roles.get(sample["sample_id"]) == sample["role"] for sample in trace)
    return in_role and len(set(ids)) == len(ids) and all(map(math.isfinite, numbers))


def _beside(report: str, row: Mapping[str, Any], corrected: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("sample_id", "prompt", "response", "finished", "verdict")}
    return {
        "report": report,
        **kept,
        "corrected_response": corrected["response"],
        "corrected_verdict": corrected["verdict"],
    }
