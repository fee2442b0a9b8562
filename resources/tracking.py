"""The MLflow tracking server or database as a Dagster resource."""

import dagster as dg

from lancet_pipeline.tracking.client import Tracking


class TrackingServer(dg.ConfigurableResource):
    """`uri` is a tracking server or database; a SQLite file below `home` where empty."""

    home: str = ".lancet"
    uri: str = ""

    def open(self) -> Tracking:
        return Tracking(self.home, self.uri)
