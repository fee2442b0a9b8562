"""Batches of token sequences: the one form in which the method sees data."""

import hashlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded to one length.

    input_ids: [B, T] int64. attention_mask: [B, T] int64, 1 on tokens. loss_mask: [B, T] bool, true on the
    tokens whose log-probability counts (the response); position 0 never counts, since nothing predicts it.
    names: sample ids, for error messages; may be absent.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    loss_mask: torch.Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def position_ids(self) -> torch.Tensor:
        """[B, T] int64, counted over attended tokens, so that padding on either side moves nothing."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    @property
    def loss_tokens(self) -> torch.Tensor:
        """Number of loss tokens of each sequence, [B] int64."""
        return self.loss_mask[:, 1:].sum(1)

    def name(self, row: int) -> str:
        return f"sample {self.names[row]}" if self.names else f"sequence {row} of its batch"

    def rows(self, chosen: torch.Tensor) -> "TokenBatch":
        """The sequences at the indices `chosen`, [n] int64."""
        names = tuple(self.names[int(row)] for row in chosen) if self.names else ()
        return TokenBatch(self.input_ids[chosen], self.attention_mask[chosen], self.loss_mask[chosen], names)

    def part(self, rows: slice) -> "TokenBatch":
        """Neighbouring sequences; the batch itself where they are all."""
        return self if rows == slice(0, len(self)) else self.rows(torch.arange(rows.start, rows.stop))

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.loss_mask.to(device), self.names
        )


@dataclass(frozen=True)
class TokenSequence:
    """One tokenised sample: prompt and response ids, the first response token at `response_start`."""

    sample_id: str
    input_ids: np.ndarray
    response_start: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def key(self) -> bytes:
        """16 bytes that stand for tokens and response boundary, whatever the sample is called."""
        digest = hashlib.blake2b(self.response_start.to_bytes(8, "little"), digest_size=16)
        digest.update(np.ascontiguousarray(self.input_ids, dtype=np.int32).tobytes())
        return digest.digest()


def collate(sequences: Sequence[TokenSequence], *, loss_on: str = "response") -> TokenBatch:
    """Right-padded batch; `loss_on` is `response` or `sequence` (every token but the first)."""
    input_ids = pad_sequence([torch.as_tensor(s.input_ids, dtype=torch.int64) for s in sequences], batch_first=True)
    places = torch.arange(input_ids.shape[1])
    ends = torch.tensor([[len(sequence)] for sequence in sequences])
    starts = torch.tensor([[sequence.response_start if loss_on == "response" else 0] for sequence in sequences])
    attention_mask = (places < ends).long()
    loss_mask = (places >= starts.clamp_min(1)) & (places < ends)
    return TokenBatch(input_ids, attention_mask, loss_mask, tuple(sequence.sample_id for sequence in sequences))


def bucketed(sequences: Sequence[Sized], batch_tokens: int, new_tokens: int = 0) -> list[list[int]]:
    """Indices into `sequences` grouped by length, longest first, at most `batch_tokens` tokens with padding, of which
    each sequence gets `new_tokens` later.

    Longest first, so that a batch too large for memory fails at once and not after an hour.
    """
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
    groups: list[list[int]] = []
    for index in order:
        if groups and (len(groups[-1]) + 1) * (len(sequences[groups[-1][0]]) + new_tokens) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def epoch_batches(
    sequences: Sequence[TokenSequence], batch_size: int, generator: np.random.Generator
) -> Iterator[list[int]]:
    """One shuffled pass over the indices; within windows of 16 batches, similar lengths go together."""
    order = generator.permutation(len(sequences))
    window = 16 * batch_size
    batches = []
    for start in range(0, len(order), window):
        chunk = sorted(order[start : start + window].tolist(), key=lambda i: len(sequences[i]))
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    for position in generator.permutation(len(batches)):
        yield batches[position]


def shuffled_passes(items: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` indices in shuffled passes over all items."""
    return np.concatenate([generator.permutation(items) for _ in range(-(-count // items))])[:count]
