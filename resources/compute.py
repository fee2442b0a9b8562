"""The device, the threads and the engine that a study runs on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import torch
from transformers.utils import logging

from lancet_pipeline.config.study import Study
from lancet_pipeline.models.engine import InProcess
from lancet_pipeline.models.runtime import Runtime, in_process
from lancet_pipeline.progress import Track, no_progress


class Compute(dg.ConfigurableResource):
    """`device` overrides the study's where given."""

    device: str | None = None

    def runtime(self, study: Study, model_directories: Sequence[Path] = (), track: Track = no_progress) -> Runtime:
        """What `study` runs on; sets threads and the seed of anything that draws without a generator of its own.

        Raises:
            InputError: nothing can be computed on its device here.
        """
        logging.disable_progress_bar()  # the stages report their own progress
        if study.compute.threads:
            torch.set_num_threads(study.compute.threads)
        torch.manual_seed(study.seed)
        here = Runtime.of(study, self.device, model_directories, track)
        if study.compute.engine == "in_process":
            return here
        from lancet_pipeline.scale.ray_engine import RayEngine

        device = self.device or study.compute.device
        return replace(
            here,
            engine=lambda model: RayEngine(Path(model.name_or_path), study.model.dtype, device, study.compute),
            ranks=partial(_on_workers, study, device),
        )


def _on_workers(study: Study, device: str, work: Callable[[Runtime], Any], runtime: Runtime) -> Any:
    """Call `work` on every worker of the study's Ray cluster, which keeps what it needs beside the checkpoint meanwhile."""
    from lancet_pipeline.scale.ray_train import on_workers

    assert runtime.checkpoint is not None
    plain = replace(runtime, track=no_progress, engine=InProcess, ranks=in_process)  # the others do not travel
    return on_workers(
        partial(_as_worker, work, plain), study.compute, runtime.checkpoint.parent, device=device, track=runtime.track
    )


def _as_worker(work: Callable[[Runtime], Any], runtime: Runtime, *, device: str, track: Track) -> Any:
    return work(replace(runtime, device=device, track=track))
