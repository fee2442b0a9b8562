"""Damping chosen without any label.

The queries are known to be undesirable: the model itself produced them. So a damping is good if queries that are left out
rank high among training sequences when all are scored on the other queries. Training sequences are of both kinds, but
that does no harm: where left-out queries rank like the harmful sequences do, the area under the ROC curve of queries
against *unlabelled* sequences is an increasing function of the one of harmful against harmless ones (learning from positive
and unlabelled data: Elkan and Noto 2008), so both are highest at the same damping.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.placement import groups_at_once
from lancet_pipeline.linfac.scores import Query, mean_gradient, score_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CANDIDATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Multiples of the mean eigenvalue."""

FOLDS = 4

ELEMENTS = 2**28
"""Preconditioned queries held at once, in float32 elements (1 GiB) at the widths of the factors; one layer at least."""


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
    unlabelled: Iterable[TokenBatch],
    factors: Factors,
    candidates: Sequence[float] = CANDIDATES,
) -> DampingChoice:
    """The candidate under which queries, scored on those of other folds, rank highest among `unlabelled` sequences.

    Scores are taken undivided even where a study divides them by norms: areas of divided ones are so near to 1 that
    they tell little. Costs two passes over the queries and one over `unlabelled`. On a large model only some layers take
    part: one damping serves all of them.

    Raises:
        InputError: fewer than 2 queries, factors of another model, or candidates whose matrices do not fit into memory.
    """
    factors.require(model)
    count = sum(len(batch) for batch in queries)
    if count < 2:
        raise InputError("choose_damping: needs at least 2 queries; give more, or a value of damping")
    folds = _folds(queries, min(FOLDS, count))
    groups, remedy = len(folds) * len(candidates), "give linfac.damping a number"
    factors = factors.only(_affordable_units(factors, groups, model.config.num_hidden_layers))
    groups_at_once(model, factors.units, 1.5, "linfac.damping: auto", remedy, least=groups)
    query = _queries_of_other_folds(model, folds, factors, candidates)
    shape = (-1, len(folds), len(candidates))
    training = score_sequences(model, unlabelled, query).numpy().reshape(shape)
    totals = np.zeros(len(candidates))
    for number, fold in enumerate(folds):
        held_out = score_sequences(model, fold, query).numpy().reshape(shape)
        totals += [
            len(held_out) * _area(p, u) for p, u in zip(held_out[:, number].T, training[:, number].T, strict=True)
        ]
    areas = dict(zip(candidates, (totals / count).tolist(), strict=True))
    return DampingChoice(max(candidates, key=areas.__getitem__), areas)


def _folds(queries: Sequence[TokenBatch], count: int) -> list[list[TokenBatch]]:
    """Every `count`-th query to the same fold."""
    folds: list[list[TokenBatch]] = [[] for _ in range(count)]
    first = 0
    for batch in queries:
        numbers = (torch.arange(len(batch)) + first) % count
        for number, fold in enumerate(folds):
            if (numbers == number).any():
                fold.append(batch.rows((numbers == number).nonzero()[:, 0]))
        first += len(batch)
    return folds


def _queries_of_other_folds(
    model: "PreTrainedModel", folds: list[list[TokenBatch]], factors: Factors, candidates: Sequence[float]
) -> Query:
    """A group for each fold and candidate, candidates innermost: all queries but the fold's, as one batch."""
    found = [mean_gradient(model, fold, factors.units, "queries") for fold in folds]
    counts = torch.tensor([count for _, count in found], dtype=torch.float32)
    matrices = []
    for index in range(len(factors.units)):
        sums = torch.stack([gradients[index] * count for gradients, count in found])
        others = (sums.sum(0) - sums) / (counts.sum() - counts).to(sums.device)[:, None, None]
        matrices.append(torch.stack(factors.precondition_each(index, others, candidates), 1).flatten(0, 1))
    names = tuple(f"{fold}:{rho:g}" for fold in range(len(folds)) for rho in candidates)
    return Query(names, factors.units, tuple(matrices), (1 / len(names),) * len(names), factors.model)


def _affordable_units(factors: Factors, groups: int, layers: int) -> list[int]:
    """Units of every k-th layer, counted from the last, so that `groups` queries over them hold about ELEMENTS."""
    size = groups * sum(len(block.gradient_values) * len(block.input_values) for block in factors.blocks)
    per_layer, stride = max(1, len(factors.units) // layers), max(1, -(-size // ELEMENTS))
    last = len(factors.units) - 1
    return [i for i in range(last + 1) if (last - i) // per_layer % stride == 0]


def _area(positive: np.ndarray, unlabelled: np.ndarray) -> float:
    """Chance that a positive outranks an unlabelled one, a tie counting half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, unlabelled]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(unlabelled)))
