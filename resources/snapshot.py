"""What one run computes: the study and the versions of everything, read once and then held."""

from contextlib import ExitStack

import dagster as dg
from pydantic import PrivateAttr

from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.changes import known_versions
from lancet_pipeline.resources.places import ModelSource, Store
from lancet_pipeline.resources.studies import StudyCatalog

WAIT_SECONDS = 60.0
"""A run of the daemon waits so long for a command that is about to end."""


class RunSnapshot(dg.ConfigurableResource):
    """Lives as long as a run, and holds its study's lock so long. All assets of the run are of the same study and data, even
    where a file changes meanwhile; an asset that then reads other content fails, and the change gets a run of its own."""

    catalog: dg.ResourceDependency[StudyCatalog]
    models: dg.ResourceDependency[ModelSource]
    store: dg.ResourceDependency[Store]
    _read: dict[str, tuple[Study, dict[str, str]]] = PrivateAttr(default_factory=dict)
    _held: ExitStack = PrivateAttr(default_factory=ExitStack)

    def of(self, partition: str) -> tuple[Study, dict[str, str]]:
        """A study and the versions of its sources and assets.

        Raises:
            InputError: they do not fit, or another run on the study is going on.
        """
        if partition not in self._read:
            study = self.catalog.load(partition)
            self._held.enter_context(self.store.open().lock(study.name, wait=WAIT_SECONDS))
            self._read[partition] = study, known_versions(study, self.models.paths())
        return self._read[partition]

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        self._held.close()
