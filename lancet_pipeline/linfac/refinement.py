"""A few conjugate-gradient steps on the exact Gauss-Newton matrix of some sequences, preconditioned by LinFAC.

They restore the curvature between matrices and layers that a block approximation leaves out. One query group needs one
solution, whatever the number of training samples, so that a few steps are affordable.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.exact import Blocks, GaussNewton, conjugate_gradients
from lancet_pipeline.linfac.factors import Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Refinement:
    """What `query_gradient` refines its solution with.

    batches: the sequences whose exact Gauss-Newton matrix is used; two of three fit the solution, the third decides
        where to stop.
    steps: conjugate-gradient steps, at most; each costs about two plain passes over `batches`.
    """

    batches: Iterable[TokenBatch]
    steps: int = 4


def refine(model: "PreTrainedModel", gradients: Blocks, factors: Factors, refinement: Refinement) -> Blocks:
    """(G + lambda I)^-1 applied to `gradients` ([G, d_s, d_a] a unit), G exact, from LinFAC's solution on.

    Each group keeps the step whose solution x has the lowest x^T (G' + lambda I) x / 2 - x^T gradient on the sequences
    that were held out: past it, steps fit the curvature of the few sequences at hand.

    Raises:
        InputError: fewer than 3 sequences, or units without weights (`sublayer_input`).
    """
    fit, check = _split(refinement.batches)
    exact, held_out = (GaussNewton(model, part, factors.units) for part in (fit, check))

    def precondition(blocks: Blocks) -> Blocks:
        return tuple(factors.precondition(index, block) for index, block in enumerate(blocks))

    best = precondition(gradients)
    lowest = torch.full((len(gradients[0]),), float("inf"), device=gradients[0].device)

    def keep_better(_step: int, solution: Blocks) -> None:
        nonlocal best, lowest
        curved = held_out.product(solution)
        objective = sum(
            (x * (0.5 * (g + factors.damping_value * x) - q)).flatten(1).sum(1)
            for x, g, q in zip(solution, curved, gradients, strict=True)
        )
        better = objective < lowest
        best = tuple(torch.where(better[:, None, None], new, old) for new, old in zip(solution, best, strict=True))
        lowest = torch.where(better, objective, lowest)

    conjugate_gradients(
        exact.product,
        gradients,
        factors.damping_value,
        steps=refinement.steps,
        start=best,
        precondition=precondition,
        watch=keep_better,
    )
    return best


def _split(batches: Iterable[TokenBatch]) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """Two of three sequences, and the third."""
    fit, check, first = [], [], 0
    for batch in batches:
        third = (torch.arange(len(batch)) + first) % 3 == 2
        first += len(batch)
        for part, chosen in ((fit, ~third), (check, third)):
            if chosen.any():
                part.append(batch.rows(chosen.nonzero()[:, 0]))
    if not check:
        raise InputError("refinement: needs at least 3 sequences; give more")
    return fit, check
