"""Where studies are found, and the dynamic partitions they make."""

from pathlib import Path

import dagster as dg

from lancet_pipeline.study import PACKAGED_STUDIES, Study, find_study, load_study

STUDY_PARTITIONS = dg.DynamicPartitionsDefinition(name="study")


class StudyCatalog(dg.ConfigurableResource):
    """Studies by name. `files` (name -> path) goes before `directories`."""

    directories: list[str] = [str(PACKAGED_STUDIES)]
    files: dict[str, str] = {}

    def load(self, name: str) -> Study:
        """The validated study behind a partition key; InputError where there is none or it does not fit."""
        if name in self.files:
            return load_study(Path(self.files[name]))
        return load_study(find_study(name, [Path(directory) for directory in self.directories]))

    def names(self) -> list[str]:
        found = {path.stem for directory in self.directories for path in Path(directory).glob("*.yaml")}
        return sorted(found | set(self.files))
