"""The artifact store as a Dagster resource."""

import dagster as dg

from lancet_pipeline.artifacts import ArtifactStore


class Store(dg.ConfigurableResource):
    """`home` is LANCET_HOME: artifacts, MLflow and Dagster storage live below it."""

    home: str = ".lancet"

    def open(self) -> ArtifactStore:
        return ArtifactStore(self.home)
