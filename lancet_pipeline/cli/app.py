"""The `lancet` command. Heavy libraries are imported by the commands that need them, so that help is instant."""

import sys

import typer

from lancet_pipeline.cli import answers, bundles, deployment, experiments, promotion, studies
from lancet_pipeline.errors import LancetError

COMMANDS = (
    *(studies.demo, studies.run, studies.plan, studies.summary, studies.advise),
    *(answers.trace, answers.evaluate),
    deployment.import_gguf,
    *(promotion.promote, promotion.rollback, promotion.decisions),
    deployment.gc,
    *(bundles.verify, bundles.bundle, bundles.diff),
    deployment.ui,
)
GROUPS = {"judge": answers.judge_app, "experiment": experiments.app, "keys": bundles.keys_app}

app = typer.Typer(
    help="Trace a language model's undesirable outputs to its training data, and correct the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in COMMANDS:
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point: an error that a user can act on ends with its exit code (2: the input) and no traceback."""
    try:
        app()
    except LancetError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
