"""Whether a model, and what was fitted to it, may stay as it is when its training data changes a little.

What was trained or fitted keeps the keys of the sequences it saw. Later data is compared with those, so that drift is
always measured from the data the model was really trained on, however often it was kept since.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import ReuseSettings, Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.models.likelihood import mean_loss
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEEN = "seen.parquet"
MEASURED = 512
"""Sequences whose loss is measured, of those that stayed and of those that came."""


@dataclass(frozen=True)
class Drift:
    """How far present data is from the data that a model saw.

    added, removed: sequences; an edited one counts as both. changed: the larger of the two over the present number.
    loss: what the sequences that came add to the model's mean loss, in nats per response token.
    """

    added: int
    removed: int
    changed: float
    loss: float

    def within(self, limits: ReuseSettings) -> bool:
        return self.changed <= limits.max_changed and self.loss <= limits.max_drift

    def metrics(self) -> dict[str, float]:
        return {"reused": 1.0} | {f"drift_{name}": float(value) for name, value in asdict(self).items()}


def record_seen(sequences: Sequence[TokenSequence], folder: Path) -> None:
    """Keep which sequences a model, or factors, in `folder` saw."""
    pq.write_table(pa.table({"key": pa.array([s.key() for s in sequences], pa.binary(16))}), folder / SEEN)


@dataclass(frozen=True)
class Change:
    """What became of the sequences that a model saw: those that came, how many went, the larger of both over all."""

    added: list[TokenSequence]
    removed: int
    share: float


def changed(seen: Path, sequences: Sequence[TokenSequence]) -> Change:
    """How `sequences` differ from those that `record_seen` wrote into the folder `seen`."""
    before = Counter(pq.read_table(seen / SEEN)["key"].to_pylist())
    added = []
    for sequence in sequences:
        key = sequence.key()
        if before[key]:
            before[key] -= 1
        else:
            added.append(sequence)
    removed = before.total()
    return Change(added, removed, max(len(added), removed) / len(sequences))


def measure_drift(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    change: Change,
    study: Study,
    runtime: Runtime = Runtime(),
) -> Drift:
    """Drift of `sequences`, which `change` says what is new of. Ours: at most 2 x 512 forward passes, whatever the data's size."""
    added = change.added
    if not added or len(added) == len(sequences):
        return Drift(len(added), change.removed, change.share, 0.0 if not added else math.inf)
    new = {id(sequence) for sequence in added}
    stayed = [sequence for sequence in sequences if id(sequence) not in new]
    generator = np.random.default_rng(study.seed)
    arrived, known = (
        mean_loss(model, [group[i] for i in generator.permutation(len(group))[:MEASURED]], runtime.batch_tokens)
        for group in (added, stayed)
    )
    return Drift(len(added), change.removed, change.share, len(added) / len(sequences) * (arrived - known))


def may_stay(
    model: "PreTrainedModel",
    previous: Path,
    sequences: Sequence[TokenSequence],
    study: Study,
    runtime: Runtime = Runtime(),
) -> Drift | None:
    """The drift where both limits of `model.reuse` hold; None where what `previous` holds has to be made anew.

    Args:
        previous: folder of the model, or of factors of `model`; None is returned where it does not say what they saw.
    """
    limits = study.model.reuse
    if limits is None or not (previous / SEEN).is_file():
        return None
    change = changed(previous, sequences)
    if change.share > limits.max_changed:
        return None
    drift = measure_drift(model, sequences, change, study, runtime)
    return drift if drift.within(limits) else None
