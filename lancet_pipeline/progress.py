"""How long work reports how far it is, without knowing where the report goes."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable of `total` items and reports progress under `label` while it is consumed."""

    def __call__(self, items: Iterable[T], total: int, label: str) -> Iterator[T]: ...


def no_progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The silent default."""
    yield from items
