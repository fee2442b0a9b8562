"""Where checkpoints come from: local directories first, then the hub."""

from pathlib import Path

import dagster as dg


class ModelSource(dg.ConfigurableResource):
    """`directories` are searched for a checkpoint's last name part before the hub is asked."""

    directories: list[str] = []

    def paths(self) -> list[Path]:
        return [Path(directory) for directory in self.directories]
