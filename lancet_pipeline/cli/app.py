"""The `lancet` command. Heavy libraries are imported by the commands that need them, so that help is instant."""

import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lancet_pipeline.cli.bundles import add_bundle_commands
from lancet_pipeline.cli.options import AsJson, Home, study_name
from lancet_pipeline.cli.promotion import add_commands, print_standing
from lancet_pipeline.config.environment import Deployment, deployment
from lancet_pipeline.errors import InputError, IntegrityError, LancetError
from lancet_pipeline.store.artifacts import open_store

app = typer.Typer(
    help="Trace a language model's undesirable outputs to its training data, and correct the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
judge_app = typer.Typer(help="Judges and their agreement with people.", no_args_is_help=True)
app.add_typer(judge_app, name="judge")
experiment_app = typer.Typer(help="A study with some of its settings varied, over seeds.", no_args_is_help=True)
app.add_typer(experiment_app, name="experiment")

ExperimentName = Annotated[str, typer.Argument(help="Name of an experiment, or path to its YAML file.")]
StudyDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N; the study's compute.device otherwise.")
]


class Kind(StrEnum):
    harmful = "harmful"
    benign = "benign"


@app.command()
def demo(home: Home = None) -> None:
    """Run the embedded study through the whole graph and print what it changed."""
    _run("demo", home, None)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Name of a study, or path to its YAML file.")],
    home: Home = None,
    until: Annotated[str | None, typer.Option(help="Stop after this asset.")] = None,
) -> None:
    """Run what is out of date of a study; nothing where nothing changed."""
    _run(study, home, until)


@app.command()
def plan(
    study: Annotated[str, typer.Argument(help="Name of a study, or path to its YAML file.")],
    hardware: Annotated[str, typer.Option(help="cpu (one thread), a100-80gb, h100-80gb or 8xh100.")] = "cpu",
    samples: Annotated[int | None, typer.Option(help="Training samples, in place of the study's.")] = None,
    parameters: Annotated[int | None, typer.Option(help="Parameters of the model, in place of the study's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Expected time, memory and disk of every asset, before anything runs."""
    from lancet_pipeline.config.study import find_study, load_study
    from lancet_pipeline.scale.hardware import hardware_of
    from lancet_pipeline.scale.planning import plan as expect

    where, machine = _deployment(None), hardware_of(hardware)
    settings = load_study(find_study(study, where.study_directories))
    expected = expect(settings, machine, where.model_directories, samples=samples, parameters=parameters)
    if as_json:
        print(json.dumps(expected, indent=2))
    else:
        from lancet_pipeline.cli.terminal import print_plan

        print_plan(expected, study)


@app.command()
def summary(
    study: Annotated[str, typer.Argument(help="Name of a study, or path to its YAML file.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Figures of the last run of a study."""
    from lancet_pipeline.lineage.results import summarise

    where = _deployment(home)
    figures = summarise(open_store(where), study_name(study))
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print_summary(figures, where)


@app.command()
def trace(
    study: Annotated[str, typer.Argument(help="Name of a study that has been run.")],
    prompt: Annotated[str | None, typer.Option(help="Prompt whose answer is traced.")] = None,
    response: Annotated[str | None, typer.Option(help="Answer to trace; the model's own otherwise.")] = None,
    answer_id: Annotated[str | None, typer.Option("--id", help="Trace an answer that the last run logged.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Samples on each side.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write the trace as an HTML page, too.")] = None,
    device: StudyDevice = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Training samples and tokens behind the base model's answer to a prompt."""
    from lancet_pipeline.config.study import find_study, load_study
    from lancet_pipeline.lineage.tracing import logged_answer, trace_answer

    where = _deployment(home)
    settings = load_study(find_study(study, where.study_directories))
    store = open_store(where)
    if (prompt is None) == (answer_id is None):
        raise InputError("lancet trace: give either --prompt or --id")
    if answer_id is not None:
        prompt, response = logged_answer(store, settings, answer_id)
    assert prompt is not None
    result = trace_answer(store, settings, prompt, response, top, _track(), where.model_directories, device)
    if html is not None:
        from lancet_pipeline.governance.report import render_trace

        html.write_text(render_trace(result), encoding="utf-8")
        print(f"{html}: written; open it in a browser", file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_trace(result)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Directory of any causal language model (safetensors).")],
    prompts: Annotated[Path, typer.Option(help="Parquet or JSON Lines file with a column `prompt`.")],
    kind: Annotated[Kind, typer.Option(help="harmful: share of harmful answers; benign: share of refusals.")],
    judge: Annotated[str, typer.Option(help="string_matching, demo, medical or legal.")] = "string_matching",
    harmful_when: Annotated[str, typer.Option(help="string_matching: affirmative or not_refusal.")] = "affirmative",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Answers of any model to any prompts, judged."""
    from lancet_pipeline.evaluation.standalone import evaluate_model

    result = evaluate_model(model, prompts, kind.value, judge, harmful_when, max_new_tokens, _track(), device)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        from lancet_pipeline.cli.terminal import print_evaluation

        print_evaluation(result)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="Where the safetensors checkpoint goes.")],
) -> None:
    """Turn a quantised GGUF file into a float32 safetensors checkpoint."""
    from lancet_pipeline.models.loading import import_gguf as convert

    convert(file, folder)
    print(f"{folder}: written; use it as model.checkpoint of a study")


@judge_app.command("validate")
def judge_validate(
    labels: Annotated[
        Path,
        typer.Option(help="Completions with human labels: columns response and label, or prompt, response, is_safe."),
    ],
    judge: Annotated[
        str | None, typer.Option(help="A judge that needs no settings; string_matching otherwise.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name or path of a study whose judge is validated.")] = None,
    device: StudyDevice = None,
    as_json: AsJson = False,
) -> None:
    """Agreement of a judge with human labels: of refusals (partial ones apart), or of harm."""
    from lancet_pipeline.config.study import DataSource, find_study, load_study
    from lancet_pipeline.data.readers import read_rows
    from lancet_pipeline.evaluation.judges import named_judge, study_judge
    from lancet_pipeline.evaluation.validation import validate_judge
    from lancet_pipeline.lineage.sources import judge_version
    from lancet_pipeline.models.loading import resolve_device

    if device is not None:
        device = resolve_device(device)  # a wrong name is told also where the judge goes by words and computes nothing
    if judge is not None and study is not None:
        raise InputError("lancet judge validate: give either --judge or --study, whose judge is validated")
    if study is not None:
        where = _deployment(None)
        settings = load_study(find_study(study, where.study_directories))
        judge_version(settings, where.model_directories)  # names what does not fit before any answer is read
        chosen = study_judge(settings, where.model_directories, resolve_device(device or settings.compute.device))
    else:
        chosen = named_judge(judge or "string_matching")
    result = validate_judge(chosen, read_rows(DataSource(path=str(labels))), _track())
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        accuracy = result["accuracy"]
        area = f", AUC {result['auc']:.3f}" if "auc" in result else ""
        print(
            f"agreement on {result['outcome']} {accuracy['value']:.3f} (95 % interval {accuracy['low']:.3f} to "
            f"{accuracy['high']:.3f}, n = {accuracy['n']}), kappa {result['kappa']:.3f}{area}, "
            f"{result['left_out']} rows left out"
        )


@experiment_app.command("run")
def experiment_run(experiment: ExperimentName, home: Home = None) -> None:
    """Run what is out of date of every variant. One that fails does not stop the others; exit code 1 then."""
    from lancet_pipeline.config.experiment import find_experiment, load_experiment
    from lancet_pipeline.orchestration.runs import plan_experiment, run_experiment

    where = _deployment(home)
    found = load_experiment(find_experiment(experiment, where.experiment_directories), where.study_directories)
    plans = plan_experiment(found, where)
    waiting = sum(bool(plan.stale) for plan in plans)
    _tell(
        f"experiment {found.name}: {waiting} of {len(plans)} variants to run, results go to {open_store(where).place}"
    )
    failures = run_experiment(plans, _tell)
    if failures:
        raise LancetError(
            f"experiment {found.name}: {len(failures)} of {len(plans)} variants failed; "
            f"`lancet experiment summary {experiment}` says why, and another run tries them again"
        )
    _tell(f"experiment {found.name}: all variants are done; see `lancet experiment summary {experiment}`")


@experiment_app.command("summary")
def experiment_summary(
    experiment: ExperimentName,
    home: Home = None,
    plots: Annotated[Path | None, typer.Option(help="Write one PNG a factor into this directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Figures at every value of every factor: mean and range over seeds."""
    from lancet_pipeline.config.experiment import find_experiment, load_experiment
    from lancet_pipeline.lineage.experiment_results import FIGURES, summarise_experiment
    from lancet_pipeline.orchestration.runs import variant_versions

    where = _deployment(home)
    found = load_experiment(find_experiment(experiment, where.experiment_directories), where.study_directories)
    result = summarise_experiment(found, open_store(where), variant_versions(found, where))
    if plots is not None:
        from lancet_pipeline.plots import sensitivity

        plots.mkdir(parents=True, exist_ok=True)
        for factor, values in result["factors"].items():
            (plots / f"{factor}.png").write_bytes(sensitivity(factor, values, FIGURES, result["base"]))
        _tell(f"{plots}: {len(result['factors'])} plots written")
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        from lancet_pipeline.cli.terminal import print_experiment

        print_experiment(result, FIGURES)


add_commands(app)
add_bundle_commands(app)


def main() -> None:
    """Entry point: errors of the user's input end with exit code 2 and no traceback."""
    try:
        app()
    except IntegrityError as error:
        _fail(error, 1)
    except LancetError as error:
        _fail(error, error.exit_code)


def _fail(error: Exception, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(code)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _deployment(home: Path | None) -> Deployment:
    return deployment(os.environ, home)


def _run(study: str, home: Path | None, until: str | None) -> None:
    from lancet_pipeline.lineage.results import summarise
    from lancet_pipeline.orchestration.runs import execute, plan_run

    where = _deployment(home)
    plan = plan_run(study, where, until)
    name = plan.study.name
    if plan.stale:
        print(
            f"study {name}: {len(plan.stale)} assets to run, results go to {open_store(where).place}", file=sys.stderr
        )
    else:
        print(f"study {name}: nothing changed, nothing to run", file=sys.stderr)
    execute(plan)
    if until is None:
        _print_summary(summarise(open_store(where), name), where)


def _print_summary(figures: dict[str, Any], where: Deployment) -> None:
    from lancet_pipeline.cli.terminal import print_summary

    print_summary(figures, where)
    if "registered_model" in figures["versions"]:
        print_standing(figures["study"], where)


def _print_trace(result: dict[str, Any]) -> None:
    from lancet_pipeline.cli.terminal import print_trace

    print_trace(result)


def _track() -> Callable:
    from lancet_pipeline.cli.terminal import progress_bar

    return progress_bar
