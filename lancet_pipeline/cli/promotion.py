"""Commands for the person responsible for a model: promote, rollback, decisions, gc."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lancet_pipeline.cli.options import AsJson, Home, study_name
from lancet_pipeline.config.environment import Deployment, deployment
from lancet_pipeline.errors import InputError
from lancet_pipeline.store.artifacts import open_store

if TYPE_CHECKING:
    from lancet_pipeline.governance.promotion import Standing
    from lancet_pipeline.tracking.client import Tracking

StudyName = Annotated[str, typer.Argument(help="Name of a study, or path to its YAML file.")]
Approver = Annotated[str, typer.Option(help="The person who decides.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the decision log.")]


def add_commands(app: typer.Typer) -> None:
    for command in (promote, rollback, decisions, gc):
        app.command()(command)


def promote(
    study: StudyName,
    approver: Approver,
    reason: Reason,
    version: Annotated[
        int | None, typer.Option(min=1, help="A version of the registry; the candidate otherwise.")
    ] = None,
    valid_days: Annotated[
        int | None, typer.Option(min=1, help="Days that the approval holds; governance.approval_days otherwise.")
    ] = None,
    home: Home = None,
) -> None:
    """Make the candidate of a study its champion, where every gate and check holds."""
    from lancet_pipeline.config.loading import find_study, load_study
    from lancet_pipeline.governance import promotion
    from lancet_pipeline.governance.signature import own_trust

    where = deployment(os.environ, home)
    settings = load_study(find_study(study, where.study_directories))
    entry = promotion.promote(
        where.home,
        _tracking(where),
        settings.name,
        approver=approver,
        reason=reason,
        version=version,
        valid_days=valid_days or settings.governance.approval_days,
        trust=own_trust(where.signing),
        artifacts=where.artifacts,
    )
    print(
        f"study {settings.name}: version {entry['version']} is champion, approved by {entry['actor']} until "
        f"{entry['expires']}\nreason      {entry['reason']}\nnext        lancet decisions {settings.name}"
    )


def rollback(
    study: StudyName,
    approver: Approver,
    reason: Reason,
    version: Annotated[
        int | None, typer.Option(min=1, help="A version that was approved; the champion before this one otherwise.")
    ] = None,
    home: Home = None,
) -> None:
    """Go back to the champion before this one, or to a version that was approved."""
    from lancet_pipeline.governance import promotion

    where = deployment(os.environ, home)
    name = study_name(study)
    entry = promotion.rollback(where.home, _tracking(where), name, approver=approver, reason=reason, version=version)
    print(
        f"study {name}: version {entry['version']} is champion again, its approval holds until {entry['expires']}\n"
        f"next        lancet decisions {name}"
    )


def decisions(study: StudyName, home: Home = None, as_json: AsJson = False) -> None:
    """The decision log of a study, its chain verified, and who is champion."""
    from lancet_pipeline.governance.decisions import decision_file, read_decisions
    from lancet_pipeline.governance.promotion import standing

    where = deployment(os.environ, home)
    name = study_name(study)
    found = standing(where.home, _tracking(where), name)
    entries = read_decisions(where.home, name)
    if as_json:
        print(json.dumps({**asdict(found), "decisions": entries}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"study {name}: decisions (times in UTC)", title_justify="left")
    for column in ("", "time", "action", "version", "by", "reason", "approval until"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        when, until = (_minute(entry[key]) for key in ("time", "expires"))
        shown = (entry["sequence"], when, entry["action"], entry["version"], entry["actor"], entry["reason"], until)
        table.add_row(*(Text(str(value)) for value in shown))
    console.print(table)
    if entries:
        print(f"log         {decision_file(where.home, name)}: {len(entries)} entries, the chain holds")
    for line in standing_lines(found):
        print(line)
    print(f"next        {found.next_command}")


def gc(
    home: Home = None,
    as_json: AsJson = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed; without it, nothing is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
) -> None:
    """List, and delete when asked to, what no last run, registered version or audit bundle refers to."""
    from lancet_pipeline.store.retention import find_unreferenced, journal_bytes, remove

    where = deployment(os.environ, home)
    tracking = _tracking(where)

    def registry(study: str) -> list[Mapping[str, str]]:
        return [version.artifacts for version in tracking.registered(study)]

    found = find_unreferenced(where.home, registry, artifacts=where.artifacts)
    journal = journal_bytes(where.home)
    size = sum(item.bytes for item in found.items)
    if not as_json:
        _print_unreferenced(found.items, open_store(where).place)
        for study in found.locked:
            print(f"skipped     study {study}: a run is going on")
        print(
            f"journal     {_mebibytes(journal)} in {where.home / 'journal'}; it only saves time, and may be removed by hand"
        )
        print("mlflow      runs and models that were deleted in MLflow are removed by `mlflow gc`")
    removed = 0
    if delete and found.items:
        if not yes:
            if not sys.stdin.isatty():
                raise InputError("lancet gc --delete: nobody to ask; add --yes to delete without a question")
            typer.confirm(f"Delete {len(found.items)} of these, {_mebibytes(size)}?", abort=True, err=True)
        removed = remove(where.home, found.items, registry, where.artifacts)
    if as_json:
        items = [{**asdict(item), "path": str(item.path)} for item in found.items]
        report = {"unreferenced": items, "bytes": size, "locked": found.locked, "journal_bytes": journal}
        print(json.dumps({**report, "removed": removed}, indent=2))
    elif removed:
        print(f"removed     {removed} of {len(found.items)}")
    elif found.items:
        home_option = f" --home {home}" if home else ""
        print(f"next        lancet gc --delete{home_option}")


def standing_lines(found: "Standing") -> list[str]:
    """Champion, candidate and what does not fit, as the terminal shows them."""
    lines = []
    if found.champion is None:
        lines.append("champion    none")
    elif found.approver is None:
        lines.append(f"champion    version {found.champion}, without an approval")
    else:
        held = "until" if found.approved else "NOT approved now; approval until"
        lines.append(f"champion    version {found.champion}, approved by {found.approver}, {held} {found.expires}")
    if found.candidate is not None and found.candidate != found.champion:
        lines.append(f"candidate   version {found.candidate}, waits for `lancet promote`")
    return lines + [f"attention   {problem}" for problem in found.problems]


def print_standing(study: str, where: Deployment) -> None:
    """Champion, candidate and the next command of a study that has been registered; a note where MLflow is lost."""
    from lancet_pipeline.errors import LancetError
    from lancet_pipeline.governance.promotion import standing

    try:
        found = standing(where.home, _tracking(where), study)
    except LancetError as error:  # the figures are there all the same
        print(f"registry    not known: {error}")
        return
    if found.candidate is not None or found.champion is not None:
        for line in standing_lines(found):
            print(line)
        print(f"next        {found.next_command}")


def _print_unreferenced(items: Sequence[Any], place: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not items:
        print(f"{place}: everything there is referred to; nothing to remove")
        return
    groups: dict[tuple[str, str], list[Any]] = {}
    for item in items:
        groups.setdefault((item.study, item.kind), []).append(item)
    table = Table(title="not referred to by a last run, a registered version or an audit bundle", title_justify="left")
    for column in ("study", "kind"):
        table.add_column(column)
    for column in ("number", "size"):
        table.add_column(column, justify="right")
    for (study, kind), members in sorted(groups.items()):
        table.add_row(Text(study), kind, str(len(members)), _mebibytes(sum(item.bytes for item in members)))
    Console(highlight=False, soft_wrap=True).print(table)
    for item in items:
        print(f"  {item.path}")
    print(f"together    {len(items)}, {_mebibytes(sum(item.bytes for item in items))}")


def _minute(time: str | None) -> str:
    return time[:16].replace("T", " ") if time else ""


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _tracking(where: Deployment) -> "Tracking":
    from lancet_pipeline.tracking.client import Tracking

    return Tracking(home=str(where.home), uri=where.tracking_uri)
