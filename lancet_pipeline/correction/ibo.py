"""IBO: rank the countering samples over the driving ones, hold the model still on the rest (arXiv 2412.16451)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.correction.losses import GENERATORS, ranking_loss
from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.errors import LancetError
from lancet_pipeline.models.likelihood import perplexity, response_logits, response_logps
from lancet_pipeline.models.training import optimise
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import CorrectionSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RankedPair:
    """The countering sequence to prefer, the driving one to rank below it, and the weight of the pair."""

    preferred: TokenSequence
    dispreferred: TokenSequence
    weight: float


@dataclass(frozen=True)
class Correction:
    """What happened: one row a look at the budget, the step whose parameters were kept, and why it ended."""

    curve: list[dict[str, float]]
    best_step: int
    ended: str


def correct(
    model: "PreTrainedModel",
    pairs: Sequence[RankedPair],
    neutral: Sequence[TokenSequence],
    settings: CorrectionSettings,
    *,
    seed: int,
    batch_tokens: int = 4096,
    track: Track = no_progress,
) -> Correction:
    """Correct `model` in place and leave it with the best parameters that respect the retain budget.

    L = L_COR + mu E_{D0}[D_U(pi_theta, pi_s)] + gamma/2 ||theta - theta_s||^2. Log-probabilities and logits of the
    uncorrected model are computed once. Every `check_every` steps the perplexity of D0 samples kept apart is
    compared with the uncorrected model's; past `retain_budget` the correction ends.

    Raises:
        LancetError: too few neutral samples, a diverging loss, or a budget that is broken at the first look already.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(neutral))
    watched = [neutral[i] for i in order[: min(settings.retain_validation, len(neutral) // 2)]]
    retained = [neutral[i] for i in order[len(watched) :]]
    if not watched:
        raise LancetError(f"correction: {len(neutral)} indifferent samples are too few to watch the retain budget")

    pair_order = _schedule(len(pairs), settings.steps * settings.pairs_per_step, generator)
    retain_order = _schedule(len(retained), settings.steps * settings.retain_per_step, generator)
    reference = _Reference(model, pairs, [retained[i] for i in set(retain_order)], batch_tokens)
    initial_perplexity = perplexity(model, watched, batch_tokens)
    start = {name: value.detach().clone() for name, value in model.named_parameters()} if settings.gamma else {}
    divergence = GENERATORS[settings.generator]
    parts: list[tuple[float, float, float]] = []

    def loss_of(step: int) -> torch.Tensor:
        chosen = [pairs[i] for i in pair_order[step * settings.pairs_per_step :][: settings.pairs_per_step]]
        kept = [retained[i] for i in retain_order[step * settings.retain_per_step :][: settings.retain_per_step]]
        ranking, margin = _ranking(model, chosen, reference, settings)
        logits, _ = response_logits(model, collate(kept).to(model.device))
        retain = divergence(logits, reference.logits_of(kept).to(logits)).mean()
        loss = ranking + settings.mu * retain
        if settings.gamma:
            distance = sum((p - start[name]).square().sum() for name, p in model.named_parameters() if p.requires_grad)
            loss = loss + 0.5 * settings.gamma * distance
        parts.append((ranking.item(), retain.item(), margin))
        return loss

    losses: Iterator[Callable[[], torch.Tensor]] = (lambda s=s: loss_of(s) for s in range(settings.steps))
    progress = optimise(
        model,
        losses,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_fraction=settings.warmup_fraction,
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
    )
    curve: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] | None = None
    best_step, ended = 0, "all steps done"
    for step, loss in track(progress, settings.steps, "correcting"):
        if step % settings.check_every and step != settings.steps:
            continue
        ratio = perplexity(model, watched, batch_tokens) / initial_perplexity
        ranking, retain, margin = np.mean(parts[-settings.check_every :], axis=0).tolist()
        curve.append(
            {
                "step": step,
                "loss": loss,
                "ranking": ranking,
                "retain": retain,
                "margin": margin,
                "perplexity_ratio": ratio,
            }
        )
        if ratio > settings.retain_budget:
            ended = f"retain budget reached at step {step}: perplexity ratio {ratio:.3f} > {settings.retain_budget}"
            break
        if best is None or margin >= max(row["margin"] for row in curve):
            best, best_step = _parameters(model), step
    if best is None:
        raise LancetError(f"correction: {ended}, at the first look already; lower correction.learning_rate or raise mu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in best:
                parameter.copy_(best[name])
    return Correction(curve, best_step, ended)


class _Reference:
    """Log-probabilities of all pair sequences and logits of all scheduled neutral ones, under the uncorrected model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        pairs: Sequence[RankedPair],
        retained: Sequence[TokenSequence],
        batch_tokens: int,
    ) -> None:
        self._logps: dict[str, float] = {}
        self._logits: dict[str, torch.Tensor] = {}
        influential = {s.sample_id: s for p in pairs for s in (p.preferred, p.dispreferred)}
        with torch.no_grad():
            for batch_sequences in _in_batches(list(influential.values()), batch_tokens):
                logps = response_logps(model, collate(batch_sequences).to(model.device))
                self._logps.update(zip((s.sample_id for s in batch_sequences), logps.tolist(), strict=True))
            for batch_sequences in _in_batches(retained, batch_tokens):
                batch = collate(batch_sequences).to(model.device)
                logits, _ = response_logits(model, batch)
                rows = logits.cpu().split(batch.loss_mask[:, 1:].sum(1).tolist())
                self._logits.update(zip((s.sample_id for s in batch_sequences), rows, strict=True))

    def logps_of(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        return torch.tensor([self._logps[sequence.sample_id] for sequence in sequences])

    def logits_of(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        return torch.cat([self._logits[sequence.sample_id] for sequence in sequences])


def _ranking(
    model: "PreTrainedModel", pairs: Sequence[RankedPair], reference: _Reference, settings: CorrectionSettings
) -> tuple[torch.Tensor, float]:
    sequences = [p.preferred for p in pairs] + [p.dispreferred for p in pairs]
    batch = collate(sequences).to(model.device)
    gains = response_logps(model, batch) - reference.logps_of(sequences).to(model.device)
    if settings.length_normalised:
        gains = gains / batch.loss_mask[:, 1:].sum(1)
    preferred, dispreferred = gains.split(len(pairs))
    weights = torch.ones(len(pairs), device=gains.device)
    if settings.pair_weight == "influence":
        weights = torch.tensor([p.weight for p in pairs], device=gains.device)
    return ranking_loss(preferred, dispreferred, weights, settings.beta), (preferred - dispreferred).mean().item()


def _schedule(items: int, count: int, generator: np.random.Generator) -> list[int]:
    """`count` indices in shuffled passes over all items."""
    return [int(i) for _ in range(-(-count // items)) for i in generator.permutation(items)][:count]


def _in_batches(sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    for indices in bucketed(sequences, batch_tokens):
        yield [sequences[i] for i in indices]


def _parameters(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
