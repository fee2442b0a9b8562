"""What the commands print for people: tables, progress bars, and what to do next."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.evaluation.figures import measured, number_text
from lancet_pipeline.governance.wording import seconds_text, trace_titles

if TYPE_CHECKING:
    from lancet_pipeline.governance.promotion import Standing
    from lancet_pipeline.store.retention import Unreferenced

T = TypeVar("T")
CONSOLE = Console(highlight=False, soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Sequence[object]], texts: int = 1) -> Table:
    """A table whose first `texts` columns hold texts, and the others numbers. Nothing in it is taken for markup."""
    found = Table(title=Text(title), title_justify="left")
    for place, name in enumerate(columns):
        found.add_column(Text(name), justify="left" if place < texts else "right", overflow="fold")
    for row in rows:
        found.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return found


def show(result: Mapping[str, Any], as_json: bool, table: Callable[[Any], object]) -> None:
    """A command's result: JSON for programs, or what `table` prints of it for people."""
    if as_json:
        print(json.dumps(to_jsonable_python(result, inf_nan_mode="null"), indent=2))
    else:
        table(result)


def tell(line: str) -> None:
    """What a person should know meanwhile, on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_summary(figures: dict[str, Any], where: Deployment) -> None:
    """Before and after, what influence found, and where to look next."""
    models = {"base": figures["base"], "corrected": figures["corrected"], **figures["references"]}
    if all(models.values()):
        rows = [(f.label, *(cell(model[f.name]) for model in models.values())) for f in measured(models)]
        if all("condition" in model for model in models.values()):
            names = {"slope": "slope", "bias": "bias", "auc": "AUC"}
            rows += [(label, *(cell(m["condition"][key]) for m in models.values())) for key, label in names.items()]
        title = f"study {figures['study']}: before and after (95 % Wilson intervals)"
        CONSOLE.print(table(title, ("", *models), rows))
        print(_judge_line(figures["judge"], figures.get("judge_name")))
    if figures["gates"]:
        print_gates(figures["gates"])
    influence, selection = figures["influence"], figures["selection"]
    if influence:
        print(_influence_line(influence))
    if selection:
        print(
            f"selection   {selection['positive']} driving, {selection['negative']} countering, "
            f"{selection['neutral']} indifferent samples"
        )
    if "label_budget" in figures:
        print(_budget_line(figures["label_budget"]))
    print(f"time        {sum(figures['seconds'].values()):.0f} s in {len(figures['seconds'])} assets")
    if bundle := figures["paths"].get("audit_bundle"):
        print(f"report      {bundle}/bundle/report.html\nverify      lancet verify {bundle}/bundle")
    print(f"browse      lancet ui --home {where.home}    (Dagster on port 3000, MLflow on port 5000)")


def print_gates(gates: Sequence[Mapping[str, Any]]) -> None:
    """Which passed, and what stands in the way of promotion."""
    colours = {"passed": "green", "failed": "red"}
    rows = [
        (
            gate["name"],
            Text(gate["outcome"].replace("_", " "), colours.get(gate["outcome"], "yellow")),
            *("" if gate[key] is None else number_text(gate[key]) for key in ("value", "bound", "limit")),
            gate["n"],
        )
        for gate in gates
    ]
    title = "gates: what a correction must be shown to reach (bound: of the one-sided 95 % interval)"
    CONSOLE.print(table(title, ("", "result", "value", "bound", "limit", "n"), rows))


def print_experiment(summary: dict[str, Any], names: Mapping[str, str]) -> None:
    """A table for each factor, means with the range over seeds; `names`: figure -> row. Then what is not there."""
    for factor, values in summary["factors"].items():
        measured = {name: label for name, label in names.items() if any(entry["figures"][name] for entry in values)}
        rows = [(label, *(_spread(entry["figures"][name]) for entry in values)) for name, label in measured.items()]
        counts = [max((spread["n"] for spread in entry["figures"].values() if spread), default=0) for entry in values]
        columns = ("", *(f"{entry['value']}{' *' if entry['own'] else ''}" for entry in values))
        found = table(f"{factor}: mean (range over seeds)", columns, [*rows, ("variants", *counts)])
        found.columns[0].max_width = 12
        CONSOLE.print(found)
    base = ", ".join(f"{names[name]} {_spread(spread)}" for name, spread in summary["base"].items())
    print(f"*           the study's own value\nbase model  {base}")
    for failed in summary["failures"]:
        print(f"failed      {failed['variant']}: {failed['reason']}")
    for name in summary["missing"]:
        print(f"not run     {name}")


def print_plan(expected: dict[str, Any], study: str) -> None:
    """What `scale.planning.plan` says, the command that comes next last."""
    hardware, total, data = expected["hardware"], expected["total"], expected["data"]
    memory = {"device_bytes": "a device", "host_bytes": "host memory", "disk_bytes": "disk"}
    if hardware["device_bytes"] is None:
        del memory["device_bytes"]
    rows = [
        (row["asset"], seconds_text(row["seconds"]), *(decimal(int(row[name])) for name in memory))
        for row in [*expected["assets"], {"asset": "total (memory: the most)", **total}]
    ]
    title = f"study {expected['study']} on {hardware['name']}: expected"
    found = table(title, ("", "time", *memory.values()), rows)
    found.rows[-2].end_section = True
    CONSOLE.print(found)
    parameters, tokens = expected["model"]["parameters"], data["tokens"]
    print(f"model       {parameters:,} parameters; {data['samples']:,} samples of {tokens:.0f} tokens")
    share = max(row["seconds"] for row in expected["assets"]) / total["seconds"]
    print(f"largest     {expected['largest']}, {share:.0%} of the time")
    if expected["median_error"] is not None:
        print(f"error       {expected['median_error']:.0%} in the median of held-out assets; see docs/scaling.md")
    for text in expected["assumed"]:
        print(f"assumed     {text}")
    for limit in expected["limits"]:
        why = f"{', '.join(limit['assets'])}: {escape(limit['why'])}\n            then: {escape(limit['then'])}"
        CONSOLE.print(f"[bold red]limit[/]       {why}")
    print(f"next        lancet run {study}")


def print_trace(trace: dict[str, Any]) -> None:
    """Signed samples with their most telling tokens."""
    CONSOLE.print(
        f"[bold]prompt[/]    {escape(trace['prompt'])}\n"
        f"[bold]response[/]  {escape(trace['response'])}  [dim]({escape(trace['verdict'])})[/]"
    )
    if trace["method"] != "linfac":
        CONSOLE.print(f"[bold]method[/]    {trace['method']}; token shares: not available for {trace['method']}")
    for (side, title), colour in zip(trace_titles(trace["method"]).items(), ("red", "blue"), strict=False):
        found = Table(title=title, title_justify="left", show_lines=True)
        found.add_column("influence", justify="right")
        found.add_column("sample")
        found.add_column("prompt and response; tokens that matter are marked", ratio=1)
        for sample in trace[side]:
            body = Text(sample["prompt"] + "\n", style="dim")
            strongest = max((abs(token["share"]) for token in sample["tokens"]), default=0.0)
            if not sample["tokens"]:
                body.append(sample["response"])
            for token in sample["tokens"]:
                if token["response"]:
                    sign = "red" if token["share"] > 0 else "blue"
                    marked = abs(token["share"]) > 0.25 * strongest
                    body.append(token["token"], style=f"bold underline {sign}" if marked else "")
            found.add_row(f"[{colour}]{sample['score']:+.3g}[/]", f"{sample['sample_id']}\n{sample['source']}", body)
        CONSOLE.print(found)


def print_evaluation(result: dict[str, Any]) -> None:
    name = "harmful answers" if result["kind"] == "harmful" else "refusals of benign prompts"
    print(f"{name}: {cell(result['rate'])}, n = {result['rate']['n']}")
    if "benign_rate" in result:
        print(f"right answers to benign prompts: {cell(result['benign_rate'])}, n = {result['benign_rate']['n']}")
    print("verdicts: " + ", ".join(f"{key} {count}" for key, count in result["verdicts"].items()))


def print_agreement(result: dict[str, Any]) -> None:
    """How far a judge agrees with people."""
    accuracy = result["accuracy"]
    area = f", AUC {result['auc']:.3f}" if "auc" in result else ""
    print(
        f"agreement on {result['outcome']} {accuracy['value']:.3f} (95 % interval {accuracy['low']:.3f} to "
        f"{accuracy['high']:.3f}, n = {accuracy['n']}), kappa {result['kappa']:.3f}{area}, "
        f"{result['left_out']} rows left out"
    )


def print_decisions(study: str, entries: Sequence[Mapping[str, Any]], log: Path) -> None:
    """The entries of a decision log, and where it lies."""
    columns = ("", "time", "action", "version", "by", "reason", "approval until")
    rows = []
    for entry in entries:
        when, until = ((entry[key] or "")[:16].replace("T", " ") for key in ("time", "expires"))
        rows.append(
            (*(entry["sequence"], when), *(entry[key] for key in ("action", "version", "actor", "reason")), until)
        )
    CONSOLE.print(table(f"study {study}: decisions (times in UTC)", columns, rows, texts=len(columns)))
    if entries:
        print(f"log         {log}: {len(entries)} entries, the chain holds")


def print_standing_lines(found: "Standing", gates: Sequence[Mapping[str, Any]] = ()) -> None:
    """Champion, candidate, what does not fit, and the next command, which `gates` of the candidate may rule out."""
    if found.champion is None:
        print("champion    none")
    elif found.approver is None:
        print(f"champion    version {found.champion}, without an approval")
    else:
        held = "until" if found.approved else "NOT approved now; approval until"
        print(f"champion    version {found.champion}, approved by {found.approver}, {held} {found.expires}")
    if found.candidate is not None and found.candidate != found.champion:
        print(f"candidate   version {found.candidate}, waits for `lancet promote`")
    for problem in found.problems:
        print(f"attention   {problem}")
    open_ones = [gate for gate in gates if not gate["passed"]]
    if found.candidate is None or found.candidate == found.champion or not open_ones:
        print(f"next        {found.next_command}")
        return
    told = ", ".join(f"{gate['name']} ({gate['outcome'].replace('_', ' ')})" for gate in open_ones)
    print(f"attention   gates that did not pass: {told}")
    if any(gate["outcome"] == "failed" for gate in open_ones):
        print(f"next        other settings of the correction, then lancet run {found.study}")
    else:
        accepted = "".join(f" --accept {gate['name']}" for gate in open_ones)
        print(f"next        {found.next_command}{accepted}")


def print_unreferenced(items: Sequence["Unreferenced"], place: str) -> None:
    """What nothing refers to: counted by study and kind, then each path."""
    if not items:
        print(f"{place}: everything there is referred to; nothing to remove")
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for item in items:
        groups.setdefault((item.study, item.kind), []).append(item.bytes)
    title = "not referred to by a last run, a registered version or an audit bundle"
    rows = [(*group, len(sizes), decimal(sum(sizes))) for group, sizes in sorted(groups.items())]
    CONSOLE.print(table(title, ("study", "kind", "number", "size"), rows, texts=2))
    for item in items:
        print(f"  {item.path}")
    print(f"together    {len(items)}, {decimal(sum(item.bytes for item in items))}")


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"
    return f"{value:.3f}"


def _spread(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "–"
    text = f"{spread['mean']:.3f}"
    return text if spread["n"] == 1 else f"{text} ({spread['min']:.3f}–{spread['max']:.3f})"


def _judge_line(judge: dict[str, Any] | None, name: str | None) -> str:
    if judge is None and name == "expected":
        return "judge       compares answers with the expected ones: exact"
    if judge is None:
        return "judge       not validated on human labels in this study"
    accuracy = judge["accuracy"]
    return (
        f"judge       agrees with human labels in {accuracy['value']:.3f} of {accuracy['n']} cases "
        f"({accuracy['low']:.3f}–{accuracy['high']:.3f}), kappa {judge['kappa']:.2f}"
    )


def _budget_line(budget: Mapping[str, Mapping[str, int | None]]) -> str:
    """What people had said, and which figures needed it."""
    users: dict[str, list[str]] = {}
    for user, parts in budget.items():
        for what, count in parts.items():
            if count != 0:
                users.setdefault(f"{'?' if count is None else count} {what.replace('_', ' ')}", []).append(user)
    told = (f"{what} for {', '.join(names).replace('_', ' ')}" for what, names in users.items())
    return f"budget      {'; '.join(told) or 'nothing that people said about samples or answers'}"


def _influence_line(influence: dict[str, Any]) -> str:
    line = f"influence   {influence['samples']:.0f} samples in {influence['seconds']:.0f} s"
    if influence["contamination_ap"] is not None:
        line += (
            f"; average precision of the known-harmful ones {influence['contamination_ap']:.2f} "
            f"(their share {influence['contamination_base_rate']:.2f})"
        )
    if influence["word_search_overlap"] is not None:
        line += f"; {influence['word_search_overlap']:.0%} of the driving samples are found by a word search too"
    return line
