"""Likelihoods against the loss that transformers computes, one sequence at a time."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.data.batches import TokenSequence, bucketed, collate, epoch_batches
from lancet_pipeline.models.likelihood import perplexity, response_logps


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes)).eval()


@pytest.fixture(scope="module")
def sequences():
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 20, size=9)
    return [
        TokenSequence(f"{i}", draw.integers(0, 40, size=n).astype(np.int32), int(draw.integers(1, n - 1)))
        for i, n in enumerate(lengths)
    ]


def reference_nll(model, sequence) -> tuple[float, int]:
    """Summed negative log-likelihood of the response by the model's own loss, and its number of tokens."""
    ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)[None]
    labels = ids.clone()
    labels[:, : sequence.response_start] = -100
    count = len(sequence) - sequence.response_start
    with torch.no_grad():
        return model(ids, labels=labels).loss.item() * count, count


def test_padded_batches_give_every_sequence_its_own_likelihood(model, sequences):
    with torch.no_grad():
        logps = response_logps(model, collate(sequences))
    assert logps.tolist() == pytest.approx([-reference_nll(model, s)[0] for s in sequences], rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_perplexity_pools_tokens_whatever_the_batches(model, sequences, batch_tokens):
    total, tokens = np.sum([reference_nll(model, s) for s in sequences], axis=0)
    assert perplexity(model, sequences, batch_tokens) == pytest.approx(math.exp(total / tokens), rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 60, 4096])
def test_buckets_hold_every_sequence_once_within_the_budget(sequences, batch_tokens):
    groups = bucketed(sequences, batch_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(sequences[i]) for i in group) <= batch_tokens


def test_an_epoch_sees_every_sequence_once(sequences):
    batches = list(epoch_batches(sequences, 4, np.random.default_rng(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sequences)))
    assert batches == list(epoch_batches(sequences, 4, np.random.default_rng(0)))
