"""An experiment: one study with some settings varied over seeds, read from `experiments/*.yaml`.

Its units of work are variants. A variant is a study and a partition of its own. Its name holds `=`, which the name of no study
file can hold, so sensors and schedules can tell variants from studies.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lancet_pipeline.config.loading import find_settings, find_study, load_study, read_mapping, study_of, validated
from lancet_pipeline.config.study import Seed, Settings, Study
from lancet_pipeline.errors import InputError

PACKAGED_EXPERIMENTS = (Path(__file__).parents[1] / "experiments").resolve()

_NOT_FACTORS = {"name": "a variant is named after its settings", "seed": "list seeds under `seeds`"}
_LONGEST_NAME = 180


class ExperimentSettings(Settings):
    """What an experiment file holds. Settings of the study are given as dotted paths, such as pareto.alpha."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(-[a-z0-9_]+)*$", max_length=63)]
    description: str = ""
    study: str = Field(description="Name of a study, or path to its file, relative to the experiment file.")
    seeds: Annotated[list[Seed], Field(min_length=1)]
    design: Literal["one_at_a_time", "grid"] = Field(
        default="one_at_a_time", description="Each factor alone, the others as in the study; or all combinations."
    )
    fix: dict[str, Any] = Field(default={}, description="Settings that differ from the study's in every variant.")
    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Factors and their values."
    )


@dataclass(frozen=True)
class Variant:
    """A study derived from an experiment's. changes: factor -> value, of those that differ from the study's own."""

    name: str
    changes: Mapping[str, Any]
    study: Study


@dataclass(frozen=True)
class Experiment:
    """A valid experiment. base: the study that is varied. factors: factor -> its values, JSON-ready. variants: by seed,
    so that a model is trained once and then used by all variants of its seed."""

    settings: ExperimentSettings
    path: Path
    base: Study
    factors: Mapping[str, Sequence[Any]]
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    def own_value(self, factor: str) -> Any:
        """The value that the study itself has."""
        return _value_at(self.base, factor)

    def variants_at(self, factor: str, value: Any) -> list[Variant]:
        """The variants that tell about one value: one a seed, or a seed and combination of the other factors."""
        alone = self.settings.design == "one_at_a_time"
        own = self.own_value(factor)
        return [
            variant
            for variant in self.variants
            if variant.changes.get(factor, own) == value and not (alone and variant.changes.keys() - {factor})
        ]

    def study(self, variant: str) -> Study:
        """The study of a variant, by name. Raises InputError where the experiment has no such variant."""
        found = next((known.study for known in self.variants if known.name == variant), None)
        if found is None:
            raise InputError(f"{self.path}: has no variant {variant}; it was renamed, or its value or seed removed")
        return found


def is_variant(study: str) -> bool:
    """Whether a study name is that of a variant."""
    return "=" in study


def experiment_of(variant: str) -> str:
    """Name of the experiment that a variant belongs to."""
    return variant.partition("--")[0]


def find_experiment(name_or_path: str, directories: Sequence[Path]) -> Path:
    """The file of an experiment, given by path or by name. Raises InputError where there is none."""
    return find_settings("experiment", "experiments", name_or_path, directories)


def load_experiment(path: Path, study_directories: Sequence[Path]) -> Experiment:
    """Read and validate an experiment file and every variant it makes.

    Raises:
        InputError: the first problem, as `file: vary: setting = value: what must hold`.
    """
    settings = validated(ExperimentSettings, read_mapping(path), str(path))
    if settings.name != path.stem:
        raise InputError(f"{path}: name = {settings.name}: must be {path.stem}, as the file is found by it")
    _refuse_repeats(path, "seeds", settings.seeds)
    for section, named in (("fix", settings.fix), ("vary", settings.vary)):
        for factor in named.keys() & _NOT_FACTORS.keys():
            raise InputError(f"{path}: {section}.{factor}: cannot be set here; {_NOT_FACTORS[factor]}")
    for factor in settings.fix.keys() & settings.vary.keys():
        raise InputError(f"{path}: {factor}: stands in both fix and vary; remove one")
    relative = settings.study.endswith((".yaml", ".yml")) or os.sep in settings.study
    given = str(path.parent / Path(settings.study).expanduser()) if relative else settings.study
    try:
        found = find_study(given, study_directories)
    except InputError as error:
        raise InputError(f"{path}: study: {error}") from None
    base = _changed(load_study(found), settings.fix, f"{path}: fix", path.parent)
    factors = {
        factor: [_value_at(_changed(base, {factor: v}, f"{path}: vary", path.parent), factor) for v in values]
        for factor, values in settings.vary.items()
    }
    for factor, values in factors.items():
        _refuse_repeats(path, f"vary.{factor}", values)
    variants = [
        _variant(settings.name, base, point, seed, path)
        for seed in settings.seeds
        for point in _points(factors, settings.design)
    ]
    different = {variant.name: variant for variant in variants}
    return Experiment(settings, path, base, factors, tuple(different.values()))


def _points(factors: Mapping[str, Sequence[Any]], design: str) -> list[dict[str, Any]]:
    """What each variant sets, seeds aside."""
    if design == "grid":
        return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    return [{factor: value} for factor, values in factors.items() for value in values]


def _variant(experiment: str, base: Study, point: Mapping[str, Any], seed: int, path: Path) -> Variant:
    """The variant at a point; the study's own values are no changes, so all factors share the one without any."""
    changes = {factor: value for factor, value in point.items() if value != _value_at(base, factor)}
    study = _changed(base, {**changes, "seed": seed}, f"{path}: vary", path.parent)
    name = "--".join([experiment, *(f"{factor}={_slug(value)}" for factor, value in changes.items()), f"seed={seed}"])
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 10]}--{_digest(name)}"
    return Variant(name, changes, study.model_copy(update={"name": name, "schedule": None}))


def _changed(study: Study, changes: Mapping[str, Any], place: str, folder: Path) -> Study:
    """A study with other values at dotted paths. Raises InputError where a path or a value does not fit."""
    tree = study.model_dump(mode="json")
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        node = tree
        for section in sections:
            node[section] = node[section] if isinstance(node.get(section), dict) else {}
            node = node[section]
        node[last] = deepcopy(value)
    return study_of(tree, place, folder)


def _value_at(study: Study, dotted: str) -> Any:
    """The JSON-ready value at a dotted path; None below a section that the study leaves out."""
    value: Any = study.model_dump(mode="json")
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _slug(value: Any) -> str:
    """A value as it stands in names of partitions and folders; a digest keeps apart what reads alike."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True).removesuffix(".0")
    safe = re.sub(r"[^a-z0-9.+-]+", "-", text.lower())[:40]
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _refuse_repeats(path: Path, field: str, values: Sequence[Any]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise InputError(f"{path}: {field}: {json.dumps(value)} stands twice; remove one")
