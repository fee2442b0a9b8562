"""What changed between two corrections, read from their audit bundles alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lancet_pipeline.config.loading import leaves
from lancet_pipeline.evaluation.figures import FIGURES
from lancet_pipeline.governance.comparison import SETS
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.verification import inspect_bundle
from lancet_pipeline.lineage.stages import SOURCES, STAGES

LARGEST = 5


def compare_bundles(before: Path, after: Path, trust: Trust = Trust()) -> dict[str, Any]:  # noqa: B008, a frozen value
    """Compare two bundles, once both are verified against `trust`.

    Returns:
        JSON-ready: "before" and "after" {path, study, corrected_model, fingerprint}; "sources" and "stages" that
        differ, a stage with why: its settings, code_version, inputs and environment [old, new]; "samples" by role
        {entered, left, stayed, largest_entered, largest_left}; "figures" by model {figure: {before, after, difference,
        overlap}}; "gates" that differ; "prompts" by report and condition {prompts, mended, broke}; "decisions" that
        only the later one has.

    Raises:
        IntegrityError: one of the two does not fit.
        InputError: one is no bundle, or `trust` cannot be used.
    """
    (old, first), (new, second) = (_read(folder, trust) for folder in (before, after))
    sources = {name: [bundle["versions"].get(name) for bundle in (old, new)] for name in SOURCES}
    return {
        "before": first,
        "after": second,
        "sources": [{"name": name, "before": a, "after": b} for name, (a, b) in sources.items() if a != b],
        "stages": list(_stages(old["lineage"], new["lineage"])),
        "samples": {role: _samples(role, old["samples"], new["samples"]) for role in ("driving", "countering")},
        "figures": _figures(old["figures"]["figures"], new["figures"]["figures"]),
        "gates": list(_gates(old["figures"]["gates"], new["figures"]["gates"])),
        "prompts": _prompts(old["generations"], new["generations"]),
        "decisions": [entry for entry in new["decisions"] if entry not in old["decisions"]],
    }


def _read(folder: Path, trust: Trust) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a bundle holds, once it is verified, and how it is introduced."""
    verified = inspect_bundle(folder, trust)
    study, versions = verified.manifest["study"], verified.manifest["versions"]
    held = {name: json.loads((folder / f"{name}.json").read_bytes()) for name in ("lineage", "figures", "decisions")}
    held |= {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("samples", "generations")}
    model, signed = versions.get("corrected_model"), verified.fingerprint
    head = {"path": str(folder), "study": study, "corrected_model": model, "fingerprint": signed}
    return {**held, "versions": versions}, head


def _stages(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in STAGES:
        first, second = old.get(name, {}), new.get(name, {})
        code = [first.get("code_version"), second.get("code_version")]
        why = {
            "settings": _changed(dict(leaves(first.get("settings"))), dict(leaves(second.get("settings")))),
            "code_version": None if code[0] == code[1] else code,
            "inputs": sorted(_changed(first.get("inputs", {}), second.get("inputs", {}))),
            "environment": _changed(first.get("environment", {}), second.get("environment", {})),
        }
        versions = {"before": first.get("version"), "after": second.get("version")}
        # A new environment alone leaves a version as it is, but may move a figure.
        if versions["before"] != versions["after"] or (first and why["environment"]):
            yield {"name": name, **versions, **(why if first and second else dict.fromkeys(why))}


def _samples(role: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, second = ({row["sample_id"]: row for row in rows if row["role"] == role} for rows in (old, new))
    came, went = (
        [rows[name] for name in sorted(rows.keys() - others.keys())]
        for rows, others in ((second, first), (first, second))
    )
    return {
        "entered": [row["sample_id"] for row in came],
        "left": [row["sample_id"] for row in went],
        "stayed": len(first.keys() & second.keys()),
        "largest_entered": _largest(came),
        "largest_left": _largest(went),
    }


def _largest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ranked = sorted(rows, key=lambda row: -abs(row["score"]))[:LARGEST]
    return [{key: row[key] for key in ("sample_id", "score", "source", "prompt")} for row in ranked]


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in new:
        for name, figure in FIGURES.items():
            first, second = old.get(model, {}).get(name), new[model].get(name)
            if first is None or second is None:
                continue
            found.setdefault(model, {})[name] = {
                "before": first,
                "after": second,
                "overlap": first["low"] <= second["high"] and second["low"] <= first["high"] if figure.rate else None,
                "difference": figure.value(new[model]) - figure.value(old[model]),
            }
    return found


def _gates(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    first, second = (
        {
            gate["name"]: {key: gate[key] for key in ("outcome", "passed", "value", "bound", "limit") if key in gate}
            for gate in gates
        }
        for gates in (old, new)
    )
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if (
            one is None
            or other is None
            or any(one[key] != other[key] for key in ("passed", "limit"))
            or one.get("outcome") != other.get("outcome")
        ):
            yield {"name": name, "before": one, "after": other}


def _prompts(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prompts that both corrected models answered, by report and condition; mended: fails only before."""
    first, second = _outcomes(old), _outcomes(new)
    found = {}
    for condition in sorted(first.keys() & second.keys()):
        before, after = first[condition], second[condition]
        shared = sorted(before.keys() & after.keys())
        found[condition] = {
            "prompts": len(shared),
            "mended": [name for name in shared if before[name] and not after[name]],
            "broke": [name for name in shared if after[name] and not before[name]],
        }
    return found


def _outcomes(generations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Whether the corrected model failed, by condition and prompt."""
    found: dict[str, dict[str, bool]] = {}
    for row in generations:
        if row["model"] == "corrected":
            condition = f"{row['report']} {row['decoding']} {row['wording']}"
            found.setdefault(condition, {})[row["sample_id"]] = row[SETS[row["report"]][1]]
    return found


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = sorted(first.keys() | second.keys())
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}
