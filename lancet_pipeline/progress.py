"""How long work reports how far it is, without knowing where the report goes."""

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable of `total` items and reports progress under `label` while it is consumed."""

    def __call__(self, items: Iterable[T], total: int, label: str) -> Iterator[T]: ...


def no_progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The silent default."""
    yield from items


def progress_bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """A bar with the time left on standard error; gone when done, silent where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    texts = (TextColumn("    {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    columns = (*texts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield from bar.track(items, total=total, description=label)
