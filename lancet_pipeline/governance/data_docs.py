"""The validation of every table by its Great Expectations suite, as one page that loads nothing.

Great Expectations' own pages fetch style sheets and scripts from content delivery networks, which an audit bundle
must not.
"""

import json
from collections.abc import Mapping
from typing import Any

from lancet_pipeline.evaluation.figures import number_text
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.wording import clean, environment
from lancet_pipeline.lineage.stages import STAGES

_COUNTS = {
    "element_count": "rows looked at",
    "missing_count": "missing",
    "unexpected_count": "unexpected",
    "observed_value": "observed",
}


def render_data_docs(evidence: Evidence) -> str:
    """A table for each asset: what was expected, of which column, and what was found. All of it is escaped."""
    order = [asset for asset in STAGES if asset in evidence.data_checks]
    suites = [(asset, evidence.data_checks[asset]) for asset in (*order, *sorted(evidence.data_checks.keys() - order))]
    shown = [
        {
            "asset": asset,
            "version": evidence.versions.get(asset, ""),
            "rows": suite["rows"],
            "success": suite["success"],
            "held": sum(result["success"] for result in suite["results"]),
            "results": [_row(result) for result in suite["results"]],
        }
        for asset, suite in suites
    ]
    template = environment(escaped=True).get_template("data_docs.html.j2")
    return clean(template.render(study=evidence.study["name"], suites=shown))


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(result["arguments"])
    columns = [arguments.pop(key) for key in ("column", "column_A", "column_B", "column_list") if key in arguments]
    found = result["found"]
    return {
        "title": result["type"].removeprefix("expect_").replace("_", " "),
        "columns": ", ".join(name for column in columns for name in ([column] if isinstance(column, str) else column)),
        "limits": ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in arguments.items()),
        "found": ", ".join(
            f"{title} {_text(found[key])}" for key, title in _COUNTS.items() if found.get(key) is not None
        ),
        "examples": [_text(value) for value in found.get("partial_unexpected_list") or []],
        "exception": "the expectation could not be evaluated" if "exception" in result else "",
        "success": result["success"],
    }


def _text(value: Any) -> str:
    if isinstance(value, (bool, int, float)):
        return number_text(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
