"""How much data a study has: counted where the data are here, assumed where they are not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lancet_pipeline.config.study import DataSource, Study
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.paraphrases import read_paraphrases
from lancet_pipeline.models.loading import find_checkpoint

TEMPLATE_TOKENS = 10
CHARACTERS_A_TOKEN = 4.2
ASSUMED_SAMPLES = 10_000
ASSUMED_PROMPTS = 500
ASSUMED_LENGTH = 0.4
"""Mean length of a sequence over data.max_length, of data that are not here."""
ASSUMED_RESPONSE = 0.6
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
    paraphrases: int
    assumed: tuple[str, ...]


def workload_of(study: Study, model_directories: Sequence[Path], samples: int | None = None) -> Workload:
    """Counts of a study's data, with `samples` training samples where given. Data on the hub are not asked for.

    Raises:
        InputError: data that are here and do not fit.
    """
    if samples is not None and samples < 1:
        raise InputError(f"--samples {samples}: give at least 1")
    assumed: list[str] = []
    train = _read(study.data.train, responses=True)
    if train is None:
        found, unsafe = ASSUMED_SAMPLES, 0.5
        tokens = ASSUMED_LENGTH * study.data.max_length
        response = ASSUMED_RESPONSE * tokens
        if samples is None:
            found = _slice(study.data.train.part) or ASSUMED_SAMPLES
            assumed.append(f"{found:,} training samples (give --samples)")
        assumed.append(f"{tokens:.0f} tokens a sample, {response:.0f} of them its response, half of the samples unsafe")
    else:
        found = train.num_rows
        labels = train["is_safe"].to_pylist()
        unsafe = sum(label is False for label in labels) / len(labels)
        tokens, response = _lengths(study, train.to_pylist(), model_directories, assumed)
    counts = {}
    for part in ("probes", "harmful", "ood", "benign", "utility"):
        table = _read(getattr(study.data, part), responses=part == "utility")
        counts[part] = _assumed_rows(getattr(study.data, part)) if table is None else table.num_rows
    wordings = study.evaluation.paraphrases
    here = wordings is None or wordings.hub is None
    counts["paraphrases"] = read_paraphrases(wordings).num_rows if here else counts["harmful"]
    work = Workload(found, tokens, response, unsafe, **counts, assumed=tuple(assumed))
    return work if samples is None else replace(work, samples=samples)


def _read(source: DataSource, *, responses: bool):
    return None if source.hub else read_samples(source, responses=responses)


def _assumed_rows(source: DataSource) -> int:
    return source.rows[1] - source.rows[0] if source.rows else _slice(source.part) or ASSUMED_PROMPTS


def _slice(part: str | None) -> int | None:
    """Rows that a split such as `train[:10000]` names; None where it names none, or a percentage."""
    inside = (part or "").partition("[")[2].rstrip("]")
    start, _, stop = inside.partition(":")
    return int(stop) - int(start or 0) if stop.isdigit() and (start or "0").isdigit() else None


def _lengths(
    study: Study, rows: list[dict], model_directories: Sequence[Path], assumed: list[str]
) -> tuple[float, float]:
    """Mean tokens of a sequence and of its response, no longer than data.max_length, from up to LOOKED_AT samples."""
    import numpy as np

    from lancet_pipeline.data.tokenization import load_tokenizer, tokenize, train_tokenizer

    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:LOOKED_AT]]
    checkpoint = study.model.checkpoint
    if study.model.architecture is not None:
        texts = [text for row in rows[:4000] for text in (row["prompt"], row["response"])]
        tokenizer = train_tokenizer(texts, study.model.architecture.vocab_size)
    elif checkpoint and Path(find_checkpoint(checkpoint, model_directories)).is_absolute():
        tokenizer = load_tokenizer(find_checkpoint(checkpoint, model_directories))
    else:
        assumed.append(f"{CHARACTERS_A_TOKEN} characters a token, since the tokenizer of {checkpoint} is not here")
        longest = study.data.max_length
        response = float(np.mean([min(len(row["response"]) / CHARACTERS_A_TOKEN, longest) for row in chosen]))
        prompt = float(np.mean([len(row["prompt"]) / CHARACTERS_A_TOKEN for row in chosen]))
        return min(prompt + response + TEMPLATE_TOKENS, longest), response
    if study.data.chat_template is not None:
        tokenizer.chat_template = study.data.chat_template
    sequences = tokenize(tokenizer, chosen, max_length=study.data.max_length, overlength="truncate", place="data.train")
    tokens = [len(sequence) for sequence in sequences]
    response = [len(sequence) - sequence.response_start for sequence in sequences]
    return float(np.mean(tokens)), float(np.mean(response))
