"""Great Expectations suites for the tables of a study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "expectations.json"


def meets(
    table: "pd.DataFrame", expectations: Sequence[Any], name: str, out: Path | None = None
) -> tuple[bool, dict[str, str]]:
    """Validate `table` against expectations (objects of `great_expectations.expectations`).

    Args:
        out: directory that takes the whole result as RESULTS, without the run's time and identifiers.

    Returns:
        Whether all hold, and one line for each expectation: what it says and, where broken, what was found.
    """
    import great_expectations as gx

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("tables")
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe("whole")
        .get_batch({"dataframe": table})
    )
    suite = gx.ExpectationSuite(name=name, expectations=list(expectations))
    validation: Any = batch.validate(suite).to_json_dict()
    results = [_record(result) for result in validation["results"]]
    if out is not None:
        record = {"name": name, "success": validation["success"], "rows": len(table), "results": results}
        (out / RESULTS).write_text(json.dumps(record, indent=2, sort_keys=True, default=str), encoding="utf-8")
    lines = {
        f"{number:02d} {entry['type']}": f"{entry['arguments']}: "
        + ("holds" if entry["success"] else f"broken: {_found(entry['found'])}")
        for number, entry in enumerate(results, start=1)
    }
    return bool(validation["success"]), lines


def sample_expectations(max_length: int) -> list[Any]:
    """What prepared data must satisfy."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        *[gxe.ExpectColumnValuesToNotBeNull(column=column) for column in ("sample_id", "source", "prompt", "response")],
        gxe.ExpectColumnValueLengthsToBeBetween(column="response", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="tokens", min_value=2, max_value=max_length),
        gxe.ExpectColumnValuesToBeBetween(column="response_tokens", min_value=1),
    ]


def score_expectations(samples: int) -> list[Any]:
    """Every sample scored exactly once, with a finite score."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=samples),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="score"),
        gxe.ExpectColumnValuesToBeBetween(column="score", min_value=-1e30, max_value=1e30),
    ]


def pair_expectations(fewest: int = 1) -> list[Any]:
    """Each side of a pair is a sample of its own sign, and the two differ. fewest: pairs that there must be."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=fewest),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="dispreferred_score", column_B="preferred_score"),
        gxe.ExpectColumnValuesToBeBetween(column="preferred_score", max_value=0, strict_max=True),
        gxe.ExpectColumnValuesToBeBetween(column="dispreferred_score", min_value=0, strict_min=True),
        gxe.ExpectColumnValuesToBeBetween(column="weight", min_value=0, strict_min=True),
    ]


def generation_expectations(rows: int) -> list[Any]:
    """Every prompt answered by every model, each answer judged."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=rows),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["model", "sample_id", "decoding", "wording", "prompt"]),
        *[
            gxe.ExpectColumnValuesToNotBeNull(column=column)
            for column in ("response", "verdict", "harmful", "refusing")
        ],
    ]


def trace_expectations(outputs: int) -> list[Any]:
    """Every harmful output traced exactly once, with the corrected model's judged answer."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=outputs),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["report", "sample_id"]),
        *[gxe.ExpectColumnValuesToNotBeNull(column=name) for name in ("corrected_response", "corrected_verdict")],
    ]


def _record(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that the same table always gives."""
    configuration, raised = result["expectation_config"], result.get("exception_info")
    return {
        "type": configuration["type"],
        "arguments": {key: value for key, value in configuration["kwargs"].items() if key != "batch_id"},
        "success": result["success"],
        "found": result.get("result") or {},
        **({"exception": raised} if "raised_exception': True" in str(raised) else {}),
    }


def _found(found: Mapping[str, Any]) -> str:
    parts = [f"{found[key]} {key.replace('_', ' ')}" for key in ("unexpected_count", "observed_value") if key in found]
    examples = found.get("partial_unexpected_list") or []
    return ", ".join(parts) + (f", such as {examples[:3]}" if examples else "")
