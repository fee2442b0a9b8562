"""One optimiser loop for everything that is trained, and supervised training on top of it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.data.batches import TokenSequence, collate, epoch_batches
from lancet_pipeline.errors import LancetError
from lancet_pipeline.models.likelihood import response_logits
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def optimise(
    model: "PreTrainedModel",
    losses: Iterable[Callable[[], torch.Tensor]],
    *,
    steps: int,
    learning_rate: float,
    warmup_fraction: float,
    weight_decay: float,
    max_grad_norm: float,
) -> Iterator[tuple[int, float]]:
    """AdamW with linear warm-up and cosine decay; yields (step, loss) after each step.

    Args:
        losses: one function a step that computes the loss to descend.

    Raises:
        LancetError: the loss or its gradient is not finite; the parameters are then those before that step.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95))
    warmup = max(1, round(warmup_fraction * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step, compute_loss in enumerate(losses, start=1):
        loss = compute_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise LancetError(f"training diverged at step {step} of {steps}: loss {loss.item()}; lower learning_rate")
        optimizer.step()
        schedule.step()
        yield step, loss.item()


def train(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    settings: Training,
    *,
    seed: int,
    track: Track = no_progress,
) -> list[float]:
    """Train `model` in place on the mean token loss of each batch; returns the loss of every step."""
    generator = np.random.default_rng(seed)
    per_epoch = math.ceil(len(sequences) / settings.batch_size)
    steps = max(1, round(settings.epochs * per_epoch))
    device = model.device

    def losses() -> Iterator[Callable[[], torch.Tensor]]:
        while True:
            for indices in epoch_batches(sequences, settings.batch_size, generator):
                batch = collate([sequences[i] for i in indices], loss_on=settings.loss_on).to(device)
                yield lambda batch=batch: torch.nn.functional.cross_entropy(*response_logits(model, batch))

    model.train()
    bounded = (loss for loss, _ in zip(losses(), range(steps), strict=False))
    progress = optimise(model, bounded, steps=steps, **_optimiser(settings))
    curve = [loss for _, loss in track(progress, steps, "training")]
    model.eval()
    return curve


def _optimiser(settings: Training) -> dict[str, float]:
    return settings.model_dump(include={"learning_rate", "warmup_fraction", "weight_decay", "max_grad_norm"})
