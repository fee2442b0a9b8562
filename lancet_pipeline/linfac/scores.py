"""Batch queries and scores: one inner product a token, never a per-sample gradient."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.refinement import Refinement, refine
from lancet_pipeline.linfac.units import Unit, backward_pass

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Query:
    """Preconditioned query gradients: for each unit [G, d_s, d_a] float32, one matrix a group.

    `groups` is None for a single unnamed group; scores then have no group axis.
    """

    groups: tuple[str, ...] | None
    units: tuple[Unit, ...]
    matrices: tuple[torch.Tensor, ...]
    length_normalised: bool = False


def query_gradient(
    model: "PreTrainedModel",
    query_batches: Iterable[TokenBatch] | Mapping[str, Iterable[TokenBatch]],
    factors: Factors,
    *,
    length_normalised: bool = False,
    refinement: Refinement | None = None,
) -> Query:
    """Mean modular gradient of each group of queries times the damped inverse (docs/method.md, Queries).

    Args:
        query_batches: the queries, or a mapping from group name to its queries.
        length_normalised: scores divide a sequence's gradient by its number of loss tokens.
        refinement: takes LinFAC's solution nearer to the exact one.

    Raises:
        InputError: a group without queries.
    """
    named = query_batches if isinstance(query_batches, Mapping) else {"": query_batches}
    gradients = [mean_gradient(model, batches, factors.units, name) for name, batches in named.items()]
    stacked = tuple(torch.stack([group[index] for group in gradients]) for index in range(len(factors.units)))
    if refinement is None:
        matrices = tuple(factors.precondition(index, gradient) for index, gradient in enumerate(stacked))
    else:
        matrices = refine(model, stacked, factors, refinement)
    groups = tuple(named) if isinstance(query_batches, Mapping) else None
    return Query(groups, factors.units, matrices, length_normalised)


def score_sequences(model: "PreTrainedModel", batches: Iterable[TokenBatch], query: Query) -> torch.Tensor:
    """Influence of every sequence on the query, in the order of the batches: [N], or [N, groups] float32.

    score(z) = sum_units sum_t ds_t^T V a_t. One forward and one activation-only backward pass over the data.
    """
    return torch.cat([score_tokens(model, batch, query).sum(1).cpu() for batch in batches])


def score_tokens(model: "PreTrainedModel", batch: TokenBatch, query: Query) -> torch.Tensor:
    """Each token's share of its sequence's influence: [B, T], or [B, T, groups] float32; shares add up to the score."""
    matrices = dict(zip(query.units, query.matrices, strict=True))
    total: torch.Tensor | None = None

    def contract(unit: Unit, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> None:
        nonlocal total
        inputs, gradients = inputs_bta.float(), gradients_bts.float()
        # One large product a group: broadcasting over groups would copy every matrix once a sequence.
        share_btg = torch.stack([((inputs @ matrix.T) * gradients).sum(-1) for matrix in matrices[unit]], -1)
        total = share_btg if total is None else total + share_btg

    backward_pass(model, batch, query.units, contract)
    assert total is not None, "no unit was reached by the backward pass"
    if query.length_normalised:
        total = total / batch.loss_mask.sum(1).clamp_min(1).to(total.device)[:, None, None]
    return total[..., 0] if query.groups is None else total


def mean_gradient(
    model: "PreTrainedModel", batches: Iterable[TokenBatch], units: tuple[Unit, ...], group: str
) -> list[torch.Tensor]:
    """Modular gradient of each unit [d_s, d_a], averaged over the sequences of `batches`."""
    sums: dict[Unit, torch.Tensor] = {}
    count = 0

    def accumulate(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        gradient = gradients.float().flatten(0, 1).T @ inputs.float().flatten(0, 1)
        sums[unit] = sums[unit] + gradient if unit in sums else gradient

    for batch in batches:
        backward_pass(model, batch, units, accumulate)
        count += len(batch.input_ids)
    if count == 0:
        raise InputError(f"query_gradient: group '{group}' has no queries; give at least one")
    return [sums[unit] / count for unit in units]
