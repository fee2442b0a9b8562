"""Similarity of what a model makes of texts: hidden states of the study's own model, or embeddings of another one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lancet_pipeline.attribution.base import Case
from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.errors import InputError, first_line
from lancet_pipeline.models.loading import check_files
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def repsim(case: Case) -> np.ndarray:
    """Cosine of the last layer's hidden states at the last token of the response (RepSim)."""
    return cosines(*_own_states(case, before=False))


def repsim_prompt(case: Case) -> np.ndarray:
    """Cosine of the last layer's hidden states at the last token before the response."""
    return cosines(*_own_states(case, before=True))


def probe(case: Case) -> np.ndarray:
    """How far a linear probe, fitted to tell the model's harmful outputs from its harmless ones by their hidden states, takes each
    training sample for harmful: [N].

    Raises:
        InputError: no harmless output.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if case.queries == len(case.asked):
        raise InputError(
            "influence.method: probe tells harmful from harmless outputs, and the model gave no harmless one"
        )
    training, asked = _own_states(case, before=False)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
    fitted.fit(asked, np.arange(len(asked)) < case.queries)
    return fitted.decision_function(training).astype(np.float64)


def embeddings(case: Case) -> np.ndarray:
    """Cosine of sentence embeddings by `influence.embedding_model`: mean of the last hidden states over all tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    checkpoint = case.runtime.find(case.study.influence.embedding_model)
    if Path(checkpoint).is_absolute():
        check_files(Path(checkpoint), "influence.embedding_model")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModel.from_pretrained(checkpoint, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"influence.embedding_model = {checkpoint}: could not be loaded ({first_line(error)}); "
            "put the model below a model directory, or check name and connection"
        ) from error
    model.to(case.runtime.device).eval()
    limit = tokenizer.model_max_length
    tokenizer.model_max_length = min(limit, getattr(model.config, "max_position_embeddings", limit))

    def embedded(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(list(texts[start : start + 32]), padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(model.device)
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append(((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy())
        return np.concatenate(found)

    return cosines(embedded(case.documents), embedded(case.asked_texts))


def hidden_states(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int, *, before: bool
) -> np.ndarray:
    """Last layer's hidden state at the last token of each sequence, or at the last one before its response: [N, d] float32."""
    import torch

    def at_places(chosen: Sequence[TokenSequence]) -> np.ndarray:
        batch = collate(chosen).to(model.device)
        hidden = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[-1]
        places = [max(s.response_start, 1) - 1 if before else len(s) - 1 for s in chosen]
        return hidden[torch.arange(len(chosen)), places].float().cpu().numpy()

    backoff, groups = Backoff(), bucketed(sequences, batch_tokens)
    with torch.no_grad():
        states = [part for group in groups for part in backoff.over(at_places, [sequences[i] for i in group])]
    return np.concatenate(states)[np.argsort([i for group in groups for i in group])]


def _own_states(case: Case, *, before: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of the training samples and of the outputs."""
    batch_tokens = case.runtime.batch_tokens
    training, asked = (
        hidden_states(case.model, sequences, batch_tokens, before=before)
        for sequences in (case.sequences, case.asked_sequences)
    )
    return training, asked


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of every row of [N, d] with every row of [Q, d]: [N, Q] float64."""
    left, right = (values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12) for values in (left, right))
    return (left @ right.T).astype(np.float64)
