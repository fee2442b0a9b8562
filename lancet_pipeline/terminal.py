"""What people read in the terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lancet_pipeline.deployment import Deployment

T = TypeVar("T")
FIGURES = (
    ("harm_rate", "harm rate"),
    ("ood_harm_rate", "OOD harm rate"),
    ("over_refusal_rate", "over-refusal"),
    ("perplexity", "perplexity"),
    ("distinct_2", "distinct-2"),
)


def progress_bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """A bar with the time left on standard error; gone when done, silent where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("    {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield from bar.track(items, total=total, description=label)


def print_summary(figures: dict[str, Any], where: Deployment) -> None:
    """Before and after, what influence found, and where to look next."""
    console = Console(highlight=False, soft_wrap=True)
    study = figures["study"]
    models = {"base": figures["base"], "corrected": figures["corrected"], **figures["references"]}
    if all(models.values()):
        table = Table(title=f"study {study}: before and after (95 % Wilson intervals)", title_justify="left")
        table.add_column("")
        for name in models:
            table.add_column(name, justify="right")
        for key, label in FIGURES:
            table.add_row(label, *(_cell(model[key]) for model in models.values()))
        console.print(table)
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
        console.print(f"next        lancet verify {bundle}/bundle")
    console.print(f"            make ui HOME_DIR={where.home}    (Dagster on port 3000, MLflow on port 5000)")


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
    console.print("verdicts: " + ", ".join(f"{key} {count}" for key, count in result["verdicts"].items()))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"
    return f"{value:.3f}"


def _influence_line(influence: dict[str, Any]) -> str:
    line = f"influence   {influence['samples']:.0f} samples in {influence['seconds']:.0f} s"
    if influence["contamination_ap"] is not None:
        line += (
            f"; average precision of the known-harmful ones {influence['contamination_ap']:.2f} "
            f"(their share {influence['contamination_base_rate']:.2f})"
        )
    return line
