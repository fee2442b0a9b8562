"""Where a pass over data runs: here, or on other machines.

A pass is a function of a model and a stream of batches. The stream may be cut between any two batches, so that an engine can
run the pass over each piece by itself; what the pieces yield, in their order, is what the whole would have yielded, or adds up to
it. `lancet_pipeline.scale.ray_engine` is the other engine.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.progress import Track, no_progress

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

T = TypeVar("T")


class Pass(Protocol[T]):
    """What is computed of a stream of batches.

    most_pieces: cut the stream into no more than these, since what each yields is large; None where it is small.
    """

    @property
    def most_pieces(self) -> int | None: ...

    def __call__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch]) -> Iterator[T]: ...

    def to_table(self, part: T) -> "pa.Table":
        """What travels between machines: a row stands for itself, so that tables can be cut and joined."""
        ...

    def from_table(self, table: "pa.Table") -> Iterator[T]: ...


class Engine(Protocol):
    def run(
        self, work: Pass[T], batches: Iterable[TokenBatch], total: int, label: str, track: Track = no_progress
    ) -> Iterator[T]:
        """What `work` yields of `total` batches, in their order; `track` reports the progress under `label`."""
        ...


class InProcess:
    """The engine that has the model at hand."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model

    def run(
        self, work: Pass[T], batches: Iterable[TokenBatch], total: int, label: str, track: Track = no_progress
    ) -> Iterator[T]:
        return work(self._model, track(batches, total, label))
