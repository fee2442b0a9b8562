"""The report: one HTML page that a reviewer reads from top to bottom, with nothing loaded from elsewhere."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lancet_pipeline.config.loading import leaves
from lancet_pipeline.evaluation.figures import number_text
from lancet_pipeline.evaluation.reports import MAIN
from lancet_pipeline.governance import limitations as limits
from lancet_pipeline.governance import wording
from lancet_pipeline.governance.comparison import SETS, compare
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.lineage_graph import HEIGHT, WIDTH, draw
from lancet_pipeline.governance.trail import KINDS, SHOWN_SAMPLES, Trail, attributed
from lancet_pipeline.lineage.stages import SOURCES, STAGES

SHOWN_PROMPTS = 100
ROLES = tuple(SHOWN_SAMPLES)

SECTIONS = {
    "verdict": "Verdict",
    "figures": "Before and after",
    "wrong": "What was wrong",
    "why": "Why: the samples behind it",
    "selection": "How the samples were selected",
    "done": "What was done",
    "changed": "What it changed",
    "cost": "What it cost",
    "decisions": "Decisions",
    "judge": "The judge",
    "checks": "Data checks",
    "lineage": "Lineage",
    "limits": "Limits and known failures",
    "verify": "How to verify",
}
_CORRECTION = ("undesirable_outputs", "linfac_factors", "influence_scores", "pareto_pairs", "corrected_model")
"""What finding the cause and correcting the model takes; the queries count as part of it."""
_PLOT_SECTIONS = {
    "figures": ("harmlessness_report", "ood_report", "utility_report"),
    "done": ("corrected_model",),
    "checks": ("prepared_data", "base_model", "reference_models"),
}


def render_report(evidence: Evidence) -> str:
    """The whole report as HTML. The same evidence gives the same text; all of it is escaped."""
    environment = wording.environment(escaped=True)
    script = environment.get_template("report.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        _view(evidence), script=Markup(script), script_digest=digest, sections=SECTIONS
    )


def render_trace(trace: Mapping[str, Any]) -> str:
    """The result of `lancet_pipeline.lineage.tracing.trace_answer` as an HTML page; all of it is escaped."""
    method = trace.get("method", "linfac")
    sides = [
        (title.capitalize(), "(the strongest first)", [attributed(sample) for sample in trace[side]])
        for side, title in wording.trace_titles(method).items()
    ]
    page = wording.environment(escaped=True).get_template("trace.html.j2")
    return page.render(trace=trace, sides=sides, method=method)


def _view(evidence: Evidence) -> dict[str, Any]:
    comparisons = compare(evidence.generations)
    lineage = [(name, evidence.lineage.get(name)) for name in STAGES if name in evidence.versions]
    answers = [row for row in evidence.generations if row["model"] == "base" and MAIN.holds(row)]
    settings = ("model", "queries", "influence", "linfac", "pareto", "correction")
    return {
        "evidence": evidence,
        "study": evidence.study,
        "governance": evidence.study.get("governance", {}),
        "created": max((m.get("created", "") for m in evidence.lineage.values()), default=""),
        **limits.review(evidence),
        "pairs": [
            (SETS[name][0], models, test) for name, tests in evidence.tests.items() for models, test in tests.items()
        ],
        "comparisons": comparisons,
        "shown_prompts": SHOWN_PROMPTS,
        "trail": Trail(evidence),
        # All of the base model's harmful outputs that could have been traced.
        "harmful_outputs": len(evidence.queries) + sum(row["harmful"] and row["report"] in KINDS for row in answers),
        "cost": cost(evidence.lineage, evidence.study),
        "composition": _composition(evidence.samples),
        "settings": {
            part: [
                (name, number_text(value) if isinstance(value, bool) else str(value))
                for name, value in leaves(evidence.study.get(part))
                if value is not None
            ]
            for part in settings
        },
        "plots": _plots(evidence),
        "checks": [(name, check) for name, m in lineage if m for check in m.get("checks", [])],
        "lineage": lineage,
        "sources": [source for source in SOURCES.values() if source.name in evidence.versions],
        "stages": STAGES,
        "drawing": draw(evidence.versions, evidence.lineage),
        "box": (WIDTH, HEIGHT),
    }


def cost(lineage: Mapping[str, Mapping[str, Any]], study: Mapping[str, Any]) -> dict[str, Any]:
    """What the assets in `lineage` (their manifests) cost in seconds of wall-clock time.

    Returns:
        assets: (name, what it counts as, seconds, seconds of the processor or None where they were not recorded, share of
        the longest), in graph order; total; correction; reference: training the references, None where there are none;
        ratio: of the correction over that.
    """
    seconds = {name: float(lineage[name].get("seconds", 0.0)) for name in STAGES if name in lineage}
    longest = max(seconds.values(), default=0.0) or 1.0
    correction = sum(seconds.get(name, 0.0) for name in _CORRECTION)
    reference = seconds.get("reference_models") if study.get("evaluation", {}).get("references") else None
    return {
        "assets": [
            (
                name,
                "correction" if name in _CORRECTION else STAGES[name].group,
                spent,
                lineage[name].get("processor_seconds"),
                spent / longest,
            )
            for name, spent in seconds.items()
        ],
        "total": sum(seconds.values()),
        "correction": correction,
        "reference": reference,
        "ratio": correction / reference if reference else None,
    }


def _composition(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for role in ROLES:
        groups = Counter((s["category"] or "", s["is_safe"]) for s in samples if s["role"] == role)
        for (category, is_safe), count in sorted(groups.items(), key=lambda item: (-item[1], str(item[0]))):
            row = {"role": role, "category": category, "is_safe": is_safe}
            rows.append({**row, "count": count, "share": count / groups.total()})
    return rows


def _plots(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    placed: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, png in evidence.plots.items():
        section = next((s for s, assets in _PLOT_SECTIONS.items() if name.startswith(assets)), "selection")
        # The size in the header keeps the page from jumping while the picture is decoded.
        width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20)) if len(png) > 24 else (0, 0)
        placed[section].append(
            {
                "alt": limits.alternative_text(name, evidence),
                "caption": name.replace("_", " "),
                "width": width,
                "height": height,
                "source": Markup("data:image/png;base64," + base64.b64encode(png).decode()),
            }
        )
    return placed
