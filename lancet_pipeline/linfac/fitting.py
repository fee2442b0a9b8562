"""Fitting of Kronecker factors to whole-sequence modular gradients, and how far their sample sufficed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors, KroneckerFactor, LinfacConfig
from lancet_pipeline.linfac.placement import settled
from lancet_pipeline.linfac.sums import OuterProducts, SquaredProjections, UnitSums
from lancet_pipeline.linfac.units import find_units
from lancet_pipeline.models.engine import Engine, InProcess
from lancet_pipeline.models.loading import fingerprint
from lancet_pipeline.progress import Track, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fit_factors(
    model: "PreTrainedModel",
    batches: Iterable[TokenBatch],
    config: LinfacConfig,
    *,
    engine: Engine | None = None,
    track: Track = no_progress,
) -> Factors:
    """Kronecker factors of every unit (docs/method.md, Factors).

    Whole sequences: S = E[M M^T], A = E[M^T M] / tr(S), where no two sequences are pooled before the outer product.
    Tokens: S = E[sum_t ds_t ds_t^T], A = the mean of a_t a_t^T over tokens.

    Costs one forward and one activation-only backward pass over `batches` (two with eigenvalue correction), which are
    kept in memory, and two eigendecompositions a unit, on the model's device. Sums and factors for which the device has no
    room are kept by the host (`placement`). The result does not depend on how sequences are batched.

    Args:
        engine: where the passes over `batches` run; in this process where absent.

    Raises:
        InputError: no batches, or an architecture whose sublayers are unknown.
    """
    units, batches, engine = tuple(find_units(model, config.units)), list(batches), engine or InProcess(model)
    if not batches:
        raise InputError("fit_factors: no batches; give at least one sequence")
    sums: dict[int, UnitSums] = {}
    for part in engine.run(OuterProducts(units, config), batches, len(batches), "fitting factors", track):
        if part.unit in sums:
            sums[part.unit].merge(part)
        else:
            sums[part.unit] = part
    mean = _mean_eigenvalue(sums.values(), config)
    sequences = sum(sums[0].sequences)
    reliability = _Reliability(config.damping * mean, config.seed)
    blocks = []
    for index in range(len(units)):
        unit = sums.pop(index)
        gradient_factor, input_factor = (matrix.to(model.device) for matrix in unit.factors(config))
        block = KroneckerFactor(*_eigh(gradient_factor), *_eigh(input_factor))
        if sequences > 1:
            reliability.add(block, [unit.factors(config, half) for half in (0, 1)])
        blocks.append(KroneckerFactor(*settled(*block.tensors().values())))
    if config.eigenvalue_correction:
        squares = [torch.zeros_like(block.eigenvalues()) for block in blocks]
        work = SquaredProjections(units, tuple(blocks), config)
        for index, part in engine.run(work, batches, len(batches), "correcting eigenvalues", track):
            squares[index] += part.to(squares[index].device)
        blocks = [replace(b, corrected=total / sequences) for b, total in zip(blocks, squares, strict=True)]
        values = [block.eigenvalues() for block in blocks]
        mean = sum(value.double().sum().item() for value in values) / sum(value.numel() for value in values)
    return Factors(config, units, tuple(blocks), mean, sequences, fingerprint(model), reliability.estimate())


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


def _mean_eigenvalue(sums: Iterable[UnitSums], config: LinfacConfig) -> float:
    """Of A (x) S over all units, from the traces."""
    total, number = 0.0, 0
    for unit in sums:
        gradient_factor, input_factor = unit.factors(config)
        total += gradient_factor.trace().double().item() * input_factor.trace().double().item()
        number += len(gradient_factor) * len(input_factor)
    return total / number


def _eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    # Rounding can leave zero eigenvalues slightly negative; a clearly negative one is a defect and stays visible.
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values.abs() <= rounding, values.clamp_min(0), values), vectors
