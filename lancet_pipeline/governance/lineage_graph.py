"""The graph of a study as a drawing: boxes in rows by depth, inputs above what they feed."""

from collections.abc import Mapping
from dataclasses import dataclass

from lancet_pipeline.lineage.stages import SOURCES, STAGES

WIDTH, HEIGHT, GAP_X, GAP_Y = 148, 42, 14, 34


@dataclass(frozen=True)
class Box:
    """A source or asset at (x, y), its top left corner. `state`: source, computed or pending."""

    name: str
    x: int
    y: int
    version: str
    state: str


@dataclass(frozen=True)
class Drawing:
    width: int
    height: int
    boxes: list[Box]
    paths: list[str]


def draw(versions: Mapping[str, str], computed: Mapping[str, object]) -> Drawing:
    """Lay out every source and stage. An edge that a longer path implies is left out.

    Args:
        versions: version of each source and stage.
        computed: the stages whose artifacts are part of the evidence.
    """
    inputs: dict[str, tuple[str, ...]] = dict.fromkeys(SOURCES, ()) | {
        stage.name: stage.inputs for stage in STAGES.values()
    }
    edges = _essential_edges(inputs)
    rows = _rows(inputs)
    width = max(len(row) for row in rows) * (WIDTH + GAP_X) - GAP_X + 4
    corner: dict[str, tuple[int, int]] = {}
    for depth, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) // 2
        # Below the middle of its inputs, so that edges cross little; sources, which have none, go to the right.
        above = {name: [corner[start][0] for start, end in edges if end == name and start in corner] for name in row}
        row.sort(key=lambda name: (not above[name], sum(above[name]) / max(1, len(above[name]))))
        for column, name in enumerate(row):
            corner[name] = (left + column * (WIDTH + GAP_X), 2 + depth * (HEIGHT + GAP_Y))

    def state(name: str) -> str:
        return "source" if name in SOURCES else "computed" if name in computed else "pending"

    boxes = [Box(name, *corner[name], versions.get(name, ""), state(name)) for name in inputs]
    paths = [_path(corner[start], corner[end]) for start, end in edges]
    return Drawing(width, len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 4, boxes, paths)


def _rows(inputs: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Names by depth, each as late as what it feeds allows, so that sources stand next to their use."""
    depth = dict.fromkeys(inputs, 0)
    for _ in inputs:  # at most as many rounds as the longest path has steps
        for name, needed in inputs.items():
            for source in needed:
                depth[source] = min(depth[source], depth[name] - 1)
    top = min(depth.values())
    rows: list[list[str]] = [[] for _ in range(1 - top)]
    for name in inputs:
        rows[depth[name] - top].append(name)
    return rows


def _essential_edges(inputs: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Edges of the transitive reduction."""
    above: dict[str, set[str]] = {}
    for name in inputs:  # inputs come first in SOURCES and STAGES
        above[name] = set(inputs[name]).union(*(above[source] for source in inputs[name]))
    return [
        (source, name)
        for name, needed in inputs.items()
        for source in needed
        if not any(source in above[other] for other in needed)
    ]


def _path(start: tuple[int, int], end: tuple[int, int]) -> str:
    """Across within the first gap, then straight down: a long edge keeps clear of the boxes in between."""
    x0, y0 = start[0] + WIDTH // 2, start[1] + HEIGHT
    x1, y1 = end[0] + WIDTH // 2, end[1]
    bend = y0 + GAP_Y - 8  # the rest is straight, which gives the arrowhead its direction
    return f"M{x0} {y0}C{x0} {y0 + GAP_Y // 2} {x1} {y0 + GAP_Y // 4} {x1} {bend}L{x1} {y1}"
