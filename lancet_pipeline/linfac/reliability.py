"""How far the sequences sufficed that factors were fitted on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.linfac.damping import CANDIDATES, ELEMENTS, cut
from lancet_pipeline.linfac.eigen import Side, eigenpairs
from lancet_pipeline.linfac.factors import Factors, KroneckerFactor, LinfacConfig
from lancet_pipeline.linfac.placement import spread_layers
from lancet_pipeline.linfac.scores import Query, mean_gradient, score_sequences
from lancet_pipeline.linfac.sums import UnitSums

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = 4
"""Layers of a deeper model that the reliability is estimated on; each costs four eigendecompositions of its units."""

HELD_OUT = 64
"""Sequences that a study holds out."""

FEWEST = 16
"""Sequences held out, without which nothing is estimated."""


def reliabilities(
    model: "PreTrainedModel", held_out: Sequence[TokenBatch], factors: Factors, sums: Mapping[int, UnitSums]
) -> dict[float, float]:
    """Each candidate of damping -> estimated correlation of scores with those that factors of unlimited sequences would give.

    The sequences held out are scored on every fourth of them, once with the factors of either half of the fitted sequences.
    Scores of two halves that err independently correlate by r = c^2, where c is the correlation of either with the truth.
    Half as many sequences do worse than all, so that c is a low estimate; but where sequences are few, both halves err alike
    (each takes directions that it has not seen for flat), so it is not raised by the Spearman-Brown formula.
    Empty where fewer than FEWEST sequences are held out or one half has none.
    """
    if sum(map(len, held_out)) < FEWEST or not all(sums[0].sequences):
        return {}
    config, groups = factors.config, 2 * len(CANDIDATES)
    products = [next(filter(None, sums[index].products)) for index in range(len(factors.units))]
    sizes = [groups * len(gradients) * len(inputs) for gradients, inputs, _ in products]
    chosen = spread_layers(sizes, model.config.num_hidden_layers, ELEMENTS, most=LAYERS)
    asked, *others = cut(held_out, 4)
    units = tuple(factors.units[index] for index in chosen)
    gradients, _ = mean_gradient(model, asked, units, "held out")
    matrices = []
    for index, gradient in zip(chosen, gradients, strict=True):
        solved = []
        for half in (0, 1):
            sides = sums[index].factors(config, half)
            block = decomposed(sides, config, factors.units[index].name, gradient.device)
            fitted = Factors(config, units, (block,), factors.mean_eigenvalue, factors.sequences, factors.model, {})
            solved += fitted.precondition_each(0, gradient, CANDIDATES)
        matrices.append(torch.stack(solved))
    names = tuple(map(str, range(groups)))
    query = Query(names, units, tuple(matrices), (1 / groups,) * groups, factors.model)
    scores = score_sequences(model, [batch for part in others for batch in part], query).double().numpy()
    first, second = scores[:, : len(CANDIDATES)], scores[:, len(CANDIDATES) :]
    agreement = [np.corrcoef(one, two)[0, 1] for one, two in zip(first.T, second.T, strict=True)]
    return {rho: float(max(r, 0.0) ** 0.5) for rho, r in zip(CANDIDATES, agreement, strict=True)}


def decomposed(sides: tuple[Side, Side], config: LinfacConfig, name: str, device: torch.device) -> KroneckerFactor:
    """Raises:
    LancetError: a side has no eigenvalues; names the unit.
    """
    (gradient_values, gradient_vectors), (input_values, input_vectors) = (
        eigenpairs(Side(side.product.to(device), side.trace), config.seed, f"unit '{name}', {kind}")
        for side, kind in zip(sides, ("gradients", "inputs"), strict=True)
    )
    return KroneckerFactor(gradient_values, gradient_vectors, input_values, input_vectors)
