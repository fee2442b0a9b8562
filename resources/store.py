"""The artifact store as a Dagster resource."""

import dagster as dg

from lancet_pipeline.store.artifacts import ArtifactStore


class Store(dg.ConfigurableResource):
    """`home` is LANCET_HOME: artifacts, MLflow and Dagster storage live below it. With `artifacts`, the URL of LANCET_ARTIFACTS,
    the artifacts live below that."""

    home: str = ".lancet"
    artifacts: str = ""

    def open(self) -> ArtifactStore:
        return ArtifactStore(self.home, self.artifacts)
