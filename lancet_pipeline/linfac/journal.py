"""Scoring of whole data sets: memory of one batch, every part kept as soon as it is scored.

    JOURNAL/<hash of query, model and settings>/<hash of its own bytes>.parquet

A part holds the scores of some sequences under the hashes of their tokens. So a killed run goes on where it was, and a
sequence that was scored once for a query is never scored again for it, in whatever order or company it comes back.
"""

import hashlib
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.errors import IntegrityError
from lancet_pipeline.linfac.scores import Query, require_model, score_batch
from lancet_pipeline.models.memory import Backoff
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel


COLUMNS = ("by_group", "pooled", "norms", "positions", "shares")


@dataclass(frozen=True)
class Scores:
    """Influence of N sequences, in their order.

    by_group: [N, G] float32, one column a query group. pooled: [N] float64, on all queries as one batch, or as of
    `scores.combination` where groups compete.
    norms: [N] float32, of their gradients over all units. positions, shares: [N, K] int32 and float32, the tokens with the
    largest share of the pooled score, largest first; position -1 where a sequence has fewer than K. reused: how many
    needed no scoring, since the journal or an equal sequence has theirs.
    """

    by_group: np.ndarray
    pooled: np.ndarray
    norms: np.ndarray
    positions: np.ndarray
    shares: np.ndarray
    reused: int


def score_dataset(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    query: Query,
    runtime: Runtime = Runtime(),
    *,
    top_tokens: int = 8,
    flush_seconds: float = 20.0,
) -> Scores:
    """Score `sequences`, those that the journal of `runtime` does not hold yet.

    The journal is written to every `flush_seconds`, between batches. Batches are formed from the longest sequence to
    the shortest, so that what a killed run left over forms the very batches that the whole run would have formed.

    Raises:
        InputError: a query of another model.
        IntegrityError: a part of the journal whose bytes have changed.
    """
    require_model(query, model)
    keys = [sequence.key() for sequence in sequences]
    folder = None if runtime.journal is None else runtime.journal / _settings_key(query, top_tokens)
    known = _Rows.empty(len(query.weights), top_tokens) if folder is None else _read(folder, query, top_tokens)
    held = {key: row for row, key in enumerate(known.keys)}
    missing = list({key: index for index, key in enumerate(keys) if key not in held}.values())
    work, parts = ScorePass(query, top_tokens), [known]
    new = [sequences[i] for i in missing]
    for part in _scored(model, work, new, flush_seconds, runtime):
        if folder is not None:
            _write(folder, part)
        parts.append(part)
    rows = _Rows.joined(parts)
    places = {key: row for row, key in enumerate(rows.keys)}
    order = np.array([places[key] for key in keys], dtype=np.int64)
    return Scores(*(getattr(rows, column)[order] for column in COLUMNS), reused=len(keys) - len(missing))


@dataclass(frozen=True)
class _Rows:
    keys: list[bytes]
    by_group: np.ndarray
    pooled: np.ndarray
    norms: np.ndarray
    positions: np.ndarray
    shares: np.ndarray

    @staticmethod
    def empty(groups: int, top_tokens: int) -> "_Rows":
        return _Rows(
            [],
            np.empty((0, groups), np.float32),
            np.empty(0, np.float64),
            np.empty(0, np.float32),
            np.empty((0, top_tokens), np.int32),
            np.empty((0, top_tokens), np.float32),
        )

    @staticmethod
    def joined(parts: "Sequence[_Rows]") -> "_Rows":
        return _Rows(
            [key for part in parts for key in part.keys],
            *(np.concatenate([getattr(part, column) for part in parts]) for column in COLUMNS),
        )

    def table(self) -> pa.Table:
        return pa.table(
            {
                "key": pa.array(self.keys, pa.binary()),
                "pooled": self.pooled,
                "norms": self.norms,
                **{
                    column: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
                    for column, values in (
                        ("by_group", self.by_group),
                        ("positions", self.positions),
                        ("shares", self.shares),
                    )
                },
            }
        )

    @staticmethod
    def of(table: pa.Table) -> "_Rows":
        table = table.combine_chunks()

        def matrix(column: str) -> np.ndarray:
            values = table[column].chunk(0)
            return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)

        return _Rows(
            table["key"].to_pylist(),
            matrix("by_group"),
            table["pooled"].to_numpy(),
            table["norms"].to_numpy(),
            matrix("positions"),
            matrix("shares"),
        )


@dataclass(frozen=True)
class ScorePass:
    """The pass that scores: for each batch its rows, whose keys stay with those who know the sequences."""

    query: Query
    top_tokens: int
    most_pieces = None

    def __call__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch]) -> Iterator[_Rows]:
        query, backoff = self.query.to(model.device), Backoff()

        def rows(batch: TokenBatch) -> _Rows:
            found = score_batch(model, batch, query)
            lengths = batch.attention_mask.sum(1).tolist()
            positions, largest = largest_shares(found.shares, lengths, self.top_tokens)
            pooled, norms = found.shares.double().sum(1).cpu().numpy(), found.squared_norms.sqrt().cpu().numpy()
            return _Rows([b""] * len(batch), found.by_group.cpu().numpy(), pooled, norms, positions, largest)

        for batch in batches:
            yield _Rows.joined(backoff.each(rows, batch))

    def to_table(self, part: _Rows) -> pa.Table:
        return part.table()

    def from_table(self, table: pa.Table) -> Iterator[_Rows]:
        yield _Rows.of(table)


def _scored(
    model: "PreTrainedModel",
    work: ScorePass,
    sequences: list[TokenSequence],
    flush_seconds: float,
    runtime: Runtime,
) -> Iterator[_Rows]:
    """Rows of all `sequences`, those of the last `flush_seconds` together."""
    groups = bucketed(sequences, runtime.batch_tokens)
    keys = iter([sequences[i].key() for group in groups for i in group])
    batches = (collate([sequences[i] for i in group]) for group in groups)
    waiting: list[_Rows] = []
    last = time.monotonic()
    for part in runtime.engine(model).run(work, batches, len(groups), "scoring", runtime.track):
        waiting.append(replace(part, keys=[next(keys) for _ in part.keys]))
        if time.monotonic() - last >= flush_seconds:
            yield _Rows.joined(waiting)
            waiting, last = [], time.monotonic()
    if waiting:
        yield _Rows.joined(waiting)


def largest_shares(shares_bt: torch.Tensor, lengths: list[int], top_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and shares [B, K] of the largest shares by magnitude; an earlier token goes before an equal one."""
    real = (
        torch.arange(shares_bt.shape[1], device=shares_bt.device)
        < torch.tensor(lengths, device=shares_bt.device)[:, None]
    )
    size = torch.where(real, shares_bt.abs(), -1.0)
    order = size.argsort(dim=1, descending=True, stable=True)[:, :top_tokens]
    kept = torch.gather(real, 1, order)
    positions = torch.where(kept, order, -1).cpu().numpy().astype(np.int32)
    values = torch.where(kept, torch.gather(shares_bt, 1, order), 0.0).cpu().numpy().astype(np.float32)
    width = ((0, 0), (0, top_tokens - positions.shape[1]))
    return np.pad(positions, width, constant_values=-1), np.pad(values, width)


def _settings_key(query: Query, top_tokens: int) -> str:
    digest = hashlib.sha256(f"3:{query.model}:{query.units}:{query.weights}:{query.competing}:{top_tokens}".encode())
    for matrix in query.tensors():
        digest.update(matrix.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _write(folder: Path, rows: _Rows) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows.table(), buffer)
    content = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / f"{hashlib.sha256(content).hexdigest()}.parquet")


def _read(folder: Path, query: Query, top_tokens: int) -> _Rows:
    parts = [_Rows.empty(len(query.weights), top_tokens)]
    for path in sorted(folder.glob("*.parquet")):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise IntegrityError(f"{path}: its bytes have changed; remove it, and its samples are scored again")
        parts.append(_Rows.of(pq.read_table(io.BytesIO(content))))
    return _Rows.joined(parts)
