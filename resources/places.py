"""Where things are, as Dagster resources: artifacts, checkpoints, the tracking server."""

from pathlib import Path

import dagster as dg

from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import Tracking


class Store(dg.ConfigurableResource):
    """`home` is LANCET_HOME: artifacts, MLflow and Dagster storage live below it. With `artifacts`, the URL of LANCET_ARTIFACTS,
    the artifacts live below that."""

    home: str = ".lancet"
    artifacts: str = ""

    def open(self) -> ArtifactStore:
        return ArtifactStore(self.home, self.artifacts)


class ModelSource(dg.ConfigurableResource):
    """`directories` are searched for a checkpoint's last name part before the hub is asked."""

    directories: list[str] = []

    def paths(self) -> list[Path]:
        return [Path(directory) for directory in self.directories]


class TrackingServer(dg.ConfigurableResource):
    """`uri` is a tracking server or database; a SQLite file below `home` where empty."""

    home: str = ".lancet"
    uri: str = ""

    def open(self) -> Tracking:
        return Tracking(self.home, self.uri)
