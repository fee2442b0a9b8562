"""The report: one HTML page that a reviewer reads from top to bottom, with nothing loaded from elsewhere."""

import base64
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lancet_pipeline.governance import limits, wording
from lancet_pipeline.governance.attribution import attribute
from lancet_pipeline.governance.comparison import compare, pair_tests
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.lineage_graph import HEIGHT, WIDTH, draw
from lancet_pipeline.governance.plot_texts import alternative_text
from lancet_pipeline.graph import SOURCES, STAGES

SHOWN_SAMPLES = {"driving": 50, "countering": 50, "neutral": 10}
SHOWN_PROMPTS, SHOWN_QUERIES, SHOWN_CHARACTERS = 100, 50, 2000

# What HTML forbids or an editor hides; a model's output may hold any of it.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

SECTIONS = {
    "verdict": "Verdict",
    "figures": "Before and after",
    "wrong": "What was wrong",
    "why": "Why: the samples behind it",
    "selection": "How the samples were selected",
    "done": "What was done",
    "changed": "What it changed",
    "judge": "The judge",
    "checks": "Data checks",
    "lineage": "Lineage",
    "limits": "Limits and known failures",
    "verify": "How to verify",
}
_PLOT_SECTIONS = {
    "figures": ("harmlessness_report", "ood_report", "utility_report"),
    "done": ("corrected_model",),
    "checks": ("prepared_data", "base_model", "reference_models"),
}


def render_report(evidence: Evidence) -> str:
    """The whole report as HTML. The same evidence gives the same text; all of it is escaped."""
    environment = _environment()
    script = environment.get_template("report.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        _view(evidence), script=Markup(script), script_digest=digest, sections=SECTIONS
    )


def render_trace(trace: Mapping[str, Any]) -> str:
    """The result of `lancet_pipeline.tracing.trace_answer` as an HTML page; all of it is escaped."""
    sides = [
        (title, "(the most influential first)", [_attributed(sample) for sample in trace[side]])
        for side, title in (
            ("driving", "Training samples that made this answer more likely"),
            ("countering", "Training samples that made this answer less likely"),
        )
    ]
    return _environment().get_template("trace.html.j2").render(trace=trace, sides=sides)


def clean(text: str | None) -> str:
    """Text without control characters, and not longer than the report can carry."""
    text = _CONTROL.sub("\ufffd", text or "")
    beyond = len(text) - SHOWN_CHARACTERS
    return text if beyond <= 0 else f"{text[:SHOWN_CHARACTERS]} [{beyond} more characters in the parquet file]"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lancet_pipeline.governance", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": wording.rate_text,
        "number": wording.number_text,
        "seconds": wording.seconds_text,
        "p": wording.p_text,
        "model": wording.model_text,
        "label": wording.label_text,
        "clean": clean,
        "signed": lambda value: f"{value:+.3g}".replace("-", "\u2212"),
    }
    return environment


def _view(evidence: Evidence) -> dict[str, Any]:
    comparisons = compare(evidence.generations)
    lineage = [(name, evidence.lineage.get(name)) for name in STAGES if name in evidence.versions]
    settings = ("model", "queries", "linfac", "pareto", "correction")
    return {
        "evidence": evidence,
        "study": evidence.study,
        "governance": evidence.study.get("governance", {}),
        "created": max((m.get("created", "") for m in evidence.lineage.values()), default=""),
        "verdict": limits.verdict(evidence),
        "outcome": limits.outcome(evidence),
        "rates": wording.measured(wording.RATES, evidence.figures),
        "numbers": wording.measured(wording.NUMBERS, evidence.figures),
        "pairs": pair_tests(evidence.generations),
        "comparisons": comparisons,
        "shown_prompts": SHOWN_PROMPTS,
        "queries": evidence.queries[:SHOWN_QUERIES],
        "roles": [_role(role, evidence.samples) for role in SHOWN_SAMPLES],
        "composition": _composition(evidence.samples),
        "settings": {part: _flat(evidence.study.get(part)) for part in settings},
        "plots": _plots(evidence),
        "checks": [(name, check) for name, m in lineage if m for check in m.get("checks", [])],
        "lineage": lineage,
        "sources": [(name, SOURCES[name], evidence.versions[name]) for name in SOURCES if name in evidence.versions],
        "stages": STAGES,
        "drawing": draw(evidence.versions, evidence.lineage),
        "box": (WIDTH, HEIGHT),
        "failures": limits.known_failures(evidence),
        "limits": limits.limits(evidence),
    }


def _role(role: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The samples of a role, the most influential first (the least, for neutral ones), as far as they are shown."""
    members = [sample for sample in samples if sample["role"] == role]
    members.sort(key=lambda sample: abs(sample["score"]) * (1 if role == "neutral" else -1))
    shown = [_attributed(sample) for sample in members[: SHOWN_SAMPLES[role]]]
    return {"name": role, "total": len(members), "shown": shown}


def _attributed(sample: Mapping[str, Any]) -> dict[str, Any]:
    attribution = attribute(clean(sample["prompt"]), clean(sample["response"]), sample["tokens"] or [])
    return {**sample, "attribution": attribution}


def _composition(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for role in SHOWN_SAMPLES:
        members = [sample for sample in samples if sample["role"] == role]
        groups = Counter((sample["category"] or "", sample["is_safe"]) for sample in members)
        for (category, is_safe), count in sorted(groups.items(), key=lambda item: (-item[1], str(item[0]))):
            rows.append(
                {"role": role, "category": category, "is_safe": is_safe, "count": count, "share": count / len(members)}
            )
    return rows


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted name and value of every leaf that is set."""
    if isinstance(tree, Mapping):
        return [leaf for key, value in tree.items() for leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    return [] if tree is None else [(prefix, wording.number_text(tree) if isinstance(tree, bool) else str(tree))]


def _plots(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    placed: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, png in evidence.plots.items():
        section = next((s for s, assets in _PLOT_SECTIONS.items() if name.startswith(assets)), "selection")
        # The size in the header keeps the page from jumping while the picture is decoded.
        width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20)) if len(png) > 24 else (0, 0)
        placed[section].append(
            {
                "alt": alternative_text(name, evidence),
                "caption": name.replace("_", " "),
                "width": width,
                "height": height,
                "source": Markup("data:image/png;base64," + base64.b64encode(png).decode()),
            }
        )
    return placed
