"""What keeps models and batches within the memory of a device."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

from lancet_pipeline.errors import InputError

if TYPE_CHECKING:
    from lancet_pipeline.study import Study

States = Literal["32bit", "8bit"]


def require_states(states: States, setting: str) -> None:
    """Raises InputError where the states of an optimiser that `setting` asks for need a package that is not installed."""
    if states == "8bit" and find_spec("bitsandbytes") is None:
        raise InputError(
            f"{setting} = 8bit: needs the package bitsandbytes; install lancet-pipeline[memory], or take 32bit"
        )


def require_memory_packages(study: "Study") -> None:
    """Raises InputError where `study` asks for a package that is not installed."""
    if study.model.training is not None:
        require_states(study.model.training.optimizer_states, "model.training.optimizer_states")
    require_states(study.correction.optimizer_states, "correction.optimizer_states")


def adamw(
    parameters: list[torch.nn.Parameter], states: States, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with moments in 32 bits, or in 8 bits of blocks that are scaled by themselves (arXiv 2110.02861), where
    parameters of fewer than 4,096 elements keep 32.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    arguments = {"lr": learning_rate, "weight_decay": weight_decay, "betas": (0.9, 0.95)}
    if states == "32bit":
        return torch.optim.AdamW(parameters, **arguments)
    require_states(states, "optimizer_states")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **arguments)
