"""The commands on single answers and on who judges them: trace, evaluate, judge validate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lancet_pipeline.cli.options import AsJson, Home, StudyDevice, deployed, study_settings
from lancet_pipeline.cli.terminal import print_agreement, print_evaluation, print_trace, show, tell
from lancet_pipeline.errors import InputError
from lancet_pipeline.progress import progress_bar
from lancet_pipeline.store.artifacts import open_store

judge_app = typer.Typer(help="Judges and their agreement with people.", no_args_is_help=True)


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
    from lancet_pipeline.lineage.tracing import logged_answer, trace_answer
    from lancet_pipeline.models.runtime import Runtime

    where = deployed(home)
    settings, store = study_settings(study, where), open_store(where)
    if (prompt is None) == (answer_id is None):
        raise InputError("lancet trace: give either --prompt or --id")
    if answer_id is not None:
        prompt, response = logged_answer(store, settings, answer_id)
    assert prompt is not None
    runtime = Runtime.of(settings, device, where.model_directories, progress_bar)
    result = trace_answer(store, settings, prompt, response, top, runtime)
    if html is not None:
        from lancet_pipeline.governance.report import render_trace

        html.write_text(render_trace(result), encoding="utf-8")
        tell(f"{html}: written; open it in a browser")
    show(result, as_json, print_trace)


def evaluate(
    model: Annotated[Path, typer.Option(help="Directory of any causal language model (safetensors).")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="Parquet or JSON Lines file with a column `prompt`; for the judge expected also `harmful_answer`, `wanted_answer`."
        ),
    ],
    kind: Annotated[
        Literal["harmful", "benign"],
        typer.Option(help="harmful: share of harmful answers; benign: share of refusals."),
    ],
    judge: Annotated[
        str, typer.Option(help="string_matching, expected, bandit, demo, medical or legal.")
    ] = "string_matching",
    harmful_when: Annotated[str, typer.Option(help="string_matching: affirmative or not_refusal.")] = "affirmative",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Answers of any model to any prompts, judged."""
    from lancet_pipeline.evaluation.standalone import evaluate_model
    from lancet_pipeline.models.loading import resolve_device
    from lancet_pipeline.models.runtime import Runtime

    runtime = Runtime(device=resolve_device(device), track=progress_bar)
    result = evaluate_model(model, prompts, kind, judge, harmful_when, max_new_tokens, runtime)
    show(result, as_json, print_evaluation)


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
    from lancet_pipeline.config.study import DataSource
    from lancet_pipeline.data.readers import read_rows
    from lancet_pipeline.evaluation.judges import named_judge, study_judge
    from lancet_pipeline.evaluation.validation import validate_judge
    from lancet_pipeline.lineage.sources import judge_version
    from lancet_pipeline.models.loading import resolve_device
    from lancet_pipeline.models.runtime import Runtime

    if device is not None:
        device = resolve_device(device)  # a wrong name is told also where the judge goes by words and computes nothing
    if judge is not None and study is not None:
        raise InputError("lancet judge validate: give either --judge or --study, whose judge is validated")
    if study is not None:
        where = deployed()
        settings = study_settings(study, where)
        judge_version(settings, where.model_directories)  # names what does not fit before any answer is read
        chosen = study_judge(settings, Runtime.of(settings, device, where.model_directories))
    else:
        chosen = named_judge(judge or "string_matching")
    show(validate_judge(chosen, read_rows(DataSource(path=str(labels))), progress_bar), as_json, print_agreement)
