"""Fitting of Kronecker factors to whole-sequence modular gradients."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.factors import Factors, KroneckerFactor, LinfacConfig
from lancet_pipeline.linfac.placement import settled
from lancet_pipeline.linfac.reliability import decomposed, reliabilities
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
    held_out: Iterable[TokenBatch] = (),
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
        held_out: sequences that are not in `batches`; with them the reliability is estimated.
        engine: where the passes over `batches` run; in this process where absent.

    Raises:
        InputError: no batches, or an architecture whose sublayers are unknown.
        LancetError: a factor that has no eigenvalues; names its unit.
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
    mean, dimensions = _mean_eigenvalue(sums.values(), config)
    found = Factors(config, units, (), mean, sum(sums[0].sequences), fingerprint(model), {})
    found = replace(found, reliabilities=reliabilities(model, list(held_out), found, sums))
    blocks = []
    for index, unit in enumerate(units):
        block = decomposed(sums[index].factors(config), config, unit.name, model.device)
        del sums[index]
        blocks.append(KroneckerFactor(*settled(*block.tensors().values())))
    if config.eigenvalue_correction:
        squares = [torch.zeros_like(block.eigenvalues()) for block in blocks]
        work = SquaredProjections(units, tuple(blocks), config)
        for index, part in engine.run(work, batches, len(batches), "correcting eigenvalues", track):
            squares[index] += part.to(squares[index].device)
        mean = sum(total.double().sum().item() for total in squares) / found.sequences / dimensions
        blocks = [
            replace(block, corrected=total / (found.sequences * block.dimensions()))
            for block, total in zip(blocks, squares, strict=True)
        ]
    return replace(found, blocks=tuple(blocks), mean_eigenvalue=mean)


def _mean_eigenvalue(sums: Iterable[UnitSums], config: LinfacConfig) -> tuple[float, int]:
    """Of A (x) S over all units, from the traces; and the number of eigenvalues."""
    total, number = 0.0, 0
    for unit in sums:
        gradient_factor, input_factor = unit.factors(config)
        total += gradient_factor.trace * input_factor.trace
        number += len(gradient_factor.product) * len(input_factor.product)
    return total / number, number
