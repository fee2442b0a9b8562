"""Training on a Ray cluster (Ray Train): a function of the method runs on every worker, the workers being the ranks of one
process group.

A function of the method trains with `models.training.train` or `correction.correct`, which take their share of every batch
and shard the model (`models.distributed`). It reads and writes folders, which every node must see under the same path.
Where a worker dies, Ray Train starts all of them again, and training goes on from its last checkpoint.
"""

import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.errors import InputError, LancetError, error_named
from lancet_pipeline.models import distributed
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.scale.cluster import connect, on_gpu, worker_device, workers

R = TypeVar("R")
MAX_FAILURES = 3
"""How often the workers are started again after one of them died."""
_PROGRESS, _ERROR = "progress.json", "error-{}.json"
_SECONDS = 0.5
_SECONDS_FOR_OTHERS = 5.0


def on_workers(
    function: Callable[..., R],
    settings: ComputeSettings,
    folder: Path,
    *,
    device: str = "auto",
    track: Track = no_progress,
) -> R:
    """Call `function(device=..., track=...)` on every worker; returns what rank 0 returns.

    Args:
        settings: which cluster, and how many workers: one for each GPU or core of the cluster where it does not say.
        folder: where the run keeps what it writes for itself, gone at the end; all nodes share it.
        device: auto, cpu or cuda. The function is told to load models on the host, since `distributed.shard` moves shards to
            a worker's GPU; with one worker, which shards nothing, it is told the GPU.

    Raises:
        LancetError: what a worker raised, as it was; or a worker died more often than `MAX_FAILURES` times.
        InputError: no Ray, no cluster, or a node that does not see `folder`.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    ray = connect(settings)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    device = worker_device(ray, device)
    folder.mkdir(parents=True, exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix=".ray-train-", dir=folder.absolute()))
    trainer = TorchTrainer(
        _work,
        train_loop_config={"function": function, "run": run, "threads": settings.threads or 1},
        scaling_config=ScalingConfig(num_workers=workers(ray, settings, device), use_gpu=on_gpu(device)),
        run_config=RunConfig(
            name="state", storage_path=str(run), failure_config=FailureConfig(max_failures=MAX_FAILURES)
        ),
    )
    try:
        running = _started(trainer.fit)
        try:
            _follow(run / _PROGRESS, running, track)
        except BaseException:  # an interruption above all
            ray.shutdown()  # which ends the workers
            raise
        return _result(running, run)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _work(config: Mapping[str, Any]) -> Any:
    """What every worker does."""
    import torch
    from ray.train.torch import get_device

    run: Path = config["run"]
    if not run.is_dir():
        raise InputError(f"{run}: a Ray worker does not see it; put --home on a file system that all nodes share")
    if distributed.agreed(_errors(run) != []):
        return None  # an earlier try ended so, and this one would too
    torch.set_num_threads(config["threads"])
    own = get_device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    track = _reporting(run / _PROGRESS) if distributed.first() else no_progress
    try:
        return config["function"](device=str(own) if distributed.ranks() == 1 else "cpu", track=track)
    except LancetError as error:
        rank = torch.distributed.get_rank()
        _write(run / _ERROR.format(rank), {"kind": type(error).__name__, "message": str(error)})
        if _all_failed(run, distributed.ranks()):
            return None
        raise  # has Ray end the others, which wait for this one


def _result(running: "Future[Any]", run: Path) -> Any:
    failure = running.exception()
    for file in _errors(run):
        error = json.loads(file.read_text())
        raise error_named(error["kind"], error["message"])
    if failure is not None:
        raise _cause(failure)
    return running.result().return_value


def _cause(failure: BaseException) -> BaseException:
    """What a worker raised, in place of what Ray made of it."""
    from ray.exceptions import RayError

    for error in getattr(failure, "worker_failures", {}).values():
        seen = getattr(error, "_base_exc", error)
        if isinstance(seen, RayError):
            return LancetError(
                f"training: a Ray worker died, and again at each of {MAX_FAILURES} further tries; see the memory of its "
                "node and Ray's log there"
            )
        return seen
    return failure


def _errors(run: Path) -> list[Path]:
    return sorted(run.glob(_ERROR.format("*")))


def _all_failed(run: Path, ranks: int) -> bool:
    """Whether every rank has an error of ours, as those have that come of the data or the settings."""
    until = time.monotonic() + _SECONDS_FOR_OTHERS
    while len(_errors(run)) < ranks and time.monotonic() < until:
        time.sleep(_SECONDS / 10)
    return len(_errors(run)) == ranks


def _started(function: Callable[[], Any]) -> "Future[Any]":
    """The outcome of `function`, which runs in a thread, so that Ray leaves this process's signal handlers alone."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _reporting(file: Path) -> Track:
    """Writes how far rank 0 is into `file`, at most every half second."""

    def track(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        report = {"pass": uuid.uuid4().hex, "label": label, "total": total}
        _write(file, {**report, "done": 0})
        reported = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - reported > _SECONDS or done == total:
                _write(file, {**report, "done": done})
                reported = time.monotonic()

    return track


def _follow(file: Path, running: "Future[Any]", track: Track) -> None:
    """Hand on to `track` what `_reporting` writes; workers that were started again begin a pass of their own."""
    current = None
    while not running.done():
        report = _read(file)
        if report is None or report["pass"] == current:
            wait([running], timeout=_SECONDS)
            continue
        current = report["pass"]
        for _ in track(_steps(file, running, report), report["total"], report["label"]):
            pass


def _steps(file: Path, running: "Future[Any]", begun: Mapping[str, Any]) -> Iterator[None]:
    passed = 0
    while passed < begun["total"]:
        over = running.done()
        report = _read(file)
        if report is None or report["pass"] != begun["pass"]:
            return
        yield from [None] * (report["done"] - passed)
        passed = report["done"]
        if over:
            return
        wait([running], timeout=_SECONDS)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def _write(file: Path, value: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value))
    temporary.replace(file)
