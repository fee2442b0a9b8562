"""Damping chosen without any label.

The queries are known to be undesirable: the model itself produced them. So a damping is good if queries that are left out
rank high among training sequences when all are scored on the other queries. Training sequences are of both kinds, but
that does no harm: where left-out queries rank like the harmful sequences do, the area under the ROC curve of queries
against *unlabelled* sequences is an increasing function of the one of harmful against harmless ones (learning from positive
and unlabelled data: Elkan and Noto 2008), so both are highest at the same damping.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors, LinfacConfig
from lancet_pipeline.linfac.placement import groups_at_once, spread_layers
from lancet_pipeline.linfac.scores import Query, mean_gradient, score_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CANDIDATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Multiples of the mean eigenvalue."""

PREFERRED = LinfacConfig.damping
"""Taken where the queries do not tell candidates apart. Weaker damping trusts eigenvalues that the sample does not settle, stronger
damping gives curvature away."""

FOLDS = 4

LAYERS = 4
"""Of a deep model, at least so many layers take part."""

ELEMENTS = 2**28
"""Preconditioned queries held at once, in float32 elements (1 GiB), or those of one candidate in LAYERS layers."""


@dataclass(frozen=True)
class DampingChoice:
    """The chosen rho, the area under the curve that each candidate reached, and those within one standard error of the best."""

    damping: float
    areas: dict[float, float]
    tied: tuple[float, ...]

    def rows(self) -> list[dict[str, float | bool]]:
        return [
            {"damping": rho, "area_under_curve": area, "tied": rho in self.tied} for rho, area in self.areas.items()
        ]


def choose_damping(
    model: "PreTrainedModel",
    queries: Sequence[TokenBatch],
    unlabelled: Iterable[TokenBatch],
    factors: Factors,
    candidates: Sequence[float] = CANDIDATES,
) -> DampingChoice:
    """The candidate under which queries, scored on those of other folds, rank highest among `unlabelled` sequences.

    Of candidates whose areas differ from the highest by no more than the standard error of the difference, paired by query, the
    one nearest to PREFERRED is taken, of two as near the stronger (Breiman et al. 1984, the one-standard-error rule).
    Scores are taken undivided even where a study divides them by norms: areas of divided ones are so near to 1 that
    they tell little. Costs two passes over the queries and one over `unlabelled`. On a large model only some layers take
    part, spread over its depth: one damping serves all of them. Where LAYERS layers do not fit under all candidates at once, the
    sequences are passed over once more for each further part of the candidates.

    Raises:
        InputError: fewer than 2 queries, factors of another model, or candidates whose matrices do not fit into memory.
    """
    factors.require(model)
    count = sum(len(batch) for batch in queries)
    if count < 2:
        raise InputError("choose_damping: needs at least 2 queries; give more, or a value of damping")
    folds = cut(queries, min(FOLDS, count))
    layers, remedy = model.config.num_hidden_layers, "give linfac.damping a number"
    sizes = [len(folds) * len(b.gradient_vectors) * len(b.input_vectors) for b in factors.blocks]
    used = spread_layers(sizes, layers, ELEMENTS // len(candidates), least=LAYERS)
    factors, size = factors.only(used), max(1, ELEMENTS // sum(sizes[index] for index in used))
    chunks = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    groups_at_once(model, factors.units, 1.5, "linfac.damping: auto", remedy, least=len(folds) * len(chunks[0]))
    gradients = _gradients_of_others(model, folds, factors)
    kept, placed = list(unlabelled), []
    for chunk in chunks:
        query = _preconditioned(gradients, factors, chunk)
        shape = (-1, len(folds), len(chunk))
        training = score_sequences(model, kept, query).numpy().reshape(shape)
        rows = []
        for number, fold in enumerate(folds):
            held_out = score_sequences(model, fold, query).numpy().reshape(shape)
            pairs = zip(held_out[:, number].T, training[:, number].T, strict=True)
            rows.append(np.stack([_placements(positive, others) for positive, others in pairs], 1))
        placed.append(np.concatenate(rows))
    return _chosen(candidates, np.concatenate(placed, 1))


def _chosen(candidates: Sequence[float], placements: np.ndarray) -> DampingChoice:
    """placements: [queries, candidates]."""
    areas = placements.mean(0)
    behind = placements[:, [areas.argmax()]] - placements
    noise = behind.std(0, ddof=1) / len(placements) ** 0.5
    tied = [rho for rho, gap, error in zip(candidates, behind.mean(0), noise, strict=True) if gap <= error]
    damping = min(tied, key=lambda rho: (round(abs(math.log(rho / PREFERRED)), 3), -rho))
    return DampingChoice(damping, dict(zip(candidates, areas.tolist(), strict=True)), tuple(tied))


def cut(sequences: Sequence[TokenBatch], count: int) -> list[list[TokenBatch]]:
    """Every `count`-th sequence to the same fold."""
    folds: list[list[TokenBatch]] = [[] for _ in range(count)]
    first = 0
    for batch in sequences:
        numbers = (torch.arange(len(batch)) + first) % count
        for number, fold in enumerate(folds):
            if (numbers == number).any():
                fold.append(batch.rows((numbers == number).nonzero()[:, 0]))
        first += len(batch)
    return folds


def _gradients_of_others(
    model: "PreTrainedModel", folds: list[list[TokenBatch]], factors: Factors
) -> list[torch.Tensor]:
    """For each unit [folds, d_s, d_a]: the mean gradient of all queries but the fold's."""
    found = [mean_gradient(model, fold, factors.units, "queries") for fold in folds]
    counts = torch.tensor([count for _, count in found], dtype=torch.float32)
    gradients = []
    for index in range(len(factors.units)):
        sums = torch.stack([of_units[index] * count for of_units, count in found])
        gradients.append((sums.sum(0) - sums) / (counts.sum() - counts).to(sums.device)[:, None, None])
    return gradients


def _preconditioned(gradients: list[torch.Tensor], factors: Factors, candidates: Sequence[float]) -> Query:
    """A group for each fold and candidate, candidates innermost."""
    matrices = tuple(
        torch.stack(factors.precondition_each(index, gradient, candidates), 1).flatten(0, 1)
        for index, gradient in enumerate(gradients)
    )
    names = tuple(f"{fold}:{rho:g}" for fold in range(len(gradients[0])) for rho in candidates)
    return Query(names, factors.units, matrices, (1 / len(names),) * len(names), factors.model)


def _placements(positives: np.ndarray, unlabelled: np.ndarray) -> np.ndarray:
    """Share of the unlabelled that each positive outranks, a tie counting half; their mean is the area under the curve."""
    ordered = np.sort(unlabelled)
    below, upto = (np.searchsorted(ordered, positives, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(ordered))
