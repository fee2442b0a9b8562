"""Dagster's and MLflow's pages, and Dagster's daemon, on the results below a home, side by side until interrupted."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.orchestration.instance import dagster_home
from lancet_pipeline.orchestration.servers import check_servers

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(where: Deployment, dagster_port: int, mlflow_port: int) -> None:
    """Start both servers, and Dagster's daemon, on the loopback interface; SIGINT or SIGTERM stops them all.

    Raises:
        LancetError: a server that the deployment names cannot be used.
    """
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
    commands = {
        f"Dagster  http://127.0.0.1:{dagster_port}": [
            *("dagster", "dev", "-m", "lancet_pipeline.definitions", "-h", "127.0.0.1", "-p", str(dagster_port)),
        ],
    }
    if where.tracking_uri.startswith(("http://", "https://")):  # somebody runs that server
        print(f"MLflow   {where.tracking_uri}", flush=True)
    else:
        commands[f"MLflow   http://127.0.0.1:{mlflow_port}"] = [
            *("mlflow", "server", "--backend-store-uri", tracking, "--host", "127.0.0.1", "--port", str(mlflow_port)),
            *("--workers", "1"),
        ]
    bin_folder = Path(sys.executable).parent
    servers = []
    # A background job of a script ignores SIGINT, and so would all that it starts, which Dagster interrupts to end it. A
    # handler is not inherited.
    for stopping in _STOPPING:
        if stopping != signal.SIGHUP or signal.getsignal(stopping) != signal.SIG_IGN:  # nohup outlives the terminal
            signal.signal(stopping, _interrupt)
    try:
        for label, (program, *arguments) in commands.items():
            server = subprocess.Popen([str(bin_folder / program), *arguments], env=environment, process_group=0)
            servers.append(server)
            print(label, flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        _stop(servers)


def _interrupt(*_: object) -> None:
    for stopping in _STOPPING:  # asked again while servers end, it would leave some behind
        signal.signal(stopping, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop(servers: list[subprocess.Popen]) -> None:
    """End the process group of every server: its first process is asked, then the others, then all are killed."""
    for server in servers:
        server.terminate()
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=30)
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(server.pid, signal.SIGTERM)
            for _ in range(50):
                os.killpg(server.pid, 0)
                time.sleep(0.1)
            os.killpg(server.pid, signal.SIGKILL)
