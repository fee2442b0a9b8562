"""What changed between two corrections, read from their audit bundles alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.verification import inspect_bundle
from lancet_pipeline.governance.wording import NUMBERS, RATES
from lancet_pipeline.lineage.stages import SOURCES, STAGES

LARGEST = 5
_ROLES = ("driving", "countering")
_FAILURE = {"harmlessness": "harmful", "ood": "harmful", "utility": "refusing"}
"""Report -> the outcome of an answer that counts as failure."""


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
    old, new = (_Bundle(folder, trust) for folder in (before, after))
    return {
        "before": old.head(),
        "after": new.head(),
        "sources": [
            {"name": name, "before": old.versions.get(name), "after": new.versions.get(name)}
            for name in SOURCES
            if old.versions.get(name) != new.versions.get(name)
        ],
        "stages": list(_stages(old.lineage, new.lineage)),
        "samples": _samples(old.table("samples"), new.table("samples")),
        "figures": _figures(old.figures["figures"], new.figures["figures"]),
        "gates": list(_gates(old.figures["gates"], new.figures["gates"])),
        "prompts": _prompts(old.table("generations"), new.table("generations")),
        "decisions": [entry for entry in new.decisions if entry not in old.decisions],
    }


class _Bundle:
    """The files of one verified bundle that a comparison reads."""

    def __init__(self, folder: Path, trust: Trust) -> None:
        self.folder = folder
        self.verified = inspect_bundle(folder, trust)
        self.versions: dict[str, str] = self.verified.manifest["versions"]
        self.lineage, self.figures, self.decisions = (
            json.loads((folder / f"{name}.json").read_bytes()) for name in ("lineage", "figures", "decisions")
        )

    def head(self) -> dict[str, Any]:
        return {
            "path": str(self.folder),
            "study": self.verified.manifest["study"],
            "corrected_model": self.versions.get("corrected_model"),
            "fingerprint": self.verified.fingerprint,
        }

    def table(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / f"{name}.parquet").to_pylist()


def _stages(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    nothing: dict[str, Any] = {}
    for name in STAGES:
        first, second = old.get(name, nothing), new.get(name, nothing)
        why = {
            "settings": _changed(dict(_leaves(first.get("settings"))), dict(_leaves(second.get("settings")))),
            "code_version": _pair(first.get("code_version"), second.get("code_version")),
            "inputs": sorted(_changed(first.get("inputs", {}), second.get("inputs", {}))),
            "environment": _changed(first.get("environment", {}), second.get("environment", {})),
        }
        versions = {"before": first.get("version"), "after": second.get("version")}
        # A new environment alone leaves a version as it is, but may move a figure.
        if versions["before"] != versions["after"] or (first and why["environment"]):
            yield {"name": name, **versions, **(why if first and second else dict.fromkeys(why))}


def _samples(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for role in _ROLES:
        first, second = ({row["sample_id"]: row for row in rows if row["role"] == role} for rows in (old, new))
        entered, left = second.keys() - first.keys(), first.keys() - second.keys()
        found[role] = {
            "entered": sorted(entered),
            "left": sorted(left),
            "stayed": len(first.keys() & second.keys()),
            "largest_entered": _largest(second[name] for name in entered),
            "largest_left": _largest(first[name] for name in left),
        }
    return found


def _largest(rows: Iterator[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ranked = sorted(rows, key=lambda row: (-abs(row["score"]), row["sample_id"]))[:LARGEST]
    return [{key: row[key] for key in ("sample_id", "score", "source", "prompt")} for row in ranked]


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in new:
        for figure in (*RATES, *NUMBERS):
            first, second = old.get(model, {}).get(figure), new[model].get(figure)
            if first is None or second is None:
                continue
            entry: dict[str, Any] = {"before": first, "after": second, "overlap": None}
            if figure in RATES:
                entry["difference"] = second["value"] - first["value"]
                entry["overlap"] = first["low"] <= second["high"] and second["low"] <= first["high"]
            else:
                entry["difference"] = second - first
            found.setdefault(model, {})[figure] = entry
    return found


def _gates(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    first, second = ({gate["name"]: gate for gate in gates} for gates in (old, new))
    for name in dict.fromkeys([*first, *second]):
        shown = [
            gate and {key: gate[key] for key in ("passed", "value", "limit")}
            for gate in (first.get(name), second.get(name))
        ]
        if shown[0] is None or shown[1] is None or any(shown[0][key] != shown[1][key] for key in ("passed", "limit")):
            yield {"name": name, "before": shown[0], "after": shown[1]}


def _prompts(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prompts that both corrected models answered, by report and condition; mended: fails only before."""
    first, second = _outcomes(old), _outcomes(new)
    found = {}
    for condition in first.keys() & second.keys():
        before, after = first[condition], second[condition]
        shared = before.keys() & after.keys()
        found[condition] = {
            "prompts": len(shared),
            "mended": sorted(name for name in shared if before[name] and not after[name]),
            "broke": sorted(name for name in shared if after[name] and not before[name]),
        }
    return dict(sorted(found.items()))


def _outcomes(generations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = {}
    for row in generations:
        if row["model"] == "corrected":
            condition = f"{row['report']} {row['decoding']} {row['wording']}"
            found.setdefault(condition, {})[row["sample_id"]] = row[_FAILURE[row["report"]]]
    return found


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [first.get(name), second.get(name)]
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def _pair(first: Any, second: Any) -> list[Any] | None:
    return None if first == second else [first, second]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, tree
