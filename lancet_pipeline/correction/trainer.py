"""One trainer for every correction: IBO (arXiv 2412.16451) and the methods that it is compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lancet_pipeline.config.study import CorrectionSettings
from lancet_pipeline.correction.losses import GENERATORS, METHODS, Method, Pairs, Responses
from lancet_pipeline.correction.precision import trainable
from lancet_pipeline.correction.reference import Reference
from lancet_pipeline.correction.task_vector import negate
from lancet_pipeline.data.batches import TokenSequence, collate, shuffled_passes
from lancet_pipeline.data.schema import rare
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.files import digest
from lancet_pipeline.models import distributed
from lancet_pipeline.models.checkpoints import CHECKPOINT_SECONDS, Checkpoint, CheckpointFile, training_key
from lancet_pipeline.models.likelihood import read_logits, response_logps, sequence_losses, token_logps
from lancet_pipeline.models.memory import activation_checkpointing
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.models.training import Optimiser, optimiser_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PATIENCE = 3
"""Looks past the retain budget, one after the other, that end a correction: its first steps are its roughest."""

SMALLEST_GROUP = 8
"""D0 samples kept apart of one category below which they are watched with other small ones."""


@dataclass(frozen=True)
class RankedPair:
    """The sequence to prefer (countering, labelled safe, or `written` by a person in place of the other), the one to rank below
    it, and the weight of the pair."""

    preferred: TokenSequence
    dispreferred: TokenSequence
    weight: float
    written: bool = False


@dataclass(frozen=True)
class Correction:
    """What happened: one row a look at the budget, the step whose parameters were kept, and why it ended."""

    curve: list[dict[str, float]]
    best_step: int
    ended: str

    @property
    def kept(self) -> dict[str, float]:
        """The row of the parameters that were kept."""
        return next(row for row in self.curve if row["step"] == self.best_step)


def correct(
    model: "PreTrainedModel",
    pairs: Sequence[RankedPair],
    neutral: Sequence[TokenSequence],
    settings: CorrectionSettings,
    *,
    seed: int,
    categories: Mapping[str, str] = MappingProxyType({}),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    runtime: Runtime = Runtime(),
) -> Correction:
    """Correct `model` in place and leave it with the best parameters that respect the retain budget.

    The loss is that of `settings.method` on pairs, plus mu times what it does with indifferent samples, plus gamma/2
    ||theta - theta_s||^2; for IBO, L_COR + mu E_{D0}[D_U(pi_theta, pi_s)], and for written answers their negative log-likelihood
    per token besides. Log-probabilities and logits of the uncorrected
    model are computed once. Every `check_every` steps the perplexity of D0 samples kept apart is compared with the
    uncorrected model's, in the category where it rose most: past `retain_budget` parameters do not count, mu doubles, and PATIENCE such
    looks in a row end the correction. Best is the largest margin (`losses.Pairs.margin`) among the others.

    Called on every rank of a process group, with the same arguments, it shards the model (`distributed.shard`), and each rank
    takes its share of the pairs and D0 samples of every step.

    Args:
        neutral: D0.
        categories: sample_id -> category, of D0 samples that have one.
        runtime: its checkpoint is written no more often than every `checkpoint_seconds` and gone at the end. A correction
            that finds its own goes on from there, on any number of ranks, to the same parameters.

    Raises:
        InputError: no pair, a pair of one and the same text, or too few neutral samples.
        LancetError: a diverging loss, or a budget that is broken at every look.
    """
    _require_pairs(pairs)
    key = training_key(model, settings, seed, _bytes(pairs, neutral))
    file = CheckpointFile(runtime.checkpoint, key, checkpoint_seconds)
    with trainable(model, settings.lora, seed), activation_checkpointing(model, runtime.activation_checkpointing):
        work = _Work(model, pairs, neutral, settings, seed, categories, runtime.batch_tokens)
        if (found := file.load()) is not None:
            work.restore(found)
        try:
            steps = range(work.optimiser.step, settings.steps)
            for _ in runtime.track(steps, len(steps), "correcting"):
                work.advance()
                if work.ended:
                    break
                if file.due():
                    file.save(work.snapshot())
        except LancetError as error:
            if runtime.checkpoint is None or not work.best_step:
                raise
            file.save(work.snapshot())
            raise LancetError(f"{error}; {runtime.checkpoint} holds the parameters of step {work.best_step}") from None
        if settings.method == "task_vector":
            correction = negate(model, work.start, settings, work.look)
        else:
            correction = work.finish()
    file.remove()
    return Correction(*correction)


class _Work:
    """A correction on its way: parameters and optimiser, the curve so far, the best parameters so far."""

    def __init__(
        self,
        model: "PreTrainedModel",
        pairs: Sequence[RankedPair],
        neutral: Sequence[TokenSequence],
        settings: CorrectionSettings,
        seed: int,
        categories: Mapping[str, str],
        batch_tokens: int,
    ) -> None:
        self.model, self.settings, self._batch_tokens = model, settings, batch_tokens
        retained, self._watched, generator = hold_apart(neutral, settings, seed)
        self._groups = _groups([categories.get(sequence.sample_id, "") for sequence in self._watched])
        self.method: Method = METHODS[settings.method]
        self.optimiser = Optimiser(model, steps=settings.steps, weight_decay=0.0, **optimiser_settings(settings))
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_step, self.ended = 0, ""
        self._pairs = [
            pairs[i] for i in shuffled_passes(len(pairs), settings.steps * settings.pairs_per_step, generator)
        ]
        order = shuffled_passes(len(retained), settings.steps * settings.retain_per_step, generator)
        self._retained = [retained[i] for i in order]
        keep_logits = self.method.retain == "divergence" and settings.mu
        self._reference = Reference(
            model,
            [getattr(pair, side) for pair in self._pairs for side in self.method.sides],
            [s for step in range(settings.steps) for s in self._own_retained(step)[0]] if keep_logits else [],
            batch_tokens,
        )
        self._initial_losses = self._losses()
        keep_start = settings.gamma > 0 or settings.method == "task_vector"
        self.start = {name: p.detach().clone() for name, p in self._trained()} if keep_start else {}
        self._parts: list[tuple[float, float, float]] = []  # since the last look

    def advance(self) -> None:
        """One step, and a look at the budget where one is due."""
        objective, parts = self._loss()
        loss = self.optimiser.descend(objective)
        self._parts.append(parts)
        step = self.optimiser.step
        if self.settings.method == "task_vector" or (step % self.settings.check_every and step != self.settings.steps):
            return
        correction, retain, margin = np.mean(self._parts, axis=0).tolist()
        self._parts.clear()
        row = {"step": step, "loss": loss, "correction": correction, "retain": retain, "margin": margin}
        ratio = self._perplexity_ratio()
        self.curve.append({**row, "perplexity_ratio": ratio})
        if not self._within(ratio):
            latest = self.curve[-PATIENCE:]
            if len(latest) == PATIENCE and not any(self._within(row["perplexity_ratio"]) for row in latest):
                self.ended = f"retain budget broken up to step {step}: perplexity ratio {ratio:.3f} > {self.settings.retain_budget}"
        elif margin >= max(row["margin"] for row in self.curve if self._within(row["perplexity_ratio"])):
            best = distributed.gathered(dict(self._trained()))
            self.best, self.best_step = {name: tensor.to("cpu", copy=True) for name, tensor in best.items()}, step

    def finish(self) -> tuple[list[dict[str, float]], int, str]:
        """Leave the model with the best parameters."""
        if not self.best_step:
            raise LancetError(
                f"correction: the retain budget of {self.settings.retain_budget} was broken at every look; lower "
                "correction.learning_rate or raise correction.mu or correction.retain_budget"
            )
        self._load(self.best)
        return self.curve, self.best_step, self.ended or "all steps done"

    def look(self) -> dict[str, float]:
        """Margin on the first pairs and perplexity ratio of the parameters as they are."""
        with torch.no_grad():
            pairs = self._read(self._pairs[: 4 * self.settings.pairs_per_step])
        return {"margin": pairs.margin(), "perplexity_ratio": self._perplexity_ratio()}

    def snapshot(self) -> Checkpoint:
        reached = {"step": self.optimiser.step, "best_step": self.best_step}
        progress = {**reached, "curve": self.curve, "parts": self._parts}
        return Checkpoint(distributed.gathered(dict(self._trained())), self.optimiser.state(), self.best, progress)

    def restore(self, checkpoint: Checkpoint) -> None:
        self._load(checkpoint.parameters)
        self.optimiser.restore(checkpoint.progress["step"], checkpoint.moments)
        self.curve, self.best = checkpoint.progress["curve"], checkpoint.best
        self.best_step, self._parts = checkpoint.progress["best_step"], checkpoint.progress["parts"]

    def _loss(self) -> tuple[torch.Tensor, tuple[float, float, float]]:
        """What the next step descends; and of it the method's loss and the retain term, and the margin."""
        settings, step = self.settings, self.optimiser.step
        chosen = self._pairs[step * settings.pairs_per_step :][: settings.pairs_per_step]
        pairs = self._read(chosen)
        correction = self.method.loss(pairs, settings)
        loss, retain = correction, torch.zeros(())
        if self.method.retain is not None and settings.mu:
            retain = self._retain(*self._own_retained(step))
            loss = loss + self._mu * retain
        if settings.gamma:
            shifts = [distributed.local(p - self.start[name]) for name, p in self._trained()]
            distance = distributed.total(torch.stack([shift.square().sum() for shift in shifts]).sum())
            loss = loss + 0.5 * settings.gamma * distance
        return loss, (correction.item(), retain.item(), pairs.margin())

    def _read(self, chosen: Sequence[RankedPair]) -> Pairs:
        sides, (own, _) = self.method.sides, distributed.share(chosen)
        batch = collate([getattr(pair, side) for side in sides for pair in own]).to(self.model.device)
        found = (response_logps(self.model, batch), batch.loss_tokens)
        logps, tokens = (distributed.whole(values.view(len(sides), -1), len(chosen)) for values in found)
        reference = self._reference.logps_of([getattr(pair, side) for side in sides for pair in chosen])
        parts = zip(logps, reference.to(logps).view(len(sides), -1), tokens, strict=True)
        read: dict[str, Any] = {side: Responses(*part) for side, part in zip(sides, parts, strict=True)}
        weighted = self.settings.pair_weight == "influence"
        weights = torch.tensor([pair.weight if weighted else 1.0 for pair in chosen], device=logps.device)
        written = [pair.written for pair in chosen]
        return Pairs(
            read.get("preferred"),
            read.get("dispreferred"),
            weights,
            torch.tensor(written, device=logps.device) if any(written) else None,
        )

    def _own_retained(self, step: int) -> tuple[Sequence[TokenSequence], bool]:
        """This rank's share of the indifferent samples of a step."""
        count = self.settings.retain_per_step
        return distributed.share(self._retained[step * count :][:count])

    def _retain(self, kept: Sequence[TokenSequence], mine: bool) -> torch.Tensor:
        batch = collate(kept).to(self.model.device)
        if self.method.retain == "likelihood":
            terms = -token_logps(self.model, batch)
        else:
            divergence, reference = GENERATORS[self.settings.generator], self._reference.logits_of(kept)
            terms = read_logits(self.model, batch, lambda logits, rows: divergence(logits, reference[rows].to(logits)))
        return distributed.mean(terms.mean(), len(terms) * mine)

    def _perplexity_ratio(self) -> float:
        """Of the samples kept apart, in the category where it is largest."""
        with np.errstate(over="ignore"):
            return float(np.exp(np.max(self._losses() - self._initial_losses)))

    def _losses(self) -> np.ndarray:
        """Mean loss of a token of the samples kept apart, by category."""
        losses = sequence_losses(self.model, self._watched, self._batch_tokens)[:, [0, 2]]
        sums = np.array(distributed.totals(*np.concatenate([losses[members].sum(0) for members in self._groups])))
        return sums[::2] / sums[1::2]

    @property
    def _mu(self) -> float:
        """Weight of D0: twice as much after each look past the budget."""
        return self.settings.mu * 2 ** sum(not self._within(row["perplexity_ratio"]) for row in self.curve)

    def _within(self, ratio: float) -> bool:
        return ratio <= self.settings.retain_budget  # as no ratio is that is not a number

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _load(self, values: dict[str, torch.Tensor]) -> None:
        distributed.load(dict(self._trained()), values)


def _require_pairs(pairs: Sequence[RankedPair]) -> None:
    if not pairs:
        raise InputError("correction: there is no pair to learn from; see the selection")
    for pair in pairs:
        if np.array_equal(pair.preferred.input_ids, pair.dispreferred.input_ids):
            raise InputError(
                f"correction: samples {pair.preferred.sample_id} and {pair.dispreferred.sample_id} form a pair but have "
                "the same tokens; remove one of them from the training data"
            )


def hold_apart(
    neutral: Sequence[TokenSequence], settings: CorrectionSettings, seed: int
) -> tuple[list[TokenSequence], list[TokenSequence], np.random.Generator]:
    """Indifferent samples to hold the model still on, as far as `retain_tokens` of their responses, and those kept apart, which a
    hash of their names picks, so that they stay when others come or go."""
    generator = np.random.default_rng(seed)
    order = sorted(range(len(neutral)), key=lambda i: digest([seed, neutral[i].sample_id]))
    watched = [neutral[i] for i in order[: min(settings.retain_validation, len(neutral) // 2)]]
    retained = [neutral[i] for i in order[len(watched) :]]
    if not watched:
        raise InputError(
            f"correction: {len(neutral)} indifferent samples are too few to watch the retain budget; lower pareto.alpha"
        )
    if settings.retain_tokens is not None:
        tokens = settings.retain_tokens
        retained = [replace(s, input_ids=s.input_ids[: max(s.response_start, 1) + tokens]) for s in retained]
    return retained, watched, generator


def _groups(categories: Sequence[str]) -> list[np.ndarray]:
    """Indices of the members of each category, small ones together."""
    names = np.asarray(categories, dtype=object)
    names[np.isin(names.astype(str), rare(categories, SMALLEST_GROUP))] = ""
    return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]


def _bytes(pairs: Sequence[RankedPair], neutral: Sequence[TokenSequence]) -> Iterator[bytes]:
    for pair in pairs:
        yield repr((pair.weight, pair.written, pair.preferred.key(), pair.dispreferred.key())).encode()
    yield from (sequence.key() for sequence in neutral)
