"""Preconditioned query gradients, and training sequences scored against them without per-sample gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.refinement import Refinement, refine
from lancet_pipeline.linfac.units import GRADIENT_ELEMENTS, Unit, backward_pass, row_chunks, squared_norms, sum_over
from lancet_pipeline.models.loading import fingerprint
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPETING = 0.5


@dataclass(frozen=True)
class LowRank:
    """G matrices left_g^T right_g [d_s, d_a], as left [G, r, d_s] and right [G, r, d_a] float32."""

    left: torch.Tensor
    right: torch.Tensor

    @staticmethod
    def joined(parts: "Sequence[LowRank]") -> "LowRank":
        return LowRank(torch.cat([part.left for part in parts]), torch.cat([part.right for part in parts]))

    def rows(self, chosen: torch.Tensor) -> "LowRank":
        return LowRank(self.left[chosen.to(self.left.device)], self.right[chosen.to(self.right.device)])

    def to(self, device: torch.device | str) -> "LowRank":
        return LowRank(self.left.to(device), self.right.to(device))

    def shares(self, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> torch.Tensor:
        """ds_t^T V_g a_t of every token, [B, T, G], in r (d_s + d_a) products each."""
        inputs, gradients = inputs_bta.float(), gradients_bts.float()
        size = max(1, GRADIENT_ELEMENTS // (inputs.shape[0] * inputs.shape[1] * self.left.shape[1]))
        found = []
        for left, right in zip(self.left.split(size), self.right.split(size), strict=True):
            products = (gradients @ left.flatten(0, 1).T).mul_(inputs @ right.flatten(0, 1).T)
            found.append(products.unflatten(-1, left.shape[:2]).sum(-1))
        return torch.cat(found, -1)


@dataclass(frozen=True)
class Query:
    """Preconditioned query gradients: for each unit [G, d_s, d_a] float32, one matrix a group.

    `groups` is None for a single unnamed group; scores then have no group axis. `weights` is each group's share of all
    queries, `model` the fingerprint of the model they belong to. With `each`, the groups are thin matrices, `matrices`
    [1, d_s, d_a] are of all queries as one batch, and `truncation` is the root of the share of squared norm that was lost.
    `competing` groups give one score as of `combination`, in place of that of their mean.
    """

    groups: tuple[str, ...] | None
    units: tuple[Unit, ...]
    matrices: tuple[torch.Tensor, ...]
    weights: tuple[float, ...]
    model: str
    each: tuple[LowRank, ...] | None = None
    truncation: float = 0.0
    competing: bool = False

    def to(self, device: torch.device | str) -> "Query":
        each = None if self.each is None else tuple(thin.to(device) for thin in self.each)
        return replace(self, matrices=tuple(matrix.to(device) for matrix in self.matrices), each=each)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.matrices, *(tensor for thin in self.each or () for tensor in (thin.left, thin.right))]

    def by_group(self, index: int, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> torch.Tensor:
        """<M_b, V_g> of unit `index` for every sequence and group, [B, G]."""
        if self.each is not None:
            return self.each[index].shares(inputs_bta, gradients_bts).sum(1)
        return contract_groups(inputs_bta, gradients_bts, self.matrices[index])

    def pooled(self) -> "Query":
        """All queries as one batch: the mean of the groups by their number of queries."""
        if len(self.weights) == 1:
            return replace(self, groups=None, each=None)
        if self.each is not None:
            return replace(self, groups=None, each=None, weights=(1.0,))
        weights = torch.tensor(self.weights, device=self.matrices[0].device)
        return replace(
            self,
            groups=None,
            matrices=tuple(torch.einsum("g,gsa->sa", weights, matrix)[None] for matrix in self.matrices),
            weights=(1.0,),
        )

    def mixed(self, other: "Query", share: float) -> "Query":
        """The mean of two pooled queries, of which `other` has that share."""
        pairs = zip(self.matrices, other.matrices, strict=True)
        return replace(self, matrices=tuple(torch.lerp(one, two, share) for one, two in pairs))


def query_gradient(
    model: "PreTrainedModel",
    query_batches: Iterable[TokenBatch] | Mapping[str, Iterable[TokenBatch]],
    factors: Factors,
    *,
    refinement: Refinement | None = None,
    weights: Mapping[str, float] | None = None,
) -> Query:
    """Mean modular gradient of each group of queries times the damped inverse (docs/method.md, Queries).

    Args:
        query_batches: the queries, or a mapping from group name to its queries.
        weights: of queries by name, in the mean; 1 where absent.
        refinement: takes LinFAC's solution nearer to the exact one.

    Raises:
        InputError: a group without queries, or factors of another model.
    """
    factors.require(model)
    grouped = isinstance(query_batches, Mapping)
    named = cast(Mapping[str, Iterable[TokenBatch]], query_batches if grouped else {"": query_batches})
    gradients, counts = [], []
    for name, batches in named.items():
        gradient, count = mean_gradient(model, batches, factors.units, name, weights)
        gradients.append(gradient)
        counts.append(count)
    # Unit by unit, and what has been used is let go: the matrices are held once.
    stacked = (torch.stack([group.pop(0) for group in gradients]) for _ in factors.units)
    if refinement is None:
        matrices = tuple(factors.precondition(index, gradient) for index, gradient in enumerate(stacked))
    else:
        matrices = refine(model, tuple(stacked), factors, refinement)
    groups = tuple(named) if grouped else None
    return Query(groups, factors.units, matrices, tuple(count / sum(counts) for count in counts), factors.model)


def score_sequences(model: "PreTrainedModel", batches: Iterable[TokenBatch], query: Query) -> torch.Tensor:
    """Influence of every sequence on the query, in the order of the batches: [N], or [N, groups] float32.

    score(z) = sum_units sum_t ds_t^T V a_t. One forward and one activation-only backward pass over the data.

    Raises:
        InputError: a query of another model.
    """
    require_model(query, model)
    backoff = Backoff()
    found = [backoff.each(lambda part: _group_scores(model, part, query).cpu(), batch) for batch in batches]
    scores = torch.cat([part for parts in found for part in parts])
    return scores[:, 0] if query.groups is None else scores


def score_tokens(model: "PreTrainedModel", batch: TokenBatch, query: Query) -> torch.Tensor:
    """Each token's share of its sequence's influence: [B, T], or [B, T, groups] float32; shares add up to the score."""
    total = _Sum()
    places = {unit: index for index, unit in enumerate(query.units)}

    def contract(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        index = places[unit]
        thin = None if query.each is None else query.each[index].shares(inputs, gradients)
        total.add(_shares(inputs, gradients, query.matrices[index]) if thin is None else thin)

    backward_pass(model, batch, query.units, contract)
    return total.value[..., 0] if query.groups is None else total.value


def score_row_tokens(model: "PreTrainedModel", batch: TokenBatch, query: Query, columns: Sequence[int]) -> torch.Tensor:
    """As `score_tokens`, [B, T], of each sequence for one group alone: the one at its place in `columns`."""
    total = _Sum()
    matrices = dict(zip(query.units, query.matrices, strict=True))

    def contract(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        rows = [
            ((inputs_ta.float() @ matrices[unit][column].T) * gradients_ts.float()).sum(-1)
            for inputs_ta, gradients_ts, column in zip(inputs, gradients, columns, strict=True)
        ]
        total.add(torch.stack(rows))

    backward_pass(model, batch, query.units, contract)
    return total.value


def combination(by_group_bg: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """By how much each of several competing groups enters the one score of a sequence: [B, G].

    Half of the score is that of all queries, half that of the group which the sequence drives most, where it drives one; or of
    the group which it counters most. It counters only where it drives no group by COMPETING of what it counters another;
    where it does, and does not drive queries on the whole, all are 0: the sequence only shifts weight between groups.
    """
    shares = torch.tensor(weights, dtype=by_group_bg.dtype, device=by_group_bg.device)
    pooled = by_group_bg @ shares
    (top, highest), (bottom, lowest) = by_group_bg.max(1), by_group_bg.min(1)
    driving = (pooled + top > 0) & (top >= -COMPETING * bottom)
    countering = ~driving & (pooled + bottom < 0) & (top <= -COMPETING * bottom)
    strongest = torch.nn.functional.one_hot(torch.where(driving, highest, lowest), len(weights))
    return (shares + strongest) / 2 * (driving | countering)[:, None]


@dataclass(frozen=True)
class BatchScores:
    """by_group: [B, G]. squared_norms: [B], of each sequence's gradient over all units. shares: [B, T], of each token in
    the score on all queries."""

    by_group: torch.Tensor
    squared_norms: torch.Tensor
    shares: torch.Tensor


def score_batch(model: "PreTrainedModel", batch: TokenBatch, query: Query) -> BatchScores:
    """All that one pass over a batch tells of its influence on the query."""
    scores, shares, norms = _Sum(), _Sum(), _Sum()
    places = {unit: index for index, unit in enumerate(query.units)}
    shared = query if query.competing else query.pooled()
    by_groups = len(query.weights) > 1 and not query.competing

    def contract(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        index = places[unit]
        norms.add(squared_norms(inputs, gradients))
        shares.add(_shares(inputs, gradients, shared.matrices[index]))
        if by_groups:
            scores.add(query.by_group(index, inputs, gradients))

    backward_pass(model, batch, query.units, contract)
    by_group = scores.value if by_groups else shares.value.sum(1)
    if query.competing:
        combined = (shares.value * combination(by_group, query.weights)[:, None]).sum(2)
        return BatchScores(by_group, norms.value, combined)
    return BatchScores(by_group, norms.value, shares.value[..., 0])


def gradient_norms(model: "PreTrainedModel", batches: Iterable[TokenBatch], units: Sequence[Unit]) -> torch.Tensor:
    """Norm of every sequence's gradient over all `units`: [N] float32."""

    def norms(batch: TokenBatch) -> torch.Tensor:
        total = _Sum()
        backward_pass(model, batch, units, lambda _unit, inputs, gradients: total.add(squared_norms(inputs, gradients)))
        return total.value.sqrt().cpu()

    backoff = Backoff()
    return torch.cat([part for batch in batches for part in backoff.each(norms, batch)])


def self_influence(model: "PreTrainedModel", batches: Iterable[TokenBatch], factors: Factors) -> torch.Tensor:
    """Influence of every sequence on itself, grad^T (G_hat + lambda I)^-1 grad: [N] float32, never negative.

    Rotates each token into the eigenbasis and forms the sample's gradient there, unit by unit.

    Raises:
        InputError: factors of another model.
    """
    factors.require(model)
    return torch.from_numpy(np.concatenate(list(SelfInfluencePass(factors)(model, batches))))


@dataclass(frozen=True)
class SelfInfluencePass:
    """The pass of `self_influence`, [B] float32 for each batch."""

    factors: Factors
    most_pieces = None

    def __call__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch]) -> Iterator[np.ndarray]:
        factors = self.factors.to(model.device)
        places = {unit: index for index, unit in enumerate(factors.units)}

        def squares(batch: TokenBatch) -> np.ndarray:
            total = _Sum()

            def add(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
                norms = [
                    factors.squared_norm(places[unit], inputs[rows], gradients[rows])
                    for rows in row_chunks(inputs, gradients)
                ]
                total.add(torch.cat(norms))

            backward_pass(model, batch, factors.units, add)
            return total.value.cpu().numpy()

        backoff = Backoff()
        for batch in batches:
            yield np.concatenate(backoff.each(squares, batch))

    def to_table(self, part: np.ndarray) -> pa.Table:
        return pa.table({"self_influence": part})

    def from_table(self, table: pa.Table) -> Iterator[np.ndarray]:
        yield table["self_influence"].to_numpy()


def require_model(query: Query, model: "PreTrainedModel") -> None:
    if query.model != fingerprint(model):
        raise InputError("query: computed for another model than the one that is to score; compute it again")


def contract_groups(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor, matrices_gsa: torch.Tensor) -> torch.Tensor:
    """<M_b, V_g> for every sequence and group, [B, G], with M_b = sum_t ds_bt a_bt^T.

    In units of d_s d_a products, inner products of tokens cost G T a sequence, its gradient M_b first T + G: the
    cheaper of the two is taken.
    """
    groups, length = len(matrices_gsa), inputs_bta.shape[1]
    if groups * length <= length + groups:
        return _shares(inputs_bta, gradients_bts, matrices_gsa).sum(1)
    flat = matrices_gsa.flatten(1).T
    return torch.cat(
        [
            (gradients_bts[rows].float().mT @ inputs_bta[rows].float()).flatten(1) @ flat
            for rows in row_chunks(inputs_bta, gradients_bts)
        ]
    )


def floored(norms: np.ndarray) -> np.ndarray:
    """Norms to divide by, none below a millionth of the largest: a gradient that vanished has no direction to tell of."""
    return np.maximum(norms, max(1e-6 * norms.max(initial=0.0), np.finfo(np.float32).tiny))


def mean_gradient(
    model: "PreTrainedModel",
    batches: Iterable[TokenBatch],
    units: tuple[Unit, ...],
    group: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[list[torch.Tensor], int]:
    """Modular gradient of each unit [d_s, d_a], averaged over the sequences of `batches`, each times its weight; and their
    number."""
    sums: dict[Unit, torch.Tensor] = {}
    count = 0

    def accumulate(part: slice, unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        if weights is not None:
            of_rows = torch.tensor([weights[name] for name in batch.names[part]], device=gradients.device)
            gradients = gradients.float() * of_rows[:, None, None]
        gradient = gradients.float().flatten(0, 1).T @ inputs.float().flatten(0, 1)
        sums[unit] = sums[unit] + gradient if unit in sums else gradient

    backoff = Backoff()
    for batch in batches:
        sum_over(model, batch, units, accumulate, backoff)
        count += len(batch)
    if count == 0:
        raise InputError(f"query_gradient: group '{group}' has no queries; give at least one")
    return [sums[unit] / count for unit in units], count


def _group_scores(model: "PreTrainedModel", batch: TokenBatch, query: Query) -> torch.Tensor:
    total = _Sum()
    places = {unit: index for index, unit in enumerate(query.units)}
    backward_pass(
        model,
        batch,
        query.units,
        lambda unit, inputs, gradients: total.add(query.by_group(places[unit], inputs, gradients)),
    )
    return total.value


def _shares(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor, matrices_gsa: torch.Tensor) -> torch.Tensor:
    """ds_t^T V_g a_t of every token, [B, T, G]: one large product a group, since broadcasting over groups would copy
    every matrix once a sequence."""
    inputs, gradients = inputs_bta.float(), gradients_bts.float()
    return torch.stack([((inputs @ matrix.T) * gradients).sum(-1) for matrix in matrices_gsa], -1)


class _Sum:
    """A running sum over units."""

    def __init__(self) -> None:
        self._value: torch.Tensor | None = None

    def add(self, part: torch.Tensor) -> None:
        self._value = part if self._value is None else self._value + part

    @property
    def value(self) -> torch.Tensor:
        assert self._value is not None, "no unit was reached by the backward pass"
        return self._value
