"""One optimiser for everything that is trained, and supervised training on top of it."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel

from lancet_pipeline.config.study import Training
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, collate, epoch_batches
from lancet_pipeline.errors import LancetError
from lancet_pipeline.models import distributed
from lancet_pipeline.models.checkpoints import CHECKPOINT_SECONDS, Checkpoint, CheckpointFile, training_key
from lancet_pipeline.models.likelihood import token_logps
from lancet_pipeline.models.memory import Backoff, States, activation_checkpointing, adamw, attempt
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Optimiser:
    """AdamW with linear warm-up and cosine decay to a tenth of the learning rate over `steps` steps."""

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        steps: int,
        learning_rate: float,
        warmup_fraction: float,
        weight_decay: float,
        max_grad_norm: float,
        optimizer_states: States = "32bit",
    ) -> None:
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        self._adamw = adamw(self._parameters, optimizer_states, learning_rate=learning_rate, weight_decay=weight_decay)
        self._wide = optimizer_states == "32bit"
        self._steps, self._learning_rate, self._max_grad_norm = steps, learning_rate, max_grad_norm
        self._warmup = max(1, round(warmup_fraction * steps))
        self.step = 0

    def descend(self, loss: torch.Tensor) -> float:
        """One step down `loss`, a scalar; returns its value.

        Raises:
            LancetError: the loss or its gradient is not finite; the parameters are then those before the step.
        """
        self._adamw.zero_grad(set_to_none=True)
        return self._update(_differentiated(loss))

    def descend_in_parts(
        self, batch: TokenBatch, loss_of: Callable[[TokenBatch], torch.Tensor], backoff: Backoff
    ) -> float:
        """As `descend`, of the sum of `loss_of` over parts of `batch` that fit into memory; of the whole where it fits.

        Raises:
            InputError: a sequence that does not fit by itself.
        """
        rows, width = batch.input_ids.shape
        while True:
            self._adamw.zero_grad(set_to_none=True)
            losses: list[torch.Tensor] = []
            for part in backoff.parts(slice(0, rows), width):
                loss = attempt(lambda part=part: _differentiated(loss_of(batch.part(part))))
                if loss is None:
                    backoff.smaller(part, width, batch.name)
                    break
                losses.append(loss[0])
            else:
                return self._update(torch.stack(losses).sum())

    def _update(self, loss: torch.Tensor) -> float:
        norm = distributed.full(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise LancetError(
                f"training diverged at step {self.step + 1} of {self._steps}: loss {loss.item()}; lower learning_rate"
            )
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate * self._factor()
        self._adamw.step()
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, torch.Tensor]:
        """Moments of the trained parameters by `parameter/moment`, whole; on several ranks at rank 0 only."""
        # The 256 levels of 8-bit moments are one tensor for all parameters, which a file of tensors refuses.
        return distributed.gathered(
            {
                f"{name}/{key}": value.clone() if key.startswith("qmap") else torch.as_tensor(value)
                for name, parameter in self._named.items()
                for key, value in self._adamw.state[parameter].items()
            }
        )

    def restore(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Go on after `step` steps with the `state` of then, which rank 0 has."""
        self.step = step
        for key in distributed.agreed(list(state)):
            name, _, moment = key.rpartition("/")
            parameter, value = self._named[name], state.get(key)
            if moment == "step":  # a tensor of the host in one AdamW, a number in the other
                done: Any = distributed.agreed(value)
                held = done if self._wide else int(done)
            elif self._wide:
                held = distributed.placed(value, parameter.detach())
            else:
                held = state[key].to(parameter.device)
            self._adamw.state[parameter][moment] = held

    def _factor(self) -> float:
        if self.step < self._warmup:
            return (self.step + 1) / self._warmup
        done = (self.step - self._warmup) / max(1, self._steps - self._warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def train(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    settings: Training,
    *,
    seed: int,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    runtime: Runtime = Runtime(),
) -> list[float]:
    """Train `model` in place on the mean token loss of each batch; returns the loss of every step.

    A batch that does not fit into memory is taken in parts whose gradients add up to its own. Called on every rank of a
    process group, with the same arguments, it shards the model (`distributed.shard`), and each rank takes its share of
    every batch.

    The checkpoint of `runtime` is written no more often than every `checkpoint_seconds` and gone at the end. Training that
    finds its own goes on from there, on any number of ranks.

    Raises:
        LancetError: there is nothing to train on, or the loss diverges.
        InputError: a sequence that does not fit by itself.
    """
    if not sequences:
        raise LancetError("training: there is no sequence to train on")
    generator = np.random.default_rng(seed)
    per_epoch = math.ceil(len(sequences) / settings.batch_size)
    steps = max(1, round(settings.epochs * per_epoch))
    file = CheckpointFile(
        runtime.checkpoint, training_key(model, settings, seed, (s.key() for s in sequences)), checkpoint_seconds
    )
    distributed.shard(model)
    device = model.device

    def schedule() -> Iterator[list[int]]:
        while True:
            yield from epoch_batches(sequences, settings.batch_size, generator)

    model.train()
    optimiser = Optimiser(model, steps=steps, **optimiser_settings(settings))
    curve: list[float] = []
    if (found := file.load()) is not None:
        distributed.load(dict(model.named_parameters()), found.parameters)
        curve = found.progress["curve"]
        optimiser.restore(len(curve), found.moments)
    begun, backoff = len(curve), Backoff()
    with activation_checkpointing(model, runtime.activation_checkpointing):
        for indices in runtime.track(itertools.islice(schedule(), begun, steps), steps - begun, "training"):
            own, mine = distributed.share(indices)
            batch = collate([sequences[i] for i in own], loss_on=settings.loss_on).to(device)
            tokens = batch.loss_tokens.sum()

            def loss_of(part: TokenBatch, tokens: torch.Tensor = tokens, mine: bool = mine) -> torch.Tensor:
                return distributed.mean(-token_logps(model, part).sum() / tokens, int(tokens) * mine)

            curve.append(optimiser.descend_in_parts(batch, loss_of, backoff))
            if file.due():
                parameters = distributed.gathered(dict(model.named_parameters()))
                file.save(Checkpoint(parameters, optimiser.state(), {}, {"curve": curve}))
    file.remove()
    model.eval()
    return curve


def _differentiated(loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    return loss.detach()


def optimiser_settings(settings: BaseModel) -> dict[str, Any]:
    """Those of the settings of a training or correction that `Optimiser` takes."""
    names = {"learning_rate", "warmup_fraction", "weight_decay", "max_grad_norm", "optimizer_states"}
    return settings.model_dump(include=names)
