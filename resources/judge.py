"""The judge of a study as a Dagster resource."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from lancet_pipeline.config.study import Study
from lancet_pipeline.evaluation.judges import Judge, study_judge


class JudgeSource(dg.ConfigurableResource):
    def make(self, study: Study, device: str, model_directories: Sequence[Path]) -> Judge:
        return study_judge(study, model_directories, device)
