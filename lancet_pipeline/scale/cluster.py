"""The Ray cluster that a study's `compute` names, or one on this machine."""

import logging
import os
import socket
from typing import Any

from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.errors import InputError, Unreachable, first_line

SECONDS_TO_ANSWER = 10.0


def connect(settings: ComputeSettings) -> Any:
    """The module `ray`, connected; a cluster that this process is connected to already is kept.

    Raises:
        InputError: Ray is not installed.
        Unreachable: no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError:
        raise InputError("compute.engine: ray: Ray is not installed; pip install 'lancet-pipeline[scale]'") from None
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is None:
        # A cluster that lives as long as this process; its workers do not yield to other processes of the machine.
        ray.init(address="local", num_cpus=settings.workers, _system_config={"worker_niceness": 0}, **quiet)
        return ray
    try:
        _require_answer(settings.address)
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreachable(
            f"compute.address: no Ray cluster at {settings.address} ({first_line(error)}); is it started?"
        ) from error
    return ray


def _require_answer(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself would go on asking for minutes."""
    host, separator, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()


def worker_device(ray: Any, device: str) -> str:
    """The device of every worker; Ray shows each worker its own GPU as the only one."""
    if device == "auto":
        return "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return "cuda" if on_gpu(device) else device


def workers(ray: Any, settings: ComputeSettings, device: str) -> int:
    """How many workers a pass gets: those the study asks for, else one for each core, or GPU, of the cluster."""
    return settings.workers or max(1, int(ray.cluster_resources().get("GPU" if on_gpu(device) else "CPU", 1)))


def on_gpu(device: str) -> bool:
    return device.startswith("cuda")
