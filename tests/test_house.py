"""The rules of the house: rooms stand on floors, imports point down, and each outside library has its place."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FLOORS = (
    {"cli", "definitions"},
    {"orchestration"},
    {"assets"},
    {"resources"},
    {"governance"},
    {"tracking"},
    {"scale"},
    {"lineage"},
    {"store"},
    {"attribution"},
    {"evaluation", "correction", "linfac"},
    {"selection"},
    {"models"},
    {"data"},
    {"config"},
    {"ground"},
)
"""Rooms from the top floor down. A module imports from its own room and from the floors below it."""

LINKED = ("assets", "resources")
"""Folders beside the package, which reach it by links."""

GROUND = {"errors", "files", "progress", "plots"}
PLACES = {
    "dagster": {"assets", "resources", "orchestration", "definitions"},
    "mlflow": {"tracking"},
    "ray": {"scale"},
    "typer": {"cli"},
}
"""Library -> the rooms that may import it."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name without `lancet_pipeline.`."""
    found = {}
    for root, prefix in (
        (PROJECT / "lancet_pipeline", ()),
        (PROJECT / "assets", ("assets",)),
        (PROJECT / "resources", ("resources",)),
    ):
        for path in sorted(root.rglob("*.py")):
            parts = (*prefix, *path.relative_to(root).with_suffix("").parts)
            if prefix or parts[0] not in LINKED:
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room(module: str) -> str:
    first = module.partition(".")[0]
    return "ground" if first in GROUND else first


@cache
def imported(module: str) -> frozenset[str]:
    """Names of all that a module imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def needs(module: str) -> frozenset[str]:
    """The modules of ours that a module imports."""
    found = set()
    for name in imported(module):
        if name.startswith("lancet_pipeline."):
            inner = name.removeprefix("lancet_pipeline.")
            found.add(inner if inner in modules() else inner.rpartition(".")[0])
    return frozenset(found & modules().keys() - {module, ""})


def test_every_module_stands_in_a_room():
    assert {room(module) for module in modules() if module} == set().union(*FLOORS)


def test_imports_point_down():
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    wrong = [
        f"{module} imports {other}"
        for module in modules()
        for other in needs(module)
        if module and room(module) != room(other) and floor[room(module)] >= floor[room(other)]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["data", "model", "influence", "selection", "correction", "evaluation", "governance"])
def test_assets_hold_no_loop_and_no_numerics(name):
    tree = ast.parse((PROJECT / "assets" / f"{name}.py").read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    assert not {library.partition(".")[0] for library in imported(f"assets.{name}")} & {
        "numpy",
        "torch",
        "scipy",
        "sklearn",
    }


def test_no_circle_of_modules():
    try:
        TopologicalSorter({module: needs(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_circle_of_folders():
    def folder(module: str) -> Path:  # `definitions.py` and the ground share one folder, and are rooms apart
        path = modules()[module]
        return path if path.parent == PROJECT / "lancet_pipeline" else path.parent

    graph = defaultdict(set)
    for module in modules():
        graph[folder(module)] |= {folder(other) for other in needs(module)} - {folder(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(map(str, error.args[1])))


@pytest.mark.parametrize(("library", "rooms"), PLACES.items())
def test_a_library_is_imported_in_its_place_alone(library, rooms):
    importers = {
        module for module in modules() for name in imported(module) if name == library or name.startswith(f"{library}.")
    }
    assert importers, f"nothing imports {library}: the rule is idle"
    assert {module for module in importers if room(module) not in rooms} == set()
