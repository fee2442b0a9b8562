"""Commands for the person responsible for a model: promote, rollback, decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from lancet_pipeline.cli.options import AsJson, Home, StudyName, deployed, study_name, study_settings, tracking_of
from lancet_pipeline.cli.terminal import print_decisions, print_standing_lines, show
from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.errors import LancetError

Approver = Annotated[str, typer.Option(help="The person who decides.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the decision log.")]


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
    accept: Annotated[
        list[str] | None,
        typer.Option(help="A gate that was not shown or not measured, and that you accept; may be given again."),
    ] = None,
    home: Home = None,
) -> None:
    """Make the candidate of a study its champion, where every gate and check holds."""
    from lancet_pipeline.governance import promotion
    from lancet_pipeline.governance.signature import own_trust

    where = deployed(home)
    settings = study_settings(study, where)
    days, trust = valid_days or settings.governance.approval_days, own_trust(where.signing)
    request, name = promotion.Request(approver, reason, version, accept or ()), settings.name
    entry = promotion.promote(where.home, tracking_of(where), name, request, days, trust, where.artifacts)
    print(
        f"study {name}: version {entry['version']} is champion, approved by {entry['actor']} until "
        f"{entry['expires']}\nreason      {entry['reason']}\nnext        lancet decisions {name}"
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

    where, name = deployed(home), study_name(study)
    entry = promotion.rollback(where.home, tracking_of(where), name, promotion.Request(approver, reason, version))
    print(
        f"study {name}: version {entry['version']} is champion again, its approval holds until {entry['expires']}\n"
        f"next        lancet decisions {name}"
    )


def decisions(study: StudyName, home: Home = None, as_json: AsJson = False) -> None:
    """The decision log of a study, its chain verified, and who is champion."""
    from lancet_pipeline.governance.decisions import decision_file, read_decisions
    from lancet_pipeline.governance.promotion import standing

    where, name = deployed(home), study_name(study)
    found = standing(where.home, tracking_of(where), name)
    entries = read_decisions(where.home, name)

    def table(_: object) -> None:
        print_decisions(name, entries, decision_file(where.home, name))
        print_standing_lines(found)

    show({**asdict(found), "decisions": entries}, as_json, table)


def print_standing(study: str, where: Deployment, gates: Sequence[Mapping[str, Any]] = ()) -> None:
    """Champion, candidate and the next command of a study that has been registered, and what of `gates` stands in its way; a
    note where MLflow is lost."""
    from lancet_pipeline.governance.promotion import standing

    try:
        found = standing(where.home, tracking_of(where), study)
    except LancetError as error:  # the figures are there all the same
        print(f"registry    not known: {error}")
        return
    if found.candidate is not None or found.champion is not None:
        print_standing_lines(found, gates)
