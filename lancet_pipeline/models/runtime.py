"""Where and how fast work runs: handed down whole, from the command or the asset to the innermost loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lancet_pipeline.config.study import Study
from lancet_pipeline.models.engine import Engine, InProcess
from lancet_pipeline.models.loading import find_checkpoint, resolve_device
from lancet_pipeline.models.memory import Checkpointing
from lancet_pipeline.progress import Track, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

R = TypeVar("R")


def in_process(work: Callable[["Runtime"], Any], runtime: "Runtime") -> Any:
    return work(runtime)


@dataclass(frozen=True)
class Runtime:
    """What results do not depend on. The defaults are silent and compute on the CPU.

    batch_tokens: of a batch, padding included. activation_checkpointing: see `memory.activation_checkpointing`.
    model_directories: where a checkpoint is looked for before the hub. journal: folder of what has been scored, which
    is not scored again (`linfac.journal`). checkpoint: file that says where a training stands, which then goes on from
    there (`checkpoints.CheckpointFile`). track: reports progress. engine: where passes of a model over data run.
    ranks: calls what trains a model, in this process or on every rank of a cluster.
    """

    device: str = "cpu"
    batch_tokens: int = 4096
    activation_checkpointing: Checkpointing = "auto"
    model_directories: tuple[Path, ...] = ()
    journal: Path | None = None
    checkpoint: Path | None = None
    track: Track = no_progress
    engine: Callable[["PreTrainedModel"], Engine] = InProcess
    ranks: Callable[[Callable[["Runtime"], Any], "Runtime"], Any] = in_process

    @staticmethod
    def of(
        study: Study, device: str | None = None, model_directories: Sequence[Path] = (), track: Track = no_progress
    ) -> "Runtime":
        """What a study's `compute` asks for, in this process; `device` goes before the study's.

        Raises:
            InputError: nothing can be computed on that device here.
        """
        return Runtime(
            device=resolve_device(device or study.compute.device),
            batch_tokens=study.compute.batch_tokens,
            activation_checkpointing=study.compute.activation_checkpointing,
            model_directories=tuple(model_directories),
            track=track,
        )

    def find(self, checkpoint: str) -> str:
        """See `loading.find_checkpoint`."""
        return find_checkpoint(checkpoint, self.model_directories)

    def train(self, function: Callable[..., R], *arguments: Any) -> R:
        """`function(*arguments, runtime)`, which trains a model, called where `ranks` says."""
        return self.ranks(partial(function, *arguments), self)
