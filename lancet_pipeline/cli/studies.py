"""The commands of a study: demo, run, plan, summary, advise."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lancet_pipeline.cli.options import AsJson, Home, StudyName, deployed, study_name, study_settings
from lancet_pipeline.cli.promotion import print_standing
from lancet_pipeline.cli.terminal import print_plan, print_summary, show, tell
from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.store.artifacts import open_store


def demo(home: Home = None) -> None:
    """Run the embedded study through the whole graph and print what it changed."""
    run("demo", home)


def run(
    study: StudyName,
    home: Home = None,
    until: Annotated[str | None, typer.Option(help="Stop after this asset.")] = None,
) -> None:
    """Run what is out of date of a study; nothing where nothing changed."""
    from lancet_pipeline.lineage.results import summarise
    from lancet_pipeline.lineage.sources import too_few_prompts
    from lancet_pipeline.lineage.staleness import pending_run
    from lancet_pipeline.orchestration.runs import execute

    where = deployed(home)
    pending = pending_run(study, where, until)
    name, store = pending.study.name, open_store(where)
    for doubt in too_few_prompts(pending.study) if pending.stale and until is None else ():
        tell(f"study {name}: {doubt}")
    if pending.stale:
        tell(f"study {name}: {len(pending.stale)} assets to run, results go to {store.place}")
    else:
        tell(f"study {name}: nothing changed, nothing to run")
    execute(pending)
    if until is None:
        _print_summary(summarise(store, name), where)
        print(f"advise      lancet advise {_called(study, home)}    (other ways, what they cost and do)")


def plan(
    study: StudyName,
    hardware: Annotated[str, typer.Option(help="cpu (one thread), a100-80gb, h100-80gb or 8xh100.")] = "cpu",
    samples: Annotated[int | None, typer.Option(help="Training samples, in place of the study's.")] = None,
    parameters: Annotated[int | None, typer.Option(help="Parameters of the model, in place of the study's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Expected time, memory and disk of every asset, before anything runs."""
    from lancet_pipeline.scale.hardware import hardware_of
    from lancet_pipeline.scale.planning import plan as expect

    where, machine = deployed(), hardware_of(hardware)
    settings = study_settings(study, where)
    expected = expect(settings, machine, where.model_directories, samples=samples, parameters=parameters)
    show(expected, as_json, lambda result: print_plan(result, study))


def summary(study: StudyName, home: Home = None, as_json: AsJson = False) -> None:
    """Figures of the last run of a study."""
    from lancet_pipeline.lineage.results import summarise

    where = deployed(home)
    figures = summarise(open_store(where), study_name(study))
    show(figures, as_json, lambda result: _print_summary(result, where))


def advise(study: StudyName, home: Home = None, as_json: AsJson = False) -> None:
    """What is at hand against the harm: correct, filter, relabel, drop a source; the cost and effect of each, and the best."""
    from lancet_pipeline.cli.advice import print_advice
    from lancet_pipeline.governance.advice import study_advice

    where = deployed(home)
    advice = study_advice(
        study_settings(study, where), open_store(where), where.model_directories, _called(study, home)
    )
    show(advice, as_json, print_advice)


def _print_summary(figures: dict[str, Any], where: Deployment) -> None:
    print_summary(figures, where)
    if "registered_model" in figures["versions"]:
        print_standing(figures["study"], where, figures["gates"] or ())


def _called(study: str, home: Path | None) -> str:
    """What follows the name of a command on this study."""
    return f"{study} --home {home}" if home else study
