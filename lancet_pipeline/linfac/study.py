"""LinFAC over the data of a study: which sequences, in which batches, into which table."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.linfac.factors import Factors, LinfacConfig, fit_factors
from lancet_pipeline.linfac.refinement import Refinement
from lancet_pipeline.linfac.scores import Query, query_gradient, score_tokens
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP_TOKENS = 8


def fit_study_factors(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], study: Study, track: Track = no_progress
) -> Factors:
    """Factors from a random part of the training sequences, `linfac.factor_samples` at most."""
    settings = study.linfac
    config = LinfacConfig(
        units=settings.units,
        factors=settings.factors,
        eigenvalue_correction=settings.eigenvalue_correction,
        labels=settings.labels,
        damping=settings.damping,
        max_dim=settings.max_dim,
        seed=study.seed,
    )
    batches, count = _batches(_sample(sequences, settings.factor_samples, study.seed), study.compute.batch_tokens)
    return fit_factors(model, track(batches, count, "fitting factors"), config)


def query_sequences(
    tokenizer: "PreTrainedTokenizerBase", queries: Sequence[Mapping[str, Any]], max_length: int
) -> list[TokenSequence]:
    """The model's own outputs as sequences (rows with sample_id, prompt, response)."""
    return tokenize(tokenizer, list(queries), max_length=max_length, overlength="truncate", place="queries")


def study_query(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    factors: Factors,
    queries: Sequence[Mapping[str, Any]],
    sequences: Sequence[TokenSequence],
    study: Study,
) -> Query:
    """All `queries` as one batch query, refined on a random part of the training `sequences` where the study says so."""
    batches, _ = _batches(query_sequences(tokenizer, queries, study.data.max_length), study.compute.batch_tokens)
    settings, refinement = study.linfac.refinement, None
    if settings is not None:
        used, _ = _batches(_sample(sequences, settings.samples, study.seed + 1), study.compute.batch_tokens)
        refinement = Refinement(used, settings.steps)
    normalised = study.linfac.length_normalised
    return query_gradient(model, batches, factors, length_normalised=normalised, refinement=refinement)


def influence_table(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    samples: pa.Table,
    sequences: Sequence[TokenSequence],
    factors: Factors,
    queries: Sequence[Mapping[str, Any]],
    study: Study,
    track: Track = no_progress,
) -> tuple[pa.Table, float]:
    """One row a sample: sample_id, score, and its most telling tokens with their shares; and the seconds it took.

    Rows stand in the order of `sequences`. `tokens`: list of {position, token, share}, largest |share| first.
    """
    started = time.monotonic()
    query = study_query(model, tokenizer, factors, queries, sequences, study)
    groups = bucketed(sequences, study.compute.batch_tokens)
    rows: list[dict[str, Any]] = [{} for _ in sequences]
    for group in track(groups, len(groups), "scoring"):
        shares = score_tokens(model, collate([sequences[i] for i in group]), query).cpu().numpy()
        for index, token_shares in zip(group, shares, strict=True):
            rows[index] = _row(sequences[index], token_shares[: len(sequences[index])], tokenizer)
    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            ("score", pa.float64()),
            (
                "tokens",
                pa.list_(pa.struct([("position", pa.int32()), ("token", pa.string()), ("share", pa.float32())])),
            ),
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    for column in ("source", "category"):
        table = table.append_column(column, samples[column])
    return table, time.monotonic() - started


def write_scores(table: pa.Table, folder: Path) -> None:
    pq.write_table(table, folder / "scores.parquet")


def read_scores(folder: Path) -> pa.Table:
    return pq.read_table(folder / "scores.parquet")


def _row(sequence: TokenSequence, shares: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    top = np.argsort(-np.abs(shares), kind="stable")[:TOP_TOKENS]
    tokens = [
        {"position": int(p), "token": tokenizer.decode([int(sequence.input_ids[p])]), "share": float(shares[p])}
        for p in top
    ]
    return {"sample_id": sequence.sample_id, "score": float(shares.sum(dtype=np.float64)), "tokens": tokens}


def _sample(sequences: Sequence[TokenSequence], count: int, seed: int) -> list[TokenSequence]:
    chosen = np.random.default_rng(seed).permutation(len(sequences))[:count]
    return [sequences[i] for i in chosen]


def _batches(sequences: Sequence[TokenSequence], batch_tokens: int) -> tuple[Iterator[TokenBatch], int]:
    groups = bucketed(sequences, batch_tokens)
    return (collate([sequences[i] for i in group]) for group in groups), len(groups)
