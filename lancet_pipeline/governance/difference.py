"""What changed between two corrections, read from their audit bundles alone, and as people read it in the terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lancet_pipeline.config.loading import leaves
from lancet_pipeline.evaluation.figures import FIGURES, number_text
from lancet_pipeline.governance.comparison import SETS
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.verification import inspect_bundle
from lancet_pipeline.lineage.stages import SOURCES, STAGES

LARGEST, SHOWN = 5, 10


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
    heads: list[dict[str, Any]] = []
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for folder, bundle in ((before, old), (after, new)):
        verified = inspect_bundle(folder, trust)
        for name in ("lineage", "figures", "decisions"):
            bundle[name] = json.loads((folder / f"{name}.json").read_bytes())
        for name in ("samples", "generations"):
            bundle[name] = pq.read_table(folder / f"{name}.parquet").to_pylist()
        bundle["versions"] = verified.manifest["versions"]
        heads.append(
            {
                "path": str(folder),
                "study": verified.manifest["study"],
                "corrected_model": bundle["versions"].get("corrected_model"),
                "fingerprint": verified.fingerprint,
            }
        )
    sources = {name: [bundle["versions"].get(name) for bundle in (old, new)] for name in SOURCES}
    return {
        "before": heads[0],
        "after": heads[1],
        "sources": [{"name": name, "before": a, "after": b} for name, (a, b) in sources.items() if a != b],
        "stages": list(_stages(old["lineage"], new["lineage"])),
        "samples": {role: _samples(role, old["samples"], new["samples"]) for role in ("driving", "countering")},
        "figures": _figures(old["figures"]["figures"], new["figures"]["figures"]),
        "gates": list(_gates(old["figures"]["gates"], new["figures"]["gates"])),
        "prompts": _prompts(old["generations"], new["generations"]),
        "decisions": [entry for entry in new["decisions"] if entry not in old["decisions"]],
    }


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
    found: dict[str, Any] = {"stayed": len(first.keys() & second.keys())}
    for what, rows, others in (("entered", second, first), ("left", first, second)):
        found[what] = sorted(rows.keys() - others.keys())
        ranked = sorted((rows[name] for name in found[what]), key=lambda row: -abs(row["score"]))[:LARGEST]
        found[f"largest_{what}"] = [
            {key: row[key] for key in ("sample_id", "score", "source", "prompt")} for row in ranked
        ]
    return {key: found[key] for key in ("entered", "left", "stayed", "largest_entered", "largest_left")}


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
        {gate["name"]: {key: gate[key] for key in ("passed", "value", "limit")} for gate in gates}
        for gates in (old, new)
    )
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if one is None or other is None or any(one[key] != other[key] for key in ("passed", "limit")):
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


def print_difference(found: Mapping[str, Any], console: Console | None = None) -> None:
    """`found` as `compare_bundles` returns it. Undesirable text is not shown, prompts in short."""
    console = console or Console(highlight=False)
    for side in ("before", "after"):
        head = found[side]
        console.print(
            f"[bold]{side:7}[/] {escape(head['path'])}: study {escape(head['study'])}, corrected model "
            f"{_short(head['corrected_model'])}, signed with {_short(head['fingerprint'])}",
            soft_wrap=True,
        )
    if found["before"]["study"] != found["after"]["study"]:
        console.print("[yellow]two different studies: versions differ by their settings as well as their data[/]")
    if found["before"]["fingerprint"] != found["after"]["fingerprint"]:
        console.print("[yellow]signed with two different keys: see that you know both[/]")
    _print_versions(found, console)
    _print_samples(found["samples"], console)
    _print_figures(found["figures"], console)
    _print_gates(found["gates"], console)
    _print_prompts(found["prompts"], console)
    _print_decisions(found["decisions"], console)


def _print_versions(found: Mapping[str, Any], console: Console) -> None:
    if not found["sources"] and not found["stages"]:
        console.print("versions  every source and stage is the same")
        return
    table = _table("sources and stages that changed", "before", "after", "why")
    for source in found["sources"]:
        table.add_row(source["name"], _short(source["before"]), _short(source["after"]), "its content")
    for stage in found["stages"]:
        table.add_row(stage["name"], _short(stage["before"]), _short(stage["after"]), "\n".join(_why(stage)))
    console.print(table)


def _why(stage: Mapping[str, Any]) -> list[str]:
    if stage["settings"] is None:
        return ["in one of the two only"]
    lines = [f"{escape(name)}: {_value(a)} -> {_value(b)}" for name, (a, b) in stage["settings"].items()]
    if stage["code_version"]:
        lines.append("code version: {} -> {}".format(*stage["code_version"]))
    if stage["inputs"]:
        lines.append(f"inputs: {', '.join(stage['inputs'])}")
    lines += [f"{escape(name)} {_value(a)} -> {_value(b)}" for name, (a, b) in stage["environment"].items()]
    if stage["before"] == stage["after"]:
        lines.append("(same version: computed in another environment)")
    return lines


def _print_samples(samples: Mapping[str, Any], console: Console) -> None:
    table = _table("selected training samples", "entered", "left", "stayed")
    for role, side in samples.items():
        name = {"driving": "driving (D+)", "countering": "countering (D-)"}[role]
        table.add_row(name, str(len(side["entered"])), str(len(side["left"])), str(side["stayed"]))
    console.print(table)
    for role, side in samples.items():
        for what in ("entered", "left"):
            for row in side[f"largest_{what}"]:
                console.print(
                    f"  {what:7} {role:10} {row['score']:+.3g}  {row['sample_id']}  {escape(_cut(row['prompt']))}",
                    soft_wrap=True,
                )


def _print_figures(figures: Mapping[str, Any], console: Console) -> None:
    for model, entries in figures.items():
        changed = {name: entry for name, entry in entries.items() if entry["before"] != entry["after"]}
        if not changed:
            console.print(f"figures   {model}: {len(entries)} figures, none changed")
            continue
        table = _table(f"figures of the model '{model}' that changed", "before", "after", "difference", "intervals")
        for name, entry in changed.items():
            overlap = {True: "overlap", False: "apart", None: ""}[entry["overlap"]]
            table.add_row(
                FIGURES[name].title,
                _figure(entry["before"]),
                _figure(entry["after"]),
                f"{entry['difference']:+.4g}",
                overlap,
            )
        console.print(table)


def _print_gates(gates: list[Mapping[str, Any]], console: Console) -> None:
    if not gates:
        console.print("gates     the same result and limit as before")
        return
    table = _table("gates that changed", "before", "after")
    for gate in gates:
        table.add_row(gate["name"], _gate(gate["before"]), _gate(gate["after"]))
    console.print(table)


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "not there"
    result = "[green]holds[/]" if gate["passed"] else "[red]does not hold[/]"
    return f"{result}: {number_text(gate['value'])}, limit {number_text(gate['limit'])}"


def _print_prompts(prompts: Mapping[str, Any], console: Console) -> None:
    table = _table("prompts, answered by both corrected models", "prompts", "mended", "broke", "which broke")
    for condition, entry in prompts.items():
        names = entry["broke"][:SHOWN]
        more = len(entry["broke"]) - len(names)
        which = "\n".join([*names, *([f"and {more} more"] if more else [])])
        table.add_row(condition, str(entry["prompts"]), str(len(entry["mended"])), str(len(entry["broke"])), which)
    console.print(table)


def _print_decisions(decisions: list[Mapping[str, Any]], console: Console) -> None:
    if not decisions:
        console.print("decisions none since")
        return
    table = _table("decisions since", "action", "by", "reason")
    for entry in decisions:
        table.add_row(*(escape(str(entry.get(key) or "")) for key in ("time", "action", "actor", "reason")))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", *columns):
        table.add_column(column, overflow="fold" if column else "ellipsis")
    return table


def _figure(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return number_text(value)


def _value(value: Any) -> str:
    return escape("not set" if value is None else str(value))


def _short(version: str | None) -> str:
    return version[:12] if version else "none"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
