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

from lancet_pipeline.config.study import DataSource, Origin, Study
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


def _with_absolute_paths(study: Study, folder: Path) -> Study:
    def absolute(source: Origin | None) -> Origin | None:
        if source is None or source.path is None:
            return source
        return source.model_copy(update={"path": os.path.normpath(folder / Path(source.path).expanduser())})

    def absolute_model(name: str | None) -> str | None:
        """A directory where it is written as one; a name on the hub stays."""
        if name and name.startswith((".", "/", "~")):
            return os.path.normpath(folder / Path(name).expanduser())
        return name

    data = study.data.model_copy(
        update={name: absolute(value) for name, value in study.data if isinstance(value, DataSource)}
    )
    judge = study.evaluation.judge
    judge = judge.model_copy(
        update={
            "validation": absolute(judge.validation),
            "words": judge.words and os.path.normpath(folder / Path(judge.words).expanduser()),
            "model": absolute_model(judge.model),
        }
    )
    model = study.model.model_copy(update={"checkpoint": absolute_model(study.model.checkpoint)})
    evaluation = study.evaluation
    evaluation = evaluation.model_copy(update={"judge": judge, "paraphrases": absolute(evaluation.paraphrases)})
    return study.model_copy(update={"data": data, "model": model, "evaluation": evaluation})


def _explain(root: type[BaseModel], place: str, problem: Any) -> str:
    location = [str(key) for key in problem["loc"]]
    field = ".".join(location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _fields_at(root, location[:-1])
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
    low = high = None
    for bound in field.metadata if field else ():
        for name, bracket in (("gt", "("), ("ge", "[")):
            low = f"{bracket}{getattr(bound, name)}" if hasattr(bound, name) else low
        for name, bracket in (("lt", ")"), ("le", "]")):
            high = f"{getattr(bound, name)}{bracket}" if hasattr(bound, name) else high
    return f"must be in {low}, {high}" if low and high else None


def _model_at(root: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    model = root
    for key in location:
        field = model.model_fields.get(key)
        if field is None:
            return None
        candidates = [field.annotation, *get_args(field.annotation)]
        models = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def _fields_at(root: type[BaseModel], location: list[str]) -> list[str]:
    model = _model_at(root, location)
    return list(model.model_fields) if model else []
