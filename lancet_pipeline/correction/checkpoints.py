"""Where a correction stands, on disk, so that a killed one goes on and ends as it would have ended."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_KEY, _PROGRESS = "key", "progress"


@dataclass(frozen=True)
class Checkpoint:
    """Trained parameters, optimiser moments and the best parameters so far, by name; `progress` is JSON-ready."""

    parameters: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    progress: dict[str, Any]

    def save(self, path: Path, key: str) -> None:
        """Whole or not at all; `key` says what the correction is of."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        groups = {"parameters": self.parameters, "moments": self.moments, "best": self.best}
        tensors = {
            f"{group}:{name}": tensor.detach().cpu().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        save_file(tensors, temporary, {_KEY: key, _PROGRESS: json.dumps(self.progress)})
        temporary.replace(path)

    @staticmethod
    def load(path: Path, key: str) -> "Checkpoint | None":
        """The checkpoint at `path` where it is there and of the same correction."""
        if not path.is_file():
            return None
        groups: dict[str, dict[str, torch.Tensor]] = {"parameters": {}, "moments": {}, "best": {}}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(_KEY) != key:
                return None
            for name in file.keys():  # noqa: SIM118 - no mapping
                group, _, rest = name.partition(":")
                groups[group][rest] = file.get_tensor(name)
        return Checkpoint(**groups, progress=json.loads(metadata[_PROGRESS]))
