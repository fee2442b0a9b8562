"""How likely a model finds the loss tokens of sequences, without the logits of all of them at once."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.models import distributed
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**26
"""Logits held at once, in float32 elements (256 MiB): batches with more of them are read in chunks."""

Read = Callable[[torch.Tensor, slice], torch.Tensor]

_READ_WHOLE: "WeakSet[PreTrainedModel]" = WeakSet()
"""Models that were found to do more to their logits than to cap them."""


def response_logits(
    model: "PreTrainedModel", batch: TokenBatch, call: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the loss tokens, and those tokens: [n, vocab] float32 and [n] int64, row by row.

    The output embedding sees the positions before loss tokens only, so that no logits of a prompt are ever computed.

    Args:
        call: in place of calling the model, such as a functional call of it.
    """
    mask, head = batch.loss_mask[:, 1:], model.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][:, :-1][mask],))
    try:
        output = (call or model)(**_inputs(batch))
    finally:
        handle.remove()
    return output.logits.float(), batch.input_ids[:, 1:][mask]


def read_logits(model: "PreTrainedModel", batch: TokenBatch, read: Read) -> torch.Tensor:
    """What `read` makes of the logits that predict the loss tokens, without holding more than LOGITS of them.

    Where n x vocab is more, the output embedding and `read` are run on chunks of loss positions, and in the backward pass
    run again, chunk by chunk, so that time grows by one product with the output embedding. A model that does more to its
    logits than to cap them (Cohere and Granite scale them) has them read whole, as does one that is sharded over ranks, of which
    each has its share of the rows.

    Args:
        read: from logits [m, vocab] float32 and the slice of all n loss positions that they are of, row by row, to [m] or
            [m, k]; treats positions apart. May be called twice for a chunk.

    Returns:
        [n] or [n, k].
    """
    tokens, vocabulary = int(batch.loss_mask[:, 1:].sum()), model.config.get_text_config().vocab_size
    if tokens * vocabulary > LOGITS and model not in _READ_WHOLE and distributed.ranks() == 1:
        found = _read_chunks(model, batch, read, max(1, LOGITS // vocabulary))
        if found is not None:
            return found
        _READ_WHOLE.add(model)
    return read(response_logits(model, batch)[0], slice(0, tokens))


def token_logps(model: "PreTrainedModel", batch: TokenBatch) -> torch.Tensor:
    """Log-probability of every loss token, row by row: [n] float32."""
    labels = loss_tokens(batch)
    return read_logits(model, batch, lambda logits, rows: -cross_entropy(logits, labels[rows], reduction="none"))


def loss_tokens(batch: TokenBatch) -> torch.Tensor:
    """The tokens that carry loss, row by row: [n] int64."""
    return batch.input_ids[:, 1:][batch.loss_mask[:, 1:]]


def response_logps(model: "PreTrainedModel", batch: TokenBatch) -> torch.Tensor:
    """Log-probability of every sequence's loss tokens, summed: [B] float32."""
    return sum_by_sequence(token_logps(model, batch), batch)


def sum_by_sequence(values: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Values [n] of all loss positions, row by row, summed for each sequence: [B]."""
    rows = batch.loss_mask[:, 1:].nonzero()[:, 0]
    return torch.zeros(len(batch.input_ids), dtype=values.dtype, device=values.device).index_add(0, rows, values)


def perplexity(model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int = 4096) -> float:
    """exp of the mean negative log-likelihood of all response tokens; infinite past the range of floats."""
    return perplexity_and_accuracy(sequence_losses(model, sequences, batch_tokens))["perplexity"]


def sequence_losses(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int = 4096
) -> np.ndarray:
    """Negative log-likelihood of each sequence's loss tokens, how many of them are the model's first choice, and how many there
    are: [N, 3] float64. Of a sharded model each rank has its own sequences, and 0 for the others."""

    def sums(chosen: Sequence[TokenSequence]) -> np.ndarray:
        batch = collate(chosen).to(model.device)
        labels = loss_tokens(batch)

        def read(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            loss = cross_entropy(logits, labels[rows], reduction="none")
            return torch.stack([loss, logits.argmax(1) == labels[rows], torch.ones_like(loss)], 1)

        values = read_logits(model, batch, read).double()
        return torch.stack([sum_by_sequence(column, batch) for column in values.T], 1).cpu().numpy()

    found, backoff = np.zeros((len(sequences), 3)), Backoff()
    with torch.no_grad():
        for indices, counts in distributed.rounds(bucketed(sequences, batch_tokens)):
            parts = backoff.over(sums, [sequences[i] for i in indices])
            if counts:
                found[list(indices)] = np.concatenate(parts)
    return found


def perplexity_and_accuracy(losses: np.ndarray) -> dict[str, float]:
    """`perplexity`, exp of the mean loss of all tokens, infinite past the range of floats; and `token_accuracy`, the share of tokens
    that are the model's first choice. Takes what `sequence_losses` gives, on every rank."""
    total, hits, tokens = distributed.totals(*losses.sum(0).tolist())
    mean = total / tokens
    return {"perplexity": math.exp(mean) if not mean > 700 else math.inf, "token_accuracy": hits / tokens}


def _read_chunks(model: "PreTrainedModel", batch: TokenBatch, read: Read, size: int) -> torch.Tensor | None:
    """`read` of chunks of `size` loss positions, inside the forward pass of the output embedding; None where the model's
    logits are not what its output embedding gives."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    mask, cap = batch.loss_mask[:, 1:], getattr(config, "final_logit_softcapping", None)
    assert head is not None
    states: list[torch.Tensor] = []
    found: list[torch.Tensor] = []

    def part(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        logits = head.forward(hidden)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return read(logits.float(), rows)

    def hand_over(_module: torch.nn.Module, args: tuple) -> tuple:
        states.append(args[0][:, :-1][mask])
        return (states[0][:0],)

    def replace(_module: torch.nn.Module, _args: tuple, _output: torch.Tensor) -> torch.Tensor:
        hidden = states.pop()
        chunks = [slice(start, start + size) for start in range(0, len(hidden), size)]
        run = checkpointed if torch.is_grad_enabled() else part
        found.append(torch.cat([run(hidden[rows], rows) for rows in chunks]))
        return found[0]

    def checkpointed(hidden: torch.Tensor, rows: slice) -> Any:
        return checkpoint(part, hidden, rows, use_reentrant=False)

    # First among the hooks on what it returns, so that a sharded module's weights are still there.
    handles = [head.register_forward_pre_hook(hand_over), head.register_forward_hook(replace, prepend=True)]
    try:
        if cap is not None:  # `part` caps them
            config.final_logit_softcapping = None
        logits = model(**_inputs(batch)).logits
    finally:
        if cap is not None:
            config.final_logit_softcapping = cap
        for handle in handles:
            handle.remove()
    return logits if logits is found[0] or torch.equal(logits, found[0]) else None


def _inputs(batch: TokenBatch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
