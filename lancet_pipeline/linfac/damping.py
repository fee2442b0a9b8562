"""Damping chosen without any label.

The queries are known to be undesirable: the model itself produced them. So a damping is good if a query that is left out
ranks high among training sequences when all are scored on the other queries. Training sequences are of both kinds, but
that does no harm: where left-out queries rank like the harmful sequences do, the area under the ROC curve of queries
against *unlabelled* sequences is an increasing function of the one of harmful against harmless ones (learning from positive
and unlabelled data: Elkan and Noto 2008), so both are highest at the same damping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.scores import Query, mean_gradient, score_sequences, self_influence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CANDIDATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Multiples of the mean eigenvalue."""

ELEMENTS = 2**28
"""Preconditioned queries held at once, in float32 elements (1 GiB)."""


@dataclass(frozen=True)
class DampingChoice:
    """The chosen rho, and the area under the curve that each candidate reached."""

    damping: float
    areas: dict[float, float]

    def rows(self) -> list[dict[str, float]]:
        return [{"damping": rho, "area_under_curve": area} for rho, area in self.areas.items()]


def choose_damping(
    model: "PreTrainedModel",
    queries: Sequence[TokenBatch],
    unlabelled: Sequence[TokenBatch],
    factors: Factors,
    candidates: Sequence[float] = CANDIDATES,
) -> DampingChoice:
    """The candidate under which each query, scored on all the others, ranks highest among `unlabelled` sequences.

    Leaving a query out needs no pass of its own: its score on all n queries is the mean of its scores on the n - 1
    others and on itself. Costs one scoring pass over the sequences given and the self-influence of the queries. On a
    large model a part of the layers, evenly spaced, takes part: one damping serves all of them.

    Raises:
        InputError: fewer than 2 queries, or factors of another model.
    """
    count = sum(len(batch) for batch in queries)
    if count < 2:
        raise InputError("choose_damping: needs at least 2 queries; give more, or a value of damping")
    factors = factors.only(_affordable_units(factors, len(candidates), model.config.num_hidden_layers))
    query = _candidate_queries(model, queries, factors, candidates)
    on_all = score_sequences(model, queries, query).numpy()
    on_itself = self_influence(model, queries, factors, candidates).numpy()
    left_out = (count * on_all - on_itself) / (count - 1)
    training = score_sequences(model, unlabelled, query).numpy()
    areas = [_area(p, u) for p, u in zip(left_out.T, training.T, strict=True)]
    return DampingChoice(candidates[int(np.argmax(areas))], dict(zip(candidates, areas, strict=True)))


def _affordable_units(factors: Factors, groups: int, layers: int) -> list[int]:
    """Units of every k-th layer, counted from the last, so that `groups` queries over them hold ELEMENTS at most."""
    size = groups * sum(len(block.gradient_values) * len(block.input_values) for block in factors.blocks)
    per_layer, stride = max(1, len(factors.units) // layers), max(1, -(-size // ELEMENTS))
    last = len(factors.units) - 1
    return [i for i in range(last + 1) if (last - i) // per_layer % stride == 0]


def _candidate_queries(
    model: "PreTrainedModel", queries: Sequence[TokenBatch], factors: Factors, candidates: Sequence[float]
) -> Query:
    """One group for each candidate."""
    gradients, _ = mean_gradient(model, queries, factors.units, "queries")
    damped = [factors.damped(rho) for rho in candidates]
    matrices = tuple(
        torch.cat([one.precondition(index, gradient[None]) for one in damped])
        for index, gradient in enumerate(gradients)
    )
    weights = (1 / len(candidates),) * len(candidates)
    return Query(tuple(f"{rho:g}" for rho in candidates), factors.units, matrices, weights, factors.model)


def _area(positive: np.ndarray, unlabelled: np.ndarray) -> float:
    """Chance that a positive outranks an unlabelled one, a tie counting half."""
    ranks = rankdata(np.concatenate([positive, unlabelled]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(unlabelled)))
