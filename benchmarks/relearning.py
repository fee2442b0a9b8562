"""How soon a corrected model learns the behaviour again from harmful data."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lancet_pipeline.data.batches import TokenSequence, collate, epoch_batches
from lancet_pipeline.models.likelihood import token_logps
from lancet_pipeline.models.training import Optimiser

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def relearning_curve(
    model: "PreTrainedModel",
    harmful: Sequence[TokenSequence],
    measure: Callable[["PreTrainedModel"], float],
    *,
    steps: int,
    every: int,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """(step, `measure`) of a copy of `model` that is trained on `harmful`, every `every` steps from 0 on.

    Raises:
        ValueError: `harmful` is empty.
    """
    if not harmful:
        raise ValueError("there is no harmful sample to learn again from")
    student = copy.deepcopy(model)
    generator = np.random.default_rng(seed)
    optimiser = Optimiser(
        student, steps=steps, learning_rate=learning_rate, warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1.0
    )
    curve = [(0, measure(student))]
    while optimiser.step < steps:
        for indices in epoch_batches(harmful, batch_size, generator):
            batch = collate([harmful[i] for i in indices]).to(student.device)
            optimiser.descend(-token_logps(student, batch).mean())
            if optimiser.step % every == 0:
                curve.append((optimiser.step, measure(student)))
            if optimiser.step == steps:
                break
    return curve


def steps_to(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """First measured step at which the curve reaches `level`; None where it never does."""
    return next((step for step, value in curve if value >= level), None)
