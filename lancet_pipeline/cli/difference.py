"""What changed between two corrections, as people read it in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from lancet_pipeline.cli.terminal import CONSOLE, cell, table
from lancet_pipeline.evaluation.figures import FIGURES, number_text

SHOWN = 10


def print_difference(found: Mapping[str, Any], console: Console = CONSOLE) -> None:
    """`found` as `governance.difference.compare_bundles` returns it. Undesirable text is not shown, prompts in short."""

    def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], otherwise: str = "") -> None:
        console.print(table(title, ("", *columns), rows, texts=len(columns) + 1) if rows else otherwise)

    before, after = found["before"], found["after"]
    for side, head in (("before", before), ("after", after)):
        console.print(
            f"[bold]{side:7}[/] {escape(head['path'])}: study {escape(head['study'])}, corrected model "
            f"{_short(head['corrected_model'])}, signed with {_short(head['fingerprint'])}",
            soft_wrap=True,
        )
    if before["study"] != after["study"]:
        console.print("[yellow]two different studies: versions differ by their settings as well as their data[/]")
    if before["fingerprint"] != after["fingerprint"]:
        console.print("[yellow]signed with two different keys: see that you know both[/]")
    changed = [(one["name"], one["before"], one["after"], "its content") for one in found["sources"]]
    changed += [(one["name"], one["before"], one["after"], "\n".join(_why(one))) for one in found["stages"]]
    show(
        "sources and stages that changed",
        ("before", "after", "why"),
        [(name, _short(old), _short(new), why) for name, old, new, why in changed],
        "versions  every source and stage is the same",
    )
    names = {"driving": "driving (D+)", "countering": "countering (D-)"}
    sides = found["samples"].items()
    counts = [(names[role], len(side["entered"]), len(side["left"]), side["stayed"]) for role, side in sides]
    show("selected training samples", ("entered", "left", "stayed"), counts)
    for role, side in sides:
        for what in ("entered", "left"):
            for row in side[f"largest_{what}"]:
                line = f"  {what:7} {role:10} {row['score']:+.3g}  {row['sample_id']}  {_cut(row['prompt'])}"
                console.print(Text(line), soft_wrap=True)
    for model, entries in found["figures"].items():
        show(
            f"figures of the model '{model}' that changed",
            ("before", "after", "difference", "intervals"),
            [_figure_row(name, entry) for name, entry in entries.items() if entry["before"] != entry["after"]],
            f"figures   {model}: {len(entries)} figures, none changed",
        )
    gates = [(gate["name"], _gate(gate["before"]), _gate(gate["after"])) for gate in found["gates"]]
    show("gates that changed", ("before", "after"), gates, "gates     the same result and limit as before")
    show(
        "prompts, answered by both corrected models",
        ("prompts", "mended", "broke", "which broke"),
        [
            (condition, entry["prompts"], len(entry["mended"]), len(entry["broke"]), _first(entry["broke"]))
            for condition, entry in found["prompts"].items()
        ],
    )
    decisions = [
        [entry.get(key) or "" for key in ("time", "action", "actor", "reason")] for entry in found["decisions"]
    ]
    show("decisions since", ("action", "by", "reason"), decisions, "decisions none since")


def _why(stage: Mapping[str, Any]) -> Iterator[str]:
    if stage["settings"] is None:
        yield "in one of the two only"
        return
    for name, (old, new) in stage["settings"].items():
        yield f"{name}: {_value(old)} -> {_value(new)}"
    if stage["code_version"]:
        yield "code version: {} -> {}".format(*stage["code_version"])
    if stage["inputs"]:
        yield f"inputs: {', '.join(stage['inputs'])}"
    for name, (old, new) in stage["environment"].items():
        yield f"{name} {_value(old)} -> {_value(new)}"
    if stage["before"] == stage["after"]:
        yield "(same version: computed in another environment)"


def _figure_row(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    overlap = {True: "overlap", False: "apart", None: ""}[entry["overlap"]]
    before, after = (cell(entry[side]) for side in ("before", "after"))
    return FIGURES[name].title, before, after, f"{entry['difference']:+.4g}", overlap


def _gate(gate: Mapping[str, Any] | None) -> Text:
    if gate is None:
        return Text("not there")
    outcome = (gate.get("outcome") or ("passed" if gate["passed"] else "failed")).replace("_", " ")
    colour = "green" if gate["passed"] else "red"
    return Text.from_markup(f"[{colour}]{outcome}[/]: {number_text(gate['value'])}, limit {number_text(gate['limit'])}")


def _first(names: Sequence[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return "\n".join([*names[:SHOWN], *more])


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)


def _short(version: str | None) -> str:
    return version[:12] if version else "none"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
