"""What the commands print for people: tables, progress bars, and what to do next."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.evaluation.figures import measured

if TYPE_CHECKING:
    from lancet_pipeline.governance.promotion import Standing
    from lancet_pipeline.store.retention import Unreferenced

T = TypeVar("T")


def show(result: Mapping[str, Any], as_json: bool, table: Callable[[Any], object]) -> None:
    """A command's result: JSON for programs, or what `table` prints of it for people."""
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        table(result)


def tell(line: str) -> None:
    """What a person should know meanwhile, on standard error."""
    print(line, file=sys.stderr, flush=True)


def progress_bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """A bar with the time left on standard error; gone when done, silent where nobody watches."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    texts = (TextColumn("    {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    columns = (*texts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield from bar.track(items, total=total, description=label)


def print_summary(figures: dict[str, Any], where: Deployment) -> None:
    """Before and after, what influence found, and where to look next."""
    console = _console()
    study = figures["study"]
    models = {"base": figures["base"], "corrected": figures["corrected"], **figures["references"]}
    if all(models.values()):
        table = _table(f"study {study}: before and after (95 % Wilson intervals)", [""], models)
        for figure in measured(models):
            table.add_row(figure.label, *(_cell(model[figure.name]) for model in models.values()))
        console.print(table)
        console.print(_judge_line(figures["judge"], figures.get("judge_name")))
    influence, selection = figures["influence"], figures["selection"]
    if influence:
        console.print(_influence_line(influence))
    if selection:
        console.print(
            f"selection   {selection['positive']} driving, {selection['negative']} countering, "
            f"{selection['neutral']} indifferent samples"
        )
    console.print(f"time        {sum(figures['seconds'].values()):.0f} s in {len(figures['seconds'])} assets")
    bundle = figures["paths"].get("audit_bundle")
    if bundle:
        console.print(f"report      {bundle}/bundle/report.html")
        console.print(f"verify      lancet verify {bundle}/bundle")
    console.print(f"browse      lancet ui --home {where.home}    (Dagster on port 3000, MLflow on port 5000)")


def print_experiment(summary: dict[str, Any], names: Mapping[str, str]) -> None:
    """A table for each factor, means with the range over seeds; `names`: figure -> row. Then what is not there."""
    console = _console()
    for factor, values in summary["factors"].items():
        table = Table(title=f"{factor}: mean (range over seeds)", title_justify="left")
        table.add_column("", max_width=12)
        for entry in values:
            table.add_column(
                escape(f"{entry['value']}{' *' if entry['own'] else ''}"), justify="right", overflow="fold"
            )
        for name, label in names.items():
            table.add_row(label, *(_spread(entry["figures"][name]) for entry in values))
        counts = [max((spread["n"] for spread in entry["figures"].values() if spread), default=0) for entry in values]
        table.add_row("variants", *map(str, counts))
        console.print(table)
    base = ", ".join(f"{names[name]} {_spread(spread)}" for name, spread in summary["base"].items())
    console.print(f"*           the study's own value\nbase model  {base}")
    for failed in summary["failures"]:
        console.print(f"failed      {failed['variant']}: {escape(failed['reason'])}")
    for name in summary["missing"]:
        console.print(f"not run     {name}")


def print_plan(expected: dict[str, Any], study: str) -> None:
    """What `scale.planning.plan` says, the command that comes next last."""
    console = _console()
    hardware, total, data = expected["hardware"], expected["total"], expected["data"]
    on_device = hardware["device_bytes"] is not None
    numbers = ("time", *(("a device",) if on_device else ()), "host memory", "disk")
    table = _table(f"study {expected['study']} on {hardware['name']}: expected", [""], numbers)
    for row in [*expected["assets"], {"asset": "total (memory: the most)", **total}]:
        table.add_row(
            row["asset"],
            _duration(row["seconds"]),
            *((_size(row["device_bytes"]),) if on_device else ()),
            _size(row["host_bytes"]),
            _size(row["disk_bytes"]),
            end_section=row is expected["assets"][-1],
        )
    console.print(table)
    console.print(
        f"model       {expected['model']['parameters']:,} parameters; {data['samples']:,} samples of {data['tokens']:.0f} tokens"
    )
    share = max(row["seconds"] for row in expected["assets"]) / total["seconds"]
    console.print(f"largest     {expected['largest']}, {share:.0%} of the time")
    if expected["median_error"] is not None:
        console.print(
            f"error       {expected['median_error']:.0%} in the median of held-out assets; see docs/scaling.md"
        )
    for text in expected["assumed"]:
        console.print(f"assumed     {escape(text)}")
    for limit in expected["limits"]:
        console.print(
            f"[bold red]limit[/]       {', '.join(limit['assets'])}: {escape(limit['why'])}\n            then: {escape(limit['then'])}"
        )
    console.print(f"next        lancet run {escape(study)}")


def print_trace(trace: dict[str, Any]) -> None:
    """Signed samples with their most telling tokens."""
    console = Console(highlight=False)
    console.print(
        f"[bold]prompt[/]    {escape(trace['prompt'])}\n"
        f"[bold]response[/]  {escape(trace['response'])}  [dim]({escape(trace['verdict'])})[/]"
    )
    for side, colour, text in (
        ("driving", "red", "made this answer more likely"),
        ("countering", "blue", "made this answer less likely"),
    ):
        table = Table(title=f"training samples that {text}", title_justify="left", show_lines=True)
        table.add_column("influence", justify="right")
        table.add_column("sample")
        table.add_column("prompt and response; tokens that matter are marked", ratio=1)
        for sample in trace[side]:
            body = Text(sample["prompt"] + "\n", style="dim")
            strongest = max((abs(token["share"]) for token in sample["tokens"]), default=0.0)
            for token in sample["tokens"]:
                marked = token["response"] and abs(token["share"]) > 0.25 * strongest
                sign = "red" if token["share"] > 0 else "blue"
                if token["response"]:
                    body.append(token["token"], style=f"bold underline {sign}" if marked else "")
            table.add_row(f"[{colour}]{sample['score']:+.3g}[/]", f"{sample['sample_id']}\n{sample['source']}", body)
        console.print(table)


def print_evaluation(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    name = "harmful answers" if result["kind"] == "harmful" else "refusals of benign prompts"
    console.print(f"{name}: {_cell(result['rate'])}, n = {result['rate']['n']}")
    if "benign_rate" in result:
        console.print(
            f"right answers to benign prompts: {_cell(result['benign_rate'])}, n = {result['benign_rate']['n']}"
        )
    console.print("verdicts: " + ", ".join(f"{key} {count}" for key, count in result["verdicts"].items()))


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
    table = _table(f"study {study}: decisions (times in UTC)")
    for column in ("", "time", "action", "version", "by", "reason", "approval until"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        when, until = ((entry[key] or "")[:16].replace("T", " ") for key in ("time", "expires"))
        shown = (entry["sequence"], when, entry["action"], entry["version"], entry["actor"], entry["reason"], until)
        table.add_row(*(Text(str(value)) for value in shown))
    _console().print(table)
    if entries:
        print(f"log         {log}: {len(entries)} entries, the chain holds")


def print_standing_lines(found: "Standing") -> None:
    """Champion, candidate, what does not fit, and the next command."""
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
    print(f"next        {found.next_command}")


def print_unreferenced(items: Sequence["Unreferenced"], place: str) -> None:
    """What nothing refers to: counted by study and kind, then each path."""
    if not items:
        print(f"{place}: everything there is referred to; nothing to remove")
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for item in items:
        groups.setdefault((item.study, item.kind), []).append(item.bytes)
    title = "not referred to by a last run, a registered version or an audit bundle"
    table = _table(title, ("study", "kind"), ("number", "size"))
    for (study, kind), sizes in sorted(groups.items()):
        table.add_row(Text(study), kind, str(len(sizes)), mebibytes(sum(sizes)))
    _console().print(table)
    for item in items:
        print(f"  {item.path}")
    print(f"together    {len(items)}, {mebibytes(sum(item.bytes for item in items))}")


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _table(title: str, texts: Iterable[str] = (), numbers: Iterable[str] = ()) -> Table:
    """A table whose columns hold texts, and then numbers."""
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"
    return f"{value:.3f}"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (2 * 31_557_600, 86_400, "d")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 31_557_600:,.1f} years"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


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


def _influence_line(influence: dict[str, Any]) -> str:
    line = f"influence   {influence['samples']:.0f} samples in {influence['seconds']:.0f} s"
    if influence["contamination_ap"] is not None:
        line += (
            f"; average precision of the known-harmful ones {influence['contamination_ap']:.2f} "
            f"(their share {influence['contamination_base_rate']:.2f})"
        )
    return line
