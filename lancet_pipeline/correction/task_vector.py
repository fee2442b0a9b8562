"""Negation of a task vector (arXiv 2212.04089): what training on the driving samples adds is taken away."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.config.study import CorrectionSettings
from lancet_pipeline.errors import LancetError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALVINGS = 6


def negate(
    model: "PreTrainedModel",
    start: Mapping[str, torch.Tensor],
    settings: CorrectionSettings,
    look: Callable[[], dict[str, float]],
) -> tuple[list[dict[str, float]], int, str]:
    """From parameters trained on the driving samples to theta_s - scale (theta - theta_s), in place.

    The scale is halved from `settings.negation` on until the retain budget holds: curve, step and ending as
    `trainer.Correction` has them, one row a scale.

    Raises:
        LancetError: no scale keeps the budget.
    """
    parameters = {name: p for name, p in model.named_parameters() if name in start}
    vector = {name: p.detach() - start[name] for name, p in parameters.items()}
    curve = []
    for halving in range(HALVINGS + 1):
        scale = settings.negation / 2**halving
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name] - scale * vector[name])
        curve.append({"step": halving + 1, "scale": scale, "loss": 0.0, "correction": 0.0, "retain": 0.0, **look()})
        if curve[-1]["perplexity_ratio"] <= settings.retain_budget:
            return curve, halving + 1, f"scale {scale:g} keeps the retain budget"
    raise LancetError(
        f"correction: no multiple of the task vector down to {scale:g} keeps the retain budget of "
        f"{settings.retain_budget}; lower correction.learning_rate or raise correction.retain_budget"
    )
