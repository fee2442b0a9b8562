"""YAML files of settings: found by name or path, read, and validated; every problem names file, field, value and remedy."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError

PACKAGED_STUDIES = (Path(__file__).parents[1] / "studies").resolve()
S = TypeVar("S", bound=BaseModel)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, tree


def find_study(name_or_path: str, directories: Sequence[Path]) -> Path:
    """The file of a study, given by path or by name.

    Raises:
        InputError: no such study; the message lists those there are.
    """
    return find_settings("study", "studies", name_or_path, directories)


def find_settings(kind: str, plural: str, name_or_path: str, directories: Sequence[Path]) -> Path:
    """As `find_study`, for any `kind` of YAML file."""
    if name_or_path.endswith((".yaml", ".yml")) or os.sep in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"{path}: no such {kind} file; give the path of a .yaml file, or a name")
        return path.resolve()
    for directory in directories:
        path = directory / f"{name_or_path}.yaml"
        if path.is_file():
            return path.resolve()
    known = sorted({path.stem for directory in directories for path in directory.glob("*.yaml")})
    close = difflib.get_close_matches(name_or_path, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"known {plural}: {', '.join(known) or 'none'}"
    raise InputError(f"{kind} '{name_or_path}': not found in {', '.join(map(str, directories))}; {hint}")


def load_study(path: Path) -> Study:
    """Read and validate a study file; relative data and model paths become absolute.

    Raises:
        InputError: the first problem, as `file: field = value: what must hold`, one line a problem.
    """
    return study_of(read_mapping(path), str(path), path.parent)


def study_of(tree: Mapping[str, Any], place: str, folder: Path) -> Study:
    """A study from its settings, relative paths below `folder`; errors begin with `place`. Raises InputError."""
    return _with_absolute_paths(validated(Study, tree, place), folder)


def validated(model: type[S], tree: Mapping[str, Any], place: str) -> S:
    """`tree` as `model`. Raises InputError: `place: field = value: what must hold`, one line a problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(_explain(model, place, problem) for problem in error.errors())) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises InputError where it holds none, or a key twice."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must be a mapping of settings, found {type(tree).__name__}")
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _with_absolute_paths(settings: S, folder: Path) -> S:
    """Relative paths below `folder`. A model is one where it is written as a path; a name on the hub stays."""
    changes = {}
    for name, value in settings:
        if isinstance(value, BaseModel):
            changes[name] = _with_absolute_paths(value, folder)
        elif isinstance(value, str) and (
            name in ("path", "words")
            or (name in ("checkpoint", "model", "embedding_model") and value.startswith((".", "/", "~")))
        ):
            changes[name] = _absolute(value, folder)
        elif name == "apart_from":
            changes[name] = tuple(_absolute(path, folder) for path in value)
    return settings.model_copy(update=changes)


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(path).expanduser())


def _explain(root: type[BaseModel], place: str, problem: Any) -> str:
    location = [str(key) for key in problem["loc"]]
    field = ".".join(location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        owner = _model_at(root, location[:-1])
        known = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{place}: {field}: unknown key; {hint}"
    if kind == "missing":
        return f"{place}: {field}: missing; add it"
    message = re.sub(r"^(Input|Value) should", "must", problem["msg"])
    message = message.removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {json.dumps(value, default=str)}"
    if kind.startswith(("greater_than", "less_than")):
        message = _allowed_range(root, location) or message
    return f"{place}: {field or root.__name__.lower()}{shown}: {message}"


def _allowed_range(root: type[BaseModel], location: list[str]) -> str | None:
    """The whole range of a bounded field: pydantic names only the bound that failed."""
    owner = _model_at(root, location[:-1])
    field = owner.model_fields.get(location[-1]) if owner and location else None
    metadata, names = field.metadata if field else [], ("gt", "ge", "lt", "le")
    bounds = {name: getattr(bound, name) for bound in metadata for name in names if hasattr(bound, name)}
    low = next((f"{bracket}{bounds[name]}" for name, bracket in (("gt", "("), ("ge", "[")) if name in bounds), None)
    high = next((f"{bounds[name]}{bracket}" for name, bracket in (("lt", ")"), ("le", "]")) if name in bounds), None)
    return f"must be in {low}, {high}" if low and high else None


def _model_at(root: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    model = root
    for key in location:
        field = model.model_fields.get(key)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        models = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model
