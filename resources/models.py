"""Where checkpoints come from: local directories first, then the hub."""

from pathlib import Path
from typing import Any

import dagster as dg

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.tokenization import load_tokenizer
from lancet_pipeline.models.loading import find_checkpoint


class ModelSource(dg.ConfigurableResource):
    """`directories` are searched for a checkpoint's last name part before the hub is asked."""

    directories: list[str] = []

    def paths(self) -> list[Path]:
        return [Path(directory) for directory in self.directories]

    def tokenizer(self, study: Study) -> Any:
        assert study.model.checkpoint is not None
        return load_tokenizer(find_checkpoint(study.model.checkpoint, self.paths()), study.model.revision)

    def checkpoint(self, study: Study) -> str | None:
        """Directory or hub name of the model that a study begins with; None where it begins with none."""
        return study.model.checkpoint and find_checkpoint(study.model.checkpoint, self.paths())
