"""How much data a study has: counted where the data are here, assumed where they are not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lancet_pipeline.config.study import DataSource, Study
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.tokenization import load_tokenizer, tokenize, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.paraphrases import read_paraphrases
from lancet_pipeline.models.loading import find_checkpoint

TEMPLATE_TOKENS, CHARACTERS_A_TOKEN = 10, 4.2
ASSUMED_SAMPLES, ASSUMED_PROMPTS = 10_000, 500
ASSUMED_LENGTH, ASSUMED_RESPONSE = 0.4, 0.6
"""Of data that are not here: mean length of a sequence over data.max_length, and of its response over the sequence."""
LOOKED_AT = 512
"""Samples whose length is measured."""


@dataclass(frozen=True)
class Workload:
    """samples: training sequences. tokens, response: mean tokens of a sequence, and of its response. unsafe: share of the samples
    that are labelled unsafe. The others count prompts. assumed: what no data here say, in words."""

    samples: int
    tokens: float
    response: float
    unsafe: float
    probes: int
    harmful: int
    ood: int
    benign: int
    utility: int
    paraphrases: int = 0
    assumed: tuple[str, ...] = ()


def workload_of(study: Study, model_directories: Sequence[Path], samples: int | None = None) -> Workload:
    """Counts of a study's data, with `samples` training samples where given. Data on the hub are not asked for.

    Raises:
        InputError: data that are here and do not fit.
    """
    if samples is not None and samples < 1:
        raise InputError(f"--samples {samples}: give at least 1")
    parts = ("probes", "harmful", "ood", "benign", "utility")
    counts = {part: _rows(getattr(study.data, part), responses=part == "utility") for part in parts}
    wordings = study.evaluation.paraphrases
    counts["paraphrases"] = counts["harmful"] if wordings and wordings.hub else read_paraphrases(wordings).num_rows
    if study.data.train.hub:
        found, tokens = _slice(study.data.train) or ASSUMED_SAMPLES, ASSUMED_LENGTH * study.data.max_length
        response = ASSUMED_RESPONSE * tokens
        assumed = [f"{found:,} training samples (give --samples)"] if samples is None else []
        assumed.append(f"{tokens:.0f} tokens a sample, {response:.0f} of them its response, half of the samples unsafe")
        work = Workload(found, tokens, response, 0.5, **counts, assumed=tuple(assumed))
    else:
        rows = read_samples(study.data.train, responses=True).to_pylist()
        unsafe = sum(row["is_safe"] is False for row in rows) / len(rows)
        tokens, response, assumed = _lengths(study, rows, model_directories)
        work = Workload(len(rows), tokens, response, unsafe, **counts, assumed=assumed)
    return work if samples is None else replace(work, samples=samples)


def _rows(source: DataSource, *, responses: bool) -> int:
    if not source.hub:
        return read_samples(source, responses=responses).num_rows
    return source.rows[1] - source.rows[0] if source.rows else _slice(source) or ASSUMED_PROMPTS


def _slice(source: DataSource) -> int | None:
    """Rows that a split such as `train[:10000]` names; None where it names none, or a percentage."""
    start, _, stop = (source.part or "").partition("[")[2].rstrip("]").partition(":")
    return int(stop) - int(start or 0) if stop.isdigit() and (start or "0").isdigit() else None


def _lengths(study: Study, rows: list[dict], model_directories: Sequence[Path]) -> tuple[float, float, tuple[str, ...]]:
    """Mean tokens of a sequence and of its response, no longer than data.max_length, from up to LOOKED_AT samples; and what was
    assumed."""
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:LOOKED_AT]]
    longest, folder = study.data.max_length, find_checkpoint(study.model.checkpoint or "", model_directories)
    if study.model.architecture is not None:
        texts = [text for row in rows[:4000] for text in (row["prompt"], row["response"])]
        tokenizer = train_tokenizer(texts, study.model.architecture.vocab_size)
    elif Path(folder).is_absolute():
        tokenizer = load_tokenizer(folder)
    else:
        response = float(np.mean([min(len(row["response"]) / CHARACTERS_A_TOKEN, longest) for row in chosen]))
        prompt = float(np.mean([len(row["prompt"]) / CHARACTERS_A_TOKEN for row in chosen]))
        why = f"{CHARACTERS_A_TOKEN} characters a token, since the tokenizer of {study.model.checkpoint} is not here"
        return min(prompt + response + TEMPLATE_TOKENS, longest), response, (why,)
    if study.data.chat_template is not None:
        tokenizer.chat_template = study.data.chat_template
    sequences = tokenize(tokenizer, chosen, max_length=longest, overlength="truncate", place="data.train")
    responses = [len(sequence) - sequence.response_start for sequence in sequences]
    return float(np.mean([len(sequence) for sequence in sequences])), float(np.mean(responses)), ()
