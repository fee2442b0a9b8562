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
from lancet_pipeline.models.likelihood import perplexity
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


def measure_drift(
    model: "PreTrainedModel", seen: Path, sequences: Sequence[TokenSequence], study: Study, runtime: Runtime = Runtime()
) -> Drift:
    """Drift of `sequences` from those that `record_seen` wrote into the folder `seen`. Ours: at most 2 x 512 forward passes,
    whatever the size of the data. Where nothing stayed, or more changed than the study allows, the loss counts as infinite."""
    left = Counter(pq.read_table(seen / SEEN)["key"].to_pylist())
    added: list[TokenSequence] = []
    stayed: list[TokenSequence] = []
    for sequence in sequences:
        key = sequence.key()
        (stayed if left[key] else added).append(sequence)
        left[key] -= left[key] > 0
    share = max(len(added), left.total()) / len(sequences)
    if not added or not stayed or (study.model.reuse is not None and share > study.model.reuse.max_changed):
        return Drift(len(added), left.total(), share, math.inf if added else 0.0)
    generator = np.random.default_rng(study.seed)
    arrived, known = (
        perplexity(model, [group[i] for i in generator.permutation(len(group))[:MEASURED]], runtime.batch_tokens)
        for group in (added, stayed)
    )
    return Drift(len(added), left.total(), share, len(added) / len(sequences) * math.log(arrived / known))


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
    if study.model.reuse is None or not (previous / SEEN).is_file():
        return None
    drift = measure_drift(model, previous, sequences, study, runtime)
    return drift if drift.within(study.model.reuse) else None
