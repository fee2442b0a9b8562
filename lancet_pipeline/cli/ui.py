"""Dagster's and MLflow's pages, and Dagster's daemon, on the results below a home, side by side until interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.errors import LancetError
from lancet_pipeline.orchestration.runs import dagster_home
from lancet_pipeline.orchestration.servers import check_servers


def main(
    home: Annotated[Path | None, typer.Option(help="Where results live; LANCET_HOME or .lancet otherwise.")] = None,
    dagster_port: int = 3000,
    mlflow_port: int = 5000,
) -> None:
    """Start both servers, and Dagster's daemon, on the loopback interface; Ctrl-C or SIGTERM stops them all."""
    where = deployment(os.environ, home)
    check_servers(where)
    (where.home / "mlflow").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "LANCET_HOME": str(where.home),
        "LANCET_PAGE": where.page or f"http://127.0.0.1:{dagster_port}",
        "DAGSTER_HOME": str(dagster_home(where)),
        "DO_NOT_TRACK": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
    }
    tracking = where.tracking_uri or f"sqlite:///{where.home / 'mlflow' / 'mlflow.db'}"
    served = where.tracking_uri.startswith(("http://", "https://"))  # somebody runs that server
    commands = {
        f"Dagster  http://127.0.0.1:{dagster_port}": [
            *("dagster", "dev", "-m", "lancet_pipeline.definitions", "-h", "127.0.0.1", "-p", str(dagster_port)),
        ],
    }
    if not served:
        commands[f"MLflow   http://127.0.0.1:{mlflow_port}"] = [
            *("mlflow", "server", "--backend-store-uri", tracking, "--host", "127.0.0.1", "--port", str(mlflow_port)),
            *("--workers", "1"),
        ]
    else:
        print(f"MLflow   {where.tracking_uri}", flush=True)
    bin_folder = Path(sys.executable).parent
    servers = []
    # SIGINT, too: a shell makes what it starts in the background ignore it, the servers included, which end their own by it.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    for label, (program, *arguments) in commands.items():
        servers.append(subprocess.Popen([str(bin_folder / program), *arguments], env=environment))
        print(label, flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=60)


if __name__ == "__main__":
    try:
        typer.run(main)
    except LancetError as error:
        raise SystemExit(f"error: {error}") from None
