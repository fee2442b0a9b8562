"""The model to correct, in its three cases, and the reference that is trained without unsafe samples."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.loading import load_tokenizer, new_model
from lancet_pipeline.models.training import train
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build_base_model(
    study: Study,
    sequences: Sequence[TokenSequence],
    prepared: Path,
    initial: "PreTrainedModel | None",
    device: str,
    track: Track = no_progress,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", list[float]]:
    """Train from scratch, fine-tune `initial`, or take it as given, as the study says.

    Args:
        prepared: folder of the prepared data, which holds the tokenizer.
        initial: the checkpoint's model; None for one trained from scratch.

    Returns:
        Model, tokenizer and the loss of every training step (empty where taken as given).
    """
    tokenizer = load_tokenizer(prepared / "tokenizer")
    model = initial
    if model is None:
        assert study.model.architecture is not None
        model = new_model(study.model.architecture, tokenizer, study.data.max_length, study.seed).to(device)
    if study.model.source == "given":
        return model, tokenizer, []
    assert study.model.training is not None
    checkpointing = study.compute.activation_checkpointing
    curve = train(model, sequences, study.model.training, seed=study.seed, checkpointing=checkpointing, track=track)
    return model, tokenizer, curve


def build_reference_models(
    study: Study,
    samples: pa.Table,
    sequences: Sequence[TokenSequence],
    prepared: Path,
    initial: "Callable[[], PreTrainedModel | None]",
    device: str,
    track: Track = no_progress,
) -> "Iterator[tuple[str, PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]]":
    """Each of `evaluation.references`, built as the base model is: name, model, tokenizer, figures of its training.

    Raises:
        InputError: see `clean_samples`.
    """
    for name in study.evaluation.references:
        kept = clean_samples(samples, sequences)
        model, tokenizer, curve = build_base_model(study, kept, prepared, initial(), device, track)
        yield name, model, tokenizer, {"samples": len(kept), **({"final_loss": curve[-1]} if curve else {})}


def clean_samples(samples: pa.Table, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The sequences that are not labelled unsafe.

    Raises:
        InputError: the training data carries no labels, or no safe sample.
    """
    labels = samples["is_safe"].to_pylist()
    if all(label is None for label in labels):
        raise InputError(
            "references: retrain_clean needs labels (is_safe) in data.train; add them or drop the reference"
        )
    kept = [sequence for sequence, label in zip(sequences, labels, strict=True) if label is not False]
    if not kept:
        raise InputError("references: data.train holds no safe sample to train retrain_clean on")
    return kept
