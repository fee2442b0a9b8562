"""The difference between two corrections, as people read it in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lancet_pipeline.governance.wording import NUMBERS, RATES, number_text

_SHOWN = 10


def print_difference(found: Mapping[str, Any], console: Console | None = None) -> None:
    """`found` as `difference.compare_bundles` returns it. Undesirable text is not shown, prompts in short."""
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
    _versions(found, console)
    _samples(found["samples"], console)
    _figures(found["figures"], console)
    _gates(found["gates"], console)
    _prompts(found["prompts"], console)
    _decisions(found["decisions"], console)


def _versions(found: Mapping[str, Any], console: Console) -> None:
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


def _samples(samples: Mapping[str, Any], console: Console) -> None:
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


def _figures(figures: Mapping[str, Any], console: Console) -> None:
    titles = {**RATES, **NUMBERS}
    for model, entries in figures.items():
        changed = {name: entry for name, entry in entries.items() if entry["before"] != entry["after"]}
        if not changed:
            console.print(f"figures   {model}: {len(entries)} figures, none changed")
            continue
        table = _table(f"figures of the model '{model}' that changed", "before", "after", "difference", "intervals")
        for name, entry in changed.items():
            overlap = {True: "overlap", False: "apart", None: ""}[entry["overlap"]]
            table.add_row(
                titles[name], _figure(entry["before"]), _figure(entry["after"]), f"{entry['difference']:+.4g}", overlap
            )
        console.print(table)


def _gates(gates: list[Mapping[str, Any]], console: Console) -> None:
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


def _prompts(prompts: Mapping[str, Any], console: Console) -> None:
    table = _table("prompts, answered by both corrected models", "prompts", "mended", "broke", "which broke")
    for condition, entry in prompts.items():
        names = entry["broke"][:_SHOWN]
        more = len(entry["broke"]) - len(names)
        which = "\n".join([*names, *([f"and {more} more"] if more else [])])
        table.add_row(condition, str(entry["prompts"]), str(len(entry["mended"])), str(len(entry["broke"])), which)
    console.print(table)


def _decisions(decisions: list[Mapping[str, Any]], console: Console) -> None:
    if not decisions:
        console.print("decisions none since")
        return
    table = _table("decisions since", "action", "by", "reason")
    for entry in decisions:
        table.add_row(*(escape(str(entry.get(key) or "")) for key in ("time", "action", "actor", "reason")))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, overflow="fold")
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
