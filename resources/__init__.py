"""Dagster resources: the only code that knows where things are."""

from lancet_pipeline.resources.alerts import Alerts
from lancet_pipeline.resources.compute import Compute
from lancet_pipeline.resources.places import ModelSource, Store, TrackingServer
from lancet_pipeline.resources.snapshot import RunSnapshot
from lancet_pipeline.resources.studies import StudyCatalog

__all__ = ["Alerts", "Compute", "ModelSource", "RunSnapshot", "Store", "StudyCatalog", "TrackingServer"]
