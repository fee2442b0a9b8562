"""Where training stands, on disk, so that what was killed goes on and ends as it would have ended."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file

from lancet_pipeline.models import distributed
from lancet_pipeline.models.loading import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_SECONDS = 60.0
LONG_SECONDS = 3.0
_GROUPS = ("parameters", "moments", "best")


@dataclass(frozen=True)
class Checkpoint:
    """Trained parameters, optimiser moments and the best parameters so far, by name, whole; `progress` is JSON-ready.

    On several ranks the tensors are at rank 0, the others have none.
    """

    parameters: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    progress: dict[str, Any]


def training_key(model: "PreTrainedModel", settings: BaseModel, seed: int, samples: Iterable[bytes]) -> str:
    """What a training is of, at the rank that keeps its checkpoint: model, settings, seed, and `samples` in their order."""
    if not distributed.first():
        return ""
    digest = hashlib.sha256(f"{fingerprint(model)}:{settings.model_dump_json()}:{seed}".encode())
    for sample in samples:
        digest.update(sample)
    return digest.hexdigest()


class CheckpointFile:
    """The file of one training, which rank 0 reads and writes. `path` None: none is kept. `key` says what the training is of.

    It is written no more often than every `seconds`, and more seldom in the proportion in which writing takes longer than
    `LONG_SECONDS`.
    """

    def __init__(self, path: Path | None, key: str, seconds: float = CHECKPOINT_SECONDS) -> None:
        self.path, self._key, self._seconds = path, key, seconds
        self._wait, self._saved = seconds, time.monotonic()

    def load(self) -> Checkpoint | None:
        """Where the training stands; None where it is to begin. The same on all ranks, but for the tensors."""
        if self.path is None:
            return None
        found = self._read(self.path) if distributed.first() else None
        progress = distributed.agreed(found and found.progress)
        return None if progress is None else found or Checkpoint({}, {}, {}, progress)

    def due(self) -> bool:
        """Whether it is time to save, by the clock of rank 0."""
        return self.path is not None and distributed.agreed(time.monotonic() - self._saved > self._wait)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write where the training stands; all ranks have to call it. Where writing takes long, the next one waits longer."""
        if self.path is None:
            return
        started = time.monotonic()
        if distributed.first():
            self._write(self.path, checkpoint)
        self._saved = time.monotonic()
        self._wait = self._seconds * max(1.0, (self._saved - started) / LONG_SECONDS)

    def remove(self) -> None:
        if self.path is not None and distributed.first():
            self.path.unlink(missing_ok=True)

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        tensors = {
            f"{group}:{name}": tensor.detach().cpu().contiguous()
            for group in _GROUPS
            for name, tensor in getattr(checkpoint, group).items()
        }
        save_file(tensors, temporary, {"key": self._key, "progress": json.dumps(checkpoint.progress)})
        temporary.replace(path)

    def _read(self, path: Path) -> Checkpoint | None:
        """The checkpoint that is there, if it is of the same training."""
        if not path.is_file():
            return None
        groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in _GROUPS}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != self._key:
                return None
            for name in file.keys():  # noqa: SIM118 - no mapping
                group, _, rest = name.partition(":")
                groups[group][rest] = file.get_tensor(name)
        return Checkpoint(**groups, progress=json.loads(metadata["progress"]))
