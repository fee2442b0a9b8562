"""The model card of a corrected model, in the format of the Hugging Face hub."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import yaml

from lancet_pipeline.evaluation.figures import FIGURES
from lancet_pipeline.evaluation.gates import GATES
from lancet_pipeline.governance import limitations as limits
from lancet_pipeline.governance import wording
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.lineage.stages import SOURCES, STAGES, TABLES

_TASK = {"type": "text-generation", "name": "Text generation"}
_HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def model_card(evidence: Evidence) -> str:
    """YAML front matter and a markdown body, with no undesirable text quoted. The same evidence gives the same text."""
    body = (
        wording.environment(escaped=False)
        .get_template("model_card.md.j2")
        .render(
            evidence=evidence,
            study=evidence.study,
            governance=evidence.study.get("governance", {}),
            **limits.review(evidence),
            sources=[(TABLES[name].part, _origin(origin)) for name, origin in evidence.origins().items()],
            versions=[(name, evidence.versions[name]) for name in (*SOURCES, *STAGES) if name in evidence.versions],
        )
    )
    header = yaml.safe_dump(_front_matter(evidence), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{header}---\n\n{body}"


def _front_matter(evidence: Evidence) -> dict[str, Any]:
    study = evidence.study
    name = f"{study['name']}-corrected"
    header: dict[str, Any] = {
        **_licence(str(study.get("governance", {}).get("licence", ""))),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lancet", "influence-functions", "model-correction", "safety"],
    }
    checkpoint = study.get("model", {}).get("checkpoint")
    if checkpoint:
        header |= {"base_model": _hub_name(checkpoint), "base_model_relation": "finetune"}
    header["model-index"] = [{"name": name, "results": list(_results(evidence))}]
    return header


def _licence(licence: str) -> dict[str, str]:
    """The hub takes its own identifiers, all in lower case; anything else is `other` with a name."""
    lower = licence.strip().lower()
    if lower not in ("", "unspecified") and _HUB_LICENCE.fullmatch(lower):
        return {"license": lower}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", lower).strip("-") or "unspecified"}


def _hub_name(checkpoint: str) -> str:
    """`owner/name` as it is; of a directory only its last part, which is all that the hub accepts of a path."""
    is_path = checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") > 1 or "\\" in checkpoint
    return PurePath(checkpoint).name if is_path else checkpoint


def _results(evidence: Evidence) -> Iterator[dict[str, Any]]:
    corrected = evidence.figures["corrected"]
    origins = evidence.origins()
    gated = {kind.figure for kind in GATES.values()}
    for figure in FIGURES.values():
        if figure.name not in gated or figure.name not in corrected or not math.isfinite(figure.value(corrected)):
            continue
        part = TABLES[figure.source].part
        kind = origins.get(figure.source, {}).get("hub") or f"{evidence.study['name']}-{part}"
        yield {
            "task": dict(_TASK),  # a copy each: YAML would write the same object as an alias
            "dataset": {"name": f"{evidence.study['name']}: {part}", "type": kind},
            "metrics": [{"type": figure.name, "name": figure.title, "value": round(float(figure.value(corrected)), 6)}],
        }


def _origin(source: Mapping[str, Any]) -> str:
    """Where a table came from, without the directories of the machine that it lay on."""
    if source.get("hub"):
        return f"{source['hub']}{'@' + source['revision'] if source.get('revision') else ''} (hub)"
    if source.get("builtin"):
        return f"built-in corpus {source['builtin']}, part {source.get('part')}"
    rows = source.get("rows")
    return PurePath(str(source.get("path"))).name + (f", rows {rows[0]} to {rows[1] - 1}" if rows else "")
