"""Fitting of Kronecker factors to whole-sequence modular gradients, and how far their sample sufficed."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors, KroneckerFactor, LinfacConfig, sketched
from lancet_pipeline.linfac.placement import settled
from lancet_pipeline.linfac.units import Labels, Unit, find_units, sum_over
from lancet_pipeline.models.loading import fingerprint
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fit_factors(model: "PreTrainedModel", batches: Iterable[TokenBatch], config: LinfacConfig) -> Factors:
    """Kronecker factors of every unit (docs/method.md, Factors).

    Whole sequences: S = E[M M^T], A = E[M^T M] / tr(S), where no two sequences are pooled before the outer product.
    Tokens: S = E[sum_t ds_t ds_t^T], A = the mean of a_t a_t^T over tokens.

    Costs one forward and one activation-only backward pass over `batches` (two with eigenvalue correction, which
    keeps the token ids in memory), and two eigendecompositions a unit, on the model's device. Sums and factors for which
    the device has no room are kept by the host (`placement`). The result does not depend on how sequences are batched.

    Raises:
        InputError: no batches, or an architecture whose sublayers are unknown.
    """
    units = tuple(find_units(model, config.units))
    labels = (
        None
        if config.labels == "true"
        else (lambda logits, batch, rows: sample_labels(logits, batch, config.seed, rows))
    )
    sums = _OuterProducts(config)
    if config.eigenvalue_correction:
        batches = list(batches)
    backoff = Backoff()
    for batch in batches:
        with sums.counting(batch):
            sum_over(model, batch, units, sums.add, backoff, labels)
    if sums.sequences == 0:
        raise InputError("fit_factors: no batches; give at least one sequence")
    mean = sums.mean_eigenvalue()
    reliability = _Reliability(config.damping * mean, config.seed)
    blocks = []
    for unit in units:
        gradient_factor, input_factor = (matrix.to(model.device) for matrix in sums.factors(unit))
        block = KroneckerFactor(*_eigh(gradient_factor), *_eigh(input_factor))
        if sums.sequences > 1:
            reliability.add(block, [sums.factors(unit, half) for half in (0, 1)])
        sums.drop(unit)
        blocks.append(KroneckerFactor(*settled(*block.tensors().values())))
    if config.eigenvalue_correction:
        blocks = _corrected(model, batches, units, blocks, config, labels)
        values = [block.eigenvalues() for block in blocks]
        mean = sum(value.double().sum().item() for value in values) / sum(value.numel() for value in values)
    return Factors(config, units, tuple(blocks), mean, sums.sequences, fingerprint(model), reliability.estimate())


class _OuterProducts:
    """Sums of outer products of each unit, kept apart for every other sequence: two halves, whose disagreement tells
    how far the sample sufficed."""

    def __init__(self, config: LinfacConfig) -> None:
        self._config = config
        self._halves: tuple[dict[Unit, tuple[torch.Tensor, torch.Tensor]], ...] = ({}, {})
        self._sequences, self._tokens = [0, 0], [0, 0]
        self._batch: TokenBatch

    @property
    def sequences(self) -> int:
        return sum(self._sequences)

    @contextmanager
    def counting(self, batch: TokenBatch) -> Iterator[None]:
        """For the pass over `batch` in which `add` is called."""
        self._batch = batch
        yield
        for half in (0, 1):
            attention = batch.attention_mask[self._rows(half)]
            self._tokens[half] += int(attention.sum())
        even = (len(batch) + 1) // 2
        first = self.sequences % 2
        self._sequences[first] += even
        self._sequences[1 - first] += len(batch) - even

    def add(self, part: slice, unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        inputs, gradients = (sketched(values, self._config) for values in (inputs, gradients))
        attention = self._batch.attention_mask[part]
        added = []
        for half in (0, 1):
            rows = self._rows(half, part.start)
            if len(inputs[rows]) == 0:
                added.append(None)
            elif self._config.factors == "sequence":
                added.append(sequence_outer_products(inputs[rows], gradients[rows]))
            else:
                attended = inputs[rows][attention[rows].bool().to(inputs.device)]
                added.append((token_outer_product(gradients[rows].flatten(0, 1)), token_outer_product(attended)))
        for sums, products in zip(self._halves, added, strict=True):
            if products is not None and unit in sums:
                for total, product in zip(sums[unit], products, strict=True):
                    total.add_(product.to(total.device))
            elif products is not None:
                sums[unit] = settled(*products)

    def factors(self, unit: Unit, half: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """S and A of a unit, of all sequences or of one half of them."""
        halves = [half] if half is not None else [0, 1]
        parts = [self._halves[h][unit] for h in halves if unit in self._halves[h]]
        sequences, tokens = (sum(counts[h] for h in halves) for counts in (self._sequences, self._tokens))
        (first, second), *others = parts
        for gradient, inputs in others:  # each may be on the device or the host
            first, second = first + gradient.to(first.device), second + inputs.to(second.device)
        gradient_factor = first / sequences
        scale = sequences * gradient_factor.trace().item() if self._config.factors == "sequence" else tokens
        return gradient_factor, second / max(scale, torch.finfo(torch.float32).tiny)

    def drop(self, unit: Unit) -> None:
        for half in self._halves:
            half.pop(unit, None)

    def mean_eigenvalue(self) -> float:
        """Of A (x) S over all units, from the traces."""
        total, number = 0.0, 0
        for unit in self._halves[0]:
            gradient_factor, input_factor = self.factors(unit)
            total += gradient_factor.trace().double().item() * input_factor.trace().double().item()
            number += len(gradient_factor) * len(input_factor)
        return total / number

    def _rows(self, half: int, first: int = 0) -> slice:
        """The sequences of a half among those from the `first` of the batch on."""
        return slice((half + self.sequences + first) % 2, None, 2)


class _Reliability:
    """Estimated correlation of scores with those that factors from unlimited sequences would give.

    A query gradient q drawn from N(0, G_hat) is preconditioned with the factors of either half of the sequences. To
    first order the two results differ by (G + lambda)^-1 (G_1 - G_2) (G + lambda)^-1 q, and the whole sample's result
    is in error by half of that. Sequences drawn from N(0, G_hat) turn the error into a variance of scores, set against
    the variance of the scores themselves. One random probe a unit; no pass over data.
    """

    def __init__(self, damping_value: float, seed: int) -> None:
        self._damping_value = damping_value
        self._generator = torch.Generator().manual_seed(seed)
        self._signal = self._error = 0.0

    def add(self, block: KroneckerFactor, halves: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        eigenvalues = torch.outer(block.gradient_values, block.input_values).clamp_min(0)
        damped = eigenvalues + self._damping_value
        probe = torch.randn(eigenvalues.shape, generator=self._generator).to(eigenvalues.device)
        solved = eigenvalues.sqrt() * probe / damped
        unrotated = block.gradient_vectors @ solved @ block.input_vectors.T
        first, second = (gradient.to(probe.device) @ unrotated @ inputs.to(probe.device) for gradient, inputs in halves)
        difference = block.gradient_vectors.T @ (first - second) @ block.input_vectors
        self._signal += (eigenvalues * solved.square()).sum().item()
        self._error += (eigenvalues * (difference / damped / 2).square()).sum().item()

    def estimate(self) -> float:
        return (self._signal / (self._signal + self._error)) ** 0.5 if self._signal > 0 else float("nan")


def _corrected(
    model: "PreTrainedModel",
    batches: Iterable[TokenBatch],
    units: tuple[Unit, ...],
    blocks: list[KroneckerFactor],
    config: LinfacConfig,
    labels: Labels | None,
) -> list[KroneckerFactor]:
    """The blocks with the mean squared modular gradient along each pair of their eigenvectors."""
    squares = [torch.zeros_like(block.eigenvalues()) for block in blocks]
    places = {unit: index for index, unit in enumerate(units)}

    def add_squares(_part: slice, unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        block, total = blocks[places[unit]], squares[places[unit]]
        rotated_inputs = sketched(inputs, config) @ block.input_vectors.to(inputs.device)
        rotated_gradients = sketched(gradients, config) @ block.gradient_vectors.to(gradients.device)
        total += (rotated_gradients.mT @ rotated_inputs).square_().sum(0).to(total.device)

    sequences, backoff = 0, Backoff()
    for batch in batches:
        sum_over(model, batch, units, add_squares, backoff, labels)
        sequences += len(batch)
    return [replace(block, corrected=total / sequences) for block, total in zip(blocks, squares, strict=True)]


def token_outer_product(vectors_nd: torch.Tensor) -> torch.Tensor:
    """sum_n v_n v_n^T, [d, d]."""
    return vectors_nd.T @ vectors_nd


def sequence_outer_products(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_b M_b M_b^T [d_s, d_s] and sum_b M_b^T M_b [d_a, d_a], with M_b = sum_t ds_bt a_bt^T.

    M^T M = a^T (ds ds^T) a needs no M; the cheaper of the two contractions is taken from the shapes.
    """
    _, length, width_a = inputs_bta.shape
    width_s = gradients_bts.shape[-1]
    direct = length * width_s * width_a + width_s**2 * width_a + width_s * width_a**2
    through_tokens = 2 * length**2 * (width_a + width_s) + length * (width_a**2 + width_s**2)
    if direct <= through_tokens:
        modular_bsa = gradients_bts.mT @ inputs_bta
        stacked_rows = modular_bsa.transpose(0, 1).flatten(1)
        stacked_columns = modular_bsa.flatten(0, 1)
        return stacked_rows @ stacked_rows.T, stacked_columns.T @ stacked_columns
    token_gradients_btu = gradients_bts @ gradients_bts.mT
    token_inputs_btu = inputs_bta @ inputs_bta.mT
    gradient_outer = gradients_bts.flatten(0, 1).T @ (token_inputs_btu @ gradients_bts).flatten(0, 1)
    input_outer = inputs_bta.flatten(0, 1).T @ (token_gradients_btu @ inputs_bta).flatten(0, 1)
    return gradient_outer, input_outer


def sample_labels(logits: torch.Tensor, batch: TokenBatch, seed: int, rows: slice = slice(None)) -> torch.Tensor:
    """One label for each of the loss positions `rows` from the model's own distribution, given there: [n] int64.

    The uniform draws of a sequence are seeded by its tokens, so that they do not depend on the batch it is in.
    """
    draws = []
    for ids, attended, mask in zip(batch.input_ids, batch.attention_mask, batch.loss_mask[:, 1:], strict=True):
        tokens = ids[attended.bool()].cpu().numpy().tobytes()
        digest = hashlib.sha256(seed.to_bytes(8, "little") + tokens).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        draws.append(torch.rand(int(mask.sum()), generator=generator))
    uniform = torch.cat(draws)[rows].to(logits.device)
    cumulative = logits.softmax(-1).cumsum(-1)
    picked = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return picked.clamp_max(logits.shape[-1] - 1)


def _eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    # Rounding can leave zero eigenvalues slightly negative; a clearly negative one is a defect and stays visible.
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values.abs() <= rounding, values.clamp_min(0), values), vectors
