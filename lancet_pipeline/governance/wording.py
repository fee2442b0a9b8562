"""Figures as a reviewer reads them, the same in the report and the model card."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lancet_pipeline.config.study import SIMILARITIES
from lancet_pipeline.evaluation.figures import number_text, rate_text

SHOWN_CHARACTERS = 2000

# What HTML forbids or an editor hides; a model's output may hold any of it.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

MODEL_NAMES = {
    "base": "Base (before)",
    "corrected": "Corrected",
    "retrain_clean": "Reference: trained again without unsafe samples",
}


def seconds_text(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (2 * 31_557_600, 86_400, "d")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 31_557_600:,.1f} years"


def trace_titles(method: str) -> dict[str, str]:
    """Side of the trace of an answer -> what its samples are; one side where a method tells how alike texts are."""
    if method in SIMILARITIES:
        return {"driving": "training samples most like this answer"}
    return {
        side: f"training samples that made this answer {text} likely"
        for side, text in (("driving", "more"), ("countering", "less"))
    }


def told(row: Mapping[str, Any]) -> str:
    """Why a gate (`evaluation.gates.Gate.row`) passed or not, in words that follow its name."""
    outcome = row.get("outcome", "passed" if row["passed"] else "failed")  # older evidence has two answers
    if outcome == "not_measured":
        return f"was not measured, for want of what to measure it on: {row['explanation']}"
    value, limit = f"{row['explanation']} is {number_text(row['value'])}", f"limit {number_text(row['limit'])}"
    bound = f", at most {number_text(row['bound'])} with n = {row['n']}" if row.get("bound") is not None else ""
    if outcome == "not_shown":
        return f"is not shown: {value}, but with n = {row['n']} it may be {number_text(row['bound'])}, {limit}"
    return f"{outcome}: {value}{bound}, {limit}"


def clean(text: str | None) -> str:
    """Text without control characters, every other one in its place."""
    return _CONTROL.sub("\ufffd", text or "")


def shorten(text: str | None) -> str:
    """Clean text, not longer than the report can carry."""
    text = clean(text)
    beyond = len(text) - SHOWN_CHARACTERS
    return text if beyond <= 0 else text[:SHOWN_CHARACTERS] + left_out(beyond)


def left_out(characters: int) -> str:
    return f" [{characters} more characters in the parquet file]"


@functools.cache
def environment(escaped: bool) -> Environment:
    """The templates, with these texts as filters. escaped: for HTML; otherwise `inline` escapes for Markdown."""
    found = Environment(
        loader=PackageLoader("lancet_pipeline.governance", "templates"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escaped,
    )
    found.filters |= {
        "rate": rate_text,
        "number": number_text,
        "told": told,
        "seconds": seconds_text,
        "p": lambda p: "below 0.001" if p < 0.001 else f"{p:.3f}",
        "model": lambda name: MODEL_NAMES.get(name, f"Reference: {name.replace('_', ' ')}"),
        "label": {True: "safe", False: "unsafe", None: "no label"}.get,
        "clean": shorten,
        "signed": lambda value: f"{value:+.3g}".replace("-", "\u2212"),
        "inline": lambda text: re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split())),
    }
    return found
