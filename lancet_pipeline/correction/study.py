"""IBO on a study's pairs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from lancet_pipeline.correction.ibo import Correction, RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def correct_study_model(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], pairs: Path, study: Study, track: Track = no_progress
) -> Correction:
    """Correct `model` in place with the pairs and the indifferent samples that `selection.study.write_choice` left."""
    by_id = {sequence.sample_id: sequence for sequence in sequences}
    ranked = [
        RankedPair(by_id[row["preferred_id"]], by_id[row["dispreferred_id"]], row["weight"])
        for row in pq.read_table(pairs / "pairs.parquet").to_pylist()
    ]
    chosen = pq.read_table(pairs / "samples.parquet").to_pylist()
    neutral = [by_id[row["sample_id"]] for row in chosen if row["role"] == "neutral"]
    settings, tokens = study.correction, study.compute.batch_tokens
    return correct(model, ranked, neutral, settings, seed=study.seed, batch_tokens=tokens, track=track)


def write_curve(correction: Correction, folder: Path) -> None:
    (folder / "correction.json").write_text(json.dumps(asdict(correction), indent=2))
