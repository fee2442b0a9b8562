"""The device, the threads and the engine that a study runs on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from lancet_pipeline.config.study import Study
from lancet_pipeline.linfac.engine import Engine, InProcess
from lancet_pipeline.models.loading import resolve_device
from lancet_pipeline.progress import Track

R = TypeVar("R")


class Compute(dg.ConfigurableResource):
    """`device` overrides the study's where given."""

    device: str | None = None

    def prepare(self, study: Study) -> str:
        """Set threads and the seed of anything that draws without a generator of its own; returns the device.

        Raises:
            InputError: nothing can be computed on that device here.
        """
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # the stages report their own progress
        if study.compute.threads:
            torch.set_num_threads(study.compute.threads)
        torch.manual_seed(study.seed)
        return resolve_device(self.device or study.compute.device)

    def engine(self, study: Study, model: Any, folder: Path) -> Engine:
        """Where passes of `model`, which is stored in `folder`, over the data of a study run."""
        if study.compute.engine == "in_process":
            return InProcess(model)
        from lancet_pipeline.scale.ray_engine import RayEngine

        return RayEngine(folder, study.model.dtype, self.device or study.compute.device, study.compute)

    def train(self, study: Study, work: Callable[..., R], device: str, folder: Path, track: Track) -> R:
        """Call `work(device=..., track=...)`, which trains a model: in this process, or on every worker of the study's Ray
        cluster, which keeps what it needs in `folder` meanwhile."""
        if study.compute.engine == "in_process":
            return work(device=device, track=track)
        from lancet_pipeline.scale.ray_train import on_workers

        return on_workers(work, study.compute, folder, device=self.device or study.compute.device, track=track)
