"""The device and the threads that a study runs on."""

import dagster as dg

from lancet_pipeline.study import Study


class Compute(dg.ConfigurableResource):
    """In-process computation. `device` overrides the study's where given."""

    device: str | None = None

    def prepare(self, study: Study) -> str:
        """Set threads and the seed of anything that draws without a generator of its own; returns the device."""
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # the stages report their own progress
        if study.compute.threads:
            torch.set_num_threads(study.compute.threads)
        torch.manual_seed(study.seed)
        wanted = self.device or study.compute.device
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return wanted
