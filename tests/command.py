"""The `lancet` command in this process, which has imported already what a new one takes most of its time to import."""

import io
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from lancet_pipeline.cli import main

OF_DEPLOYMENTS = ("AWS_", "MLFLOW_", "LANCET_", "PG")


@dataclass(frozen=True)
class Done:
    """What subprocess.run tells of a command."""

    returncode: int
    stdout: str
    stderr: str


def environment(**values: str) -> dict[str, str]:
    """The process's own, without settings of any deployment but those given."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OF_DEPLOYMENTS)}
    return {**own, **values}


def lancet(
    *arguments: object, code: int | None = 0, settings: Mapping[str, str] | None = None, folder: Path | None = None
) -> Done:
    """Run the command as a shell would; an error that would be a traceback there is raised.

    Args:
        code: what it must end with; None where the caller looks.
        settings: environment variables of the deployment.
        folder: the working directory.
    """
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        if folder is not None:
            patch.chdir(folder)
        patch.setattr(sys, "argv", ["lancet", *map(str, arguments)])
        try:
            set_environment(environment(**(settings or {})))
            with pytest.raises(SystemExit) as end:
                main()
        finally:
            set_environment(before)
    ended = end.value.code or 0
    assert isinstance(ended, int)
    done = Done(ended, out.getvalue(), err.getvalue())
    assert code in (None, ended), done.stdout + done.stderr
    return done


def set_environment(values: Mapping[str, str]) -> None:
    """Make these the variables of this process, and MLflow as in a new one, which keeps its address beside them."""
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(values)


@contextmanager
def held_elsewhere(home: Path, study: str) -> Iterator[None]:
    """A run on a study going on in another process."""
    code = (
        "import sys; from pathlib import Path; from lancet_pipeline.store.locks import study_lock\n"
        "with study_lock(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(home), study]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()


def copy_run(study: Path, home: Path, target: Path) -> tuple[Path, Path]:
    """A study and the home of its run below `target`; MLflow keeps the files of the copy's runs in the copy."""
    shutil.copytree(study.parent, target / "study")
    shutil.copytree(home, target / "home")
    with closing(sqlite3.connect(target / "home" / "mlflow" / "mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(home), str(target / "home"))
            )
    return target / "study" / study.name, target / "home"
