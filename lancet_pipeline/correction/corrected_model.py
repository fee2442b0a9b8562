"""Correct the model of a study, on pairs found by influence or on pairs made from labels."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.correction.losses import METHODS
from lancet_pipeline.correction.trainer import Correction, RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.models import distributed
from lancet_pipeline.models.loading import finite_parameters, load_model, save_model
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.selection.pairing import pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def correct_study_model(
    model: "PreTrainedModel",
    samples: pa.Table,
    sequences: Sequence[TokenSequence],
    choice: Path,
    study: Study,
    *,
    checkpoint: Path | None = None,
    track: Track = no_progress,
) -> Correction:
    """Correct `model` in place, with what `selection.study.write_choice` left in the folder `choice`.

    Args:
        samples, sequences: the prepared training data.

    Raises:
        InputError: a method that learns from labels where there are none; see also `trainer.correct`.
    """
    pairs, neutral = selected(sequences, choice)
    if METHODS[study.correction.method].labelled:
        pairs = labelled_pairs(samples, sequences, study)
    return correct(
        model,
        pairs,
        neutral,
        study.correction,
        seed=study.seed,
        batch_tokens=study.compute.batch_tokens,
        checkpoint=checkpoint,
        checkpointing=study.compute.activation_checkpointing,
        track=track,
    )


def write_corrected_model(
    study: Study,
    base: Path,
    prepared: Path,
    choice: Path,
    out: Path,
    *,
    device: str,
    checkpoint: Path | None = None,
    track: Track = no_progress,
) -> tuple[Correction, bool]:
    """Correct the model in the folder `base` and write it, with its curve, into `out`; see `correct_study_model`.

    On several ranks all have to call it, and rank 0 writes.

    Returns:
        What happened, and whether all parameters are finite.
    """
    model = load_model(base, dtype=study.model.dtype, device=device)
    correction = correct_study_model(model, *load_prepared(prepared), choice, study, checkpoint=checkpoint, track=track)
    save_model(model, load_tokenizer(base), out)
    if distributed.first():
        (out / "correction.json").write_text(json.dumps(asdict(correction), indent=2))
    return correction, finite_parameters(model)


def selected(sequences: Sequence[TokenSequence], choice: Path) -> tuple[list[RankedPair], list[TokenSequence]]:
    """Pairs of a countering and a driving sequence, and D0."""
    by_id = {sequence.sample_id: sequence for sequence in sequences}
    pairs = [
        RankedPair(by_id[row["preferred_id"]], by_id[row["dispreferred_id"]], row["weight"])
        for row in pq.read_table(choice / "pairs.parquet").to_pylist()
    ]
    roles = pq.read_table(choice / "samples.parquet").to_pylist()
    return pairs, [by_id[row["sample_id"]] for row in roles if row["role"] == "neutral"]


def labelled_pairs(samples: pa.Table, sequences: Sequence[TokenSequence], study: Study) -> list[RankedPair]:
    """Pairs of a safe and an unsafe sequence, formed as `pareto.pairing` says; every safe one comes at least once where the
    pairing is random, every unsafe one always.

    Raises:
        InputError: no sample is labelled safe, or none unsafe.
    """
    labels = samples["is_safe"].to_pylist()
    safe, unsafe = (np.array([i for i, label in enumerate(labels) if label is wanted]) for wanted in (True, False))
    if not len(safe) or not len(unsafe):
        raise InputError(
            f"correction: {study.correction.method} learns from labels, and data.train holds {len(safe)} samples with "
            f"is_safe true and {len(unsafe)} with false; label them or take a method without labels"
        )
    found = pair(
        safe,
        unsafe,
        np.zeros(len(labels)),
        samples["prompt"].to_pylist(),
        pairing=study.pareto.pairing,
        count=max(len(safe), len(unsafe)),
        seed=study.seed,
    )
    return [RankedPair(sequences[i], sequences[j], weight) for i, j, weight in found]
