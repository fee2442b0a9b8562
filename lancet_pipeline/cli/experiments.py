"""The commands of an experiment: experiment run, experiment summary."""

from pathlib import Path
from typing import Annotated

import typer

from lancet_pipeline.cli.options import AsJson, Home, deployed
from lancet_pipeline.cli.terminal import print_experiment, show, tell
from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.config.experiment import Experiment, find_experiment, load_experiment
from lancet_pipeline.errors import LancetError
from lancet_pipeline.store.artifacts import open_store

app = typer.Typer(help="A study with some of its settings varied, over seeds.", no_args_is_help=True)

ExperimentName = Annotated[str, typer.Argument(help="Name of an experiment, or path to its YAML file.")]


@app.command("run")
def experiment_run(experiment: ExperimentName, home: Home = None) -> None:
    """Run what is out of date of every variant. One that fails does not stop the others; exit code 1 then."""
    from lancet_pipeline.lineage.staleness import pending_variants
    from lancet_pipeline.orchestration.runs import run_experiment

    where = deployed(home)
    found = _load(experiment, where)
    runs = pending_variants(found, where)
    waiting = sum(bool(run.stale) for run in runs)
    tell(f"experiment {found.name}: {waiting} of {len(runs)} variants to run, results go to {open_store(where).place}")
    failures = run_experiment(runs, tell)
    if failures:
        raise LancetError(
            f"experiment {found.name}: {len(failures)} of {len(runs)} variants failed; "
            f"`lancet experiment summary {experiment}` says why, and another run tries them again"
        )
    tell(f"experiment {found.name}: all variants are done; see `lancet experiment summary {experiment}`")


@app.command("summary")
def experiment_summary(
    experiment: ExperimentName,
    home: Home = None,
    plots: Annotated[Path | None, typer.Option(help="Write one PNG a factor into this directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Figures at every value of every factor: mean and range over seeds."""
    from lancet_pipeline.lineage.experiment_results import FIGURES, summarise_experiment
    from lancet_pipeline.lineage.staleness import variant_versions

    where = deployed(home)
    found = _load(experiment, where)
    result = summarise_experiment(found, open_store(where), variant_versions(found, where))
    if plots is not None:
        from lancet_pipeline.plots import sensitivity

        plots.mkdir(parents=True, exist_ok=True)
        for factor, values in result["factors"].items():
            (plots / f"{factor}.png").write_bytes(sensitivity(factor, values, FIGURES, result["base"]))
        tell(f"{plots}: {len(result['factors'])} plots written")
    show(result, as_json, lambda result: print_experiment(result, FIGURES))


def _load(experiment: str, where: Deployment) -> Experiment:
    return load_experiment(find_experiment(experiment, where.experiment_directories), where.study_directories)
