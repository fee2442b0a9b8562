"""Where studies and the variants of experiments are found, and the dynamic partitions they make."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from lancet_pipeline.config.experiment import (
    PACKAGED_EXPERIMENTS,
    Experiment,
    experiment_of,
    find_experiment,
    is_variant,
    load_experiment,
)
from lancet_pipeline.config.loading import PACKAGED_STUDIES, find_study, load_study
from lancet_pipeline.config.study import Study

STUDIES = "study"
STUDY_PARTITIONS = dg.DynamicPartitionsDefinition(name=STUDIES)


class StudyCatalog(dg.ConfigurableResource):
    """Studies and variants by name. `files` (name -> path of the study or, for a variant, of its experiment) goes before
    the directories."""

    directories: list[str] = [str(PACKAGED_STUDIES)]
    experiment_directories: list[str] = [str(PACKAGED_EXPERIMENTS)]
    files: dict[str, str] = {}

    def load(self, name: str) -> Study:
        """The validated study behind a partition key; InputError where there is none or it does not fit."""
        given = self.files.get(name)
        if is_variant(name):
            found = Path(given) if given else find_experiment(experiment_of(name), _paths(self.experiment_directories))
            return self._experiment(found).study(name)
        return load_study(self.path(name))

    def path(self, name: str) -> Path:
        """The file of a study. Raises InputError where there is none."""
        given = self.files.get(name)
        return Path(given) if given else find_study(name, _paths(self.directories))

    def names(self) -> list[str]:
        """Studies, without variants."""
        given = {name for name in self.files if not is_variant(name)}
        return sorted({path.stem for folder in _paths(self.directories) for path in folder.glob("*.yaml")} | given)

    def variants(self) -> list[str]:
        """The variants of every experiment in the experiment directories. Raises InputError for a file that does not fit."""
        directories = _paths(self.experiment_directories)
        names = sorted({path.stem for folder in directories for path in folder.glob("*.yaml")})
        experiments = [self._experiment(find_experiment(name, directories)) for name in names]
        return [variant.name for experiment in experiments for variant in experiment.variants]

    def _experiment(self, path: Path) -> Experiment:
        return load_experiment(path, _paths(self.directories))


def _paths(directories: Sequence[str]) -> list[Path]:
    return [Path(directory) for directory in directories]
