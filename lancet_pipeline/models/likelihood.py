"""How likely a model finds the loss tokens of sequences."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.models import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_logits(
    model: "PreTrainedModel", batch: TokenBatch, call: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the loss tokens, and those tokens: [n, vocab] float32 and [n] int64, row by row.

    The output embedding sees the positions before loss tokens only, so that no logits of a prompt are ever computed.

    Args:
        call: in place of calling the model, such as a functional call of it.
    """
    mask = batch.loss_mask[:, 1:]
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _module, args: (args[0][:, :-1][mask],))
    try:
        output = (call or model)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
    finally:
        handle.remove()
    return output.logits.float(), batch.input_ids[:, 1:][mask]


def response_logps(model: "PreTrainedModel", batch: TokenBatch) -> torch.Tensor:
    """Log-probability of every sequence's loss tokens, summed: [B] float32."""
    logits, labels = response_logits(model, batch)
    return sum_by_sequence(-torch.nn.functional.cross_entropy(logits, labels, reduction="none"), batch)


def sum_by_sequence(values: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Values [n] of all loss positions, row by row, summed for each sequence: [B]."""
    rows = batch.loss_mask[:, 1:].nonzero()[:, 0]
    return torch.zeros(len(batch.input_ids), device=values.device).index_add(0, rows, values)


def perplexity(model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int = 4096) -> float:
    """exp of the mean negative log-likelihood of all response tokens; infinite past the range of floats."""
    return perplexity_and_accuracy(model, sequences, batch_tokens)[0]


def perplexity_and_accuracy(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int = 4096
) -> tuple[float, float]:
    """Perplexity of all response tokens, and the share of them that are the model's first choice."""
    total, hits, tokens = 0.0, 0, 0
    with torch.no_grad():
        for indices, counts in distributed.rounds(bucketed(sequences, batch_tokens)):
            batch = collate([sequences[i] for i in indices]).to(model.device)
            logits, labels = response_logits(model, batch)
            if not counts:
                continue
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().sum().item()
            hits += int((logits.argmax(1) == labels).sum())
            tokens += len(labels)
    total, hits, tokens = distributed.totals(total, hits, tokens)
    mean = total / tokens
    return math.exp(mean) if not mean > 700 else math.inf, hits / tokens


def mean_loss(model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int = 4096) -> float:
    """Mean negative log-likelihood of all response tokens, in nats."""
    return math.log(perplexity(model, sequences, batch_tokens))
