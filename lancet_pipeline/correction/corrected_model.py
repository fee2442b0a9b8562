"""Correct the model of a study, on pairs found by influence or on pairs made from labels."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.correction.losses import METHODS
from lancet_pipeline.correction.replacements import beside, replaced_pairs, suffice
from lancet_pipeline.correction.trainer import Correction, RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.schema import kind
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.errors import InputError
from lancet_pipeline.models import distributed
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.loading import finite_parameters, save_model
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.selection.pairing import pair


def write_corrected_model(
    study: Study, base: Path, prepared: Path, choice: Path, out: Path, runtime: Runtime
) -> tuple[Correction, bool]:
    """Correct the model in the folder `base`, with what `selection.tables.write_choice` left in `choice`, and write it, with
    its curve, into `out`.

    On several ranks all have to call it, and rank 0 writes.

    Returns:
        What happened, and whether all parameters are finite.

    Raises:
        InputError: a method that learns from labels where there are none; see also `trainer.correct`.
    """
    samples, sequences = load_prepared(prepared)
    pairs, neutral = selected(sequences, choice)
    replaced = replaced_pairs(sequences, choice)
    if suffice(replaced, study):
        pairs = replaced
    else:
        if METHODS[study.correction.method].labelled:
            pairs = labelled_pairs(samples, sequences, study)
        pairs = beside(replaced, pairs)
    model, tokenizer = load_study_model(study, base, runtime)
    columns = samples.select(["sample_id", "category", "source"]).to_pylist()
    correction = correct(
        model,
        pairs,
        neutral,
        study.correction,
        seed=study.seed,
        categories={row["sample_id"]: kind(row) for row in columns},
        runtime=runtime,
    )
    save_model(model, tokenizer, out)
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
    pairing is random, every unsafe one where it is not balanced.

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
        samples["response"].to_pylist(),
        pairing=study.pareto.pairing,
        count=max(len(safe), len(unsafe)),
        seed=study.seed,
    )
    return [RankedPair(sequences[i], sequences[j], float(weight)) for i, j, weight in zip(*found, strict=True)]
