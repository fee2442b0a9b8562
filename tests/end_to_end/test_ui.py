"""The pages of Dagster and MLflow end with the command that started them, however that was started."""

import os
import signal
import sys
import time

import psutil
import pytest
from command import environment
from conftest import write_tiny_study
from servers import free_port, start

pytestmark = pytest.mark.slow

# What a shell without job control does to the jobs that it starts in the background.
IGNORING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def session(leader: int) -> list[psutil.Process]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_servers_started_where_sigint_is_ignored_end_whole(tmp_path):
    write_tiny_study(tmp_path / "studies")
    port = free_port()
    ui = [sys.executable, "-m", "lancet_pipeline.cli", "ui", "--home", tmp_path / "home"]
    ports = ["--dagster-port", port, "--mlflow-port", free_port()]
    settings = environment(LANCET_STUDIES=str(tmp_path / "studies"))
    command = [sys.executable, "-c", IGNORING, *ui, *ports]
    server = start(command, settings, f"http://127.0.0.1:{port}", "/server_info", tmp_path / "log")
    leader = server.process.pid
    try:
        assert len(session(leader)) > 3
        for asking in (signal.SIGTERM, signal.SIGHUP):  # a shell that ends may ask twice
            server.process.send_signal(asking)
            time.sleep(0.2)
        assert server.process.wait(timeout=50) == 0
        assert [" ".join(process.cmdline()) for process in session(leader)] == []
        assert "Traceback" not in server.log.read_text()
    finally:
        for process in session(leader):
            process.kill()
