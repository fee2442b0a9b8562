"""The model to correct, in its three cases, and the reference that is trained without unsafe samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.files import take_over
from lancet_pipeline.models import distributed
from lancet_pipeline.models.loading import LoadedModel, finite_parameters, load_model, new_model, save_model
from lancet_pipeline.models.reuse import Drift, may_stay, record_seen
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.models.training import train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseModel:
    """What became of a base model: its number of parameters, whether all are finite, the loss of every training step (none
    where it was taken as given), and the drift of the data where it was kept over it."""

    parameters: int
    finite: bool
    curve: list[float]
    drift: Drift | None = None


def load_study_model(study: Study, folder: Path, runtime: Runtime) -> LoadedModel:
    """Model and tokenizer that a stage of `study` left in `folder`."""
    return load_model(folder, dtype=study.model.dtype, device=runtime.device), load_tokenizer(folder)


def write_base_model(study: Study, prepared: Path, out: Path, runtime: Runtime) -> BaseModel:
    """Build the base model on the prepared data and write it into the folder `out`; the rest as `build_base_model` has it.

    On several ranks all have to call it, and rank 0 writes.
    """
    _, sequences = load_prepared(prepared)
    model, tokenizer, curve = build_base_model(study, sequences, prepared, runtime)
    save_model(model, tokenizer, out)
    if study.model.reuse is not None and distributed.first():
        record_seen(sequences, out)
    return BaseModel(model.num_parameters(), finite_parameters(model), curve)


def build_base_model(
    study: Study, sequences: Sequence[TokenSequence], prepared: Path, runtime: Runtime
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", list[float]]:
    """Train from scratch, fine-tune the study's checkpoint, or take it as given, as the study says.

    Args:
        prepared: folder of the prepared data, which holds the tokenizer.

    Returns:
        Model, tokenizer and the loss of every training step (empty where taken as given).
    """
    settings, tokenizer = study.model, load_tokenizer(prepared / "tokenizer")
    if settings.checkpoint is not None:
        found = runtime.find(settings.checkpoint)
        model = load_model(found, revision=settings.revision, dtype=settings.dtype, device=runtime.device)
    else:
        assert settings.architecture is not None
        model = new_model(settings.architecture, tokenizer, study.data.max_length, study.seed)
        if distributed.first():
            cast(Any, model).to(runtime.device)  # in place
    if settings.training is None:
        distributed.shard(model)
        return model, tokenizer, []
    return model, tokenizer, train(model, sequences, settings.training, seed=study.seed, runtime=runtime)


def kept_base_model(study: Study, previous: Path, prepared: Path, out: Path, runtime: Runtime) -> BaseModel | None:
    """The model in `previous`, taken over into `out` where the study allows it for the present data; None elsewhere."""
    model, _ = load_study_model(study, previous, runtime)
    drift = may_stay(model, previous, load_prepared(prepared)[1], study, runtime)
    if drift is None:
        return None
    take_over(previous, out)
    return BaseModel(model.num_parameters(), finite_parameters(model), [], drift)


def write_reference_models(study: Study, prepared: Path, out: Path, runtime: Runtime) -> tuple[dict[str, float], bool]:
    """Write each of `evaluation.references`, built as the base model is, into a folder of its name below `out`.

    Returns:
        Figures of their training, named after the model; and whether all parameters are finite.

    Raises:
        InputError: see `clean_samples`.
    """
    samples, sequences = load_prepared(prepared)
    figures, finite = {}, True
    for name in study.evaluation.references:
        kept = clean_samples(samples, sequences)
        model, tokenizer, curve = build_base_model(study, kept, prepared, runtime)
        (out / name).mkdir()
        save_model(model, tokenizer, out / name)
        figures |= {f"{name}_samples": len(kept), **({f"{name}_final_loss": curve[-1]} if curve else {})}
        finite = finite and finite_parameters(model)
    return figures, finite


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
