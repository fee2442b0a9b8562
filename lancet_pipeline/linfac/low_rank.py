"""Preconditioned gradients of single queries as products of thin matrices, so that many are held at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.scores import LowRank, Query
from lancet_pipeline.linfac.units import Unit, backward_pass, row_chunks
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK = 16
"""Of every query and unit."""

EXACT_ELEMENTS = 2**28
"""Query matrices that are held whole, in float32 elements (1 GiB)."""

SPARE = 8
"""Random vectors beyond RANK that find the leading directions."""


def low_rank_elements(factors: Factors) -> int:
    """Of one query over all units."""
    return RANK * sum(len(block.gradient_vectors) + len(block.input_vectors) for block in factors.blocks)


def query_each(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], factors: Factors, batch_tokens: int
) -> Query:
    """Each sequence as a query group of its own, named by its `sample_id`, in their order.

    A query's matrix is cut to RANK in the metric of the factors, in which the squared error is the mean squared error of a
    score: the leading singular vectors of S^1/2 V A^1/2, by a randomised range finder with one power iteration (Halko,
    Martinsson and Tropp 2011). `Query.truncation` tells what is lost. All queries as one batch stay exact.

    Raises:
        InputError: factors of another model.
    """
    factors.require(model)
    places = {unit: index for index, unit in enumerate(factors.units)}
    sums = [torch.zeros(())] * len(places)
    thin: list[list[LowRank]] = [[] for _ in places]
    energy = torch.zeros(2, dtype=torch.float64)

    def cut(part: TokenBatch) -> dict[int, tuple[torch.Tensor, LowRank, torch.Tensor]]:
        found = {}

        def add(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
            inputs, gradients = inputs.float(), gradients.float()
            chunks = [
                _truncated(factors, places[unit], inputs[rows], gradients[rows])
                for rows in row_chunks(inputs, gradients)
            ]
            total = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)
            found[places[unit]] = total, LowRank.joined([one for one, _ in chunks]), sum(lost for _, lost in chunks)

        backward_pass(model, part, factors.units, add)
        return found

    backoff, order = Backoff(), []
    for group in bucketed(sequences, batch_tokens):
        for part in backoff.each(cut, collate([sequences[i] for i in group])):
            for index, (total, one, lost) in part.items():
                sums[index] = sums[index].to(total.device) + total
                thin[index].append(one)
                energy += lost.double().cpu()
        order += group
    back = torch.tensor(order).argsort()
    matrices = tuple(factors.precondition(i, total[None] / len(sequences)) for i, total in enumerate(sums))
    names = tuple(sequence.sample_id for sequence in sequences)
    query = Query(names, factors.units, matrices, (1 / len(names),) * len(names), factors.model)
    each = tuple(LowRank.joined(parts).rows(back) for parts in thin)
    return replace(query, each=each, truncation=float((energy[0] / energy[1].clamp_min(1e-300)).sqrt()))


def _truncated(
    factors: Factors, index: int, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor
) -> tuple[LowRank, torch.Tensor]:
    """(G_hat + lambda I)^-1 M_b of one unit, cut to RANK; and the squared norms that were lost and that there were, [2]."""
    block = factors.blocks[index].to(inputs_bta.device)
    sides = (
        (gradients_bts, block.gradient_values, block.gradient_vectors),
        (
            inputs_bta,
            block.input_values,
            block.input_vectors,
        ),
    )
    rotated = [torch.cat(block.parts(values, vectors), -1) for values, _, vectors in sides]
    # A complement is not rotated: it stands before the kept vectors in the coordinates of the whole side.
    spread = [len(vectors) if len(values) > vectors.shape[1] else 1 for _, values, vectors in sides]
    repeats = [
        torch.tensor([count, *[1] * (len(values) - 1)], device=values.device)
        for count, (_, values, _) in zip(spread, sides, strict=True)
    ]
    eigenvalues = block.eigenvalues().repeat_interleave(repeats[0], 0).repeat_interleave(repeats[1], 1)
    roots = [
        values.clamp_min(1e-6 * values.max()).sqrt().repeat_interleave(repeat)
        for repeat, (_, values, _) in zip(repeats, sides, strict=True)
    ]
    metric = roots[0][:, None] * roots[1] / (eigenvalues + factors.damping_value)
    whitened = (rotated[0].mT @ rotated[1]) * metric
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(whitened.shape[2], RANK + SPARE, generator=generator).to(whitened.device)
    basis = torch.linalg.qr(whitened @ probe).Q
    basis = torch.linalg.qr(whitened @ (whitened.mT @ basis)).Q
    projected = basis.mT @ whitened
    leading = torch.linalg.eigh(projected @ projected.mT).eigenvectors[:, :, -RANK:]
    kept = leading.mT @ projected
    energies = torch.stack([whitened.square().sum() - kept.square().sum(), whitened.square().sum()])
    left, right = ((basis @ leading).mT / roots[0], kept / roots[1])
    lifted = [
        thin @ vectors.T if count == 1 else thin[..., :count] + thin[..., count:] @ vectors.T
        for thin, count, (_, _, vectors) in zip((left, right), spread, sides, strict=True)
    ]
    return LowRank(*lifted), energies.clamp_min(0)
