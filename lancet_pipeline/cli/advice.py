"""The ways that are at hand for a study, as people read them in the terminal."""

from collections.abc import Mapping
from typing import Any

from lancet_pipeline.cli.terminal import CONSOLE, table
from lancet_pipeline.evaluation.figures import rate_text
from lancet_pipeline.governance.advice import ARMS, TITLES, fall_text
from lancet_pipeline.governance.wording import seconds_text


def print_advice(found: Mapping[str, Any]) -> None:
    """`found` as `governance.advice.advise` returns it: the table, what is missing, where figures come from, the verdict and
    the next command."""
    ways = {way["name"]: way for way in found["ways"]}
    rows = []
    for name, way in ways.items():
        effect, seconds = way["effect"], way["processor_seconds"]
        fall = fall_text(*(effect[key] for key in ("value", "low", "high"))) if effect else "–"
        basis = ", ".join(filter(None, (effect and effect["from"], way["gates"] and f"gates {way['gates']}")))
        cost = "–" if seconds is None else seconds_text(seconds)
        rows.append((TITLES[name], "yes" if way["at_hand"] else "no", way["people"], basis or "–", fall, cost))
    columns = ("", "at hand", "of people", "from", "harm falls by", "processor time")
    CONSOLE.print(table(f"study {found['study']}: what is at hand", columns, rows, texts=4))
    if found["base_harm_rate"]:
        print(f"harm        {rate_text(found['base_harm_rate'])} of the base model's answers")
    print(f"before      {seconds_text(found['finding_processor_seconds'])} to find D+, which every way needs")
    for name, way in ways.items():
        if not way["at_hand"]:
            print(f"missing     {TITLES[name]}: {way['missing']}")
    bases = {name: way["effect"]["from"] for name, way in ways.items() if way["effect"]}
    for arm in {ARMS[name]["command"]: ARMS[name] for name, basis in bases.items() if basis == "arms"}.values():
        print(f"arms        measured on the study {arm['study']}: {arm['command']}")
    if "field" in bases.values():
        print("field       of another model and data: arXiv 2602.11079")
    print(f"verdict     {found['why']}")
    print(f"next        {ways[found['best'] or 'ibo']['how']}")
