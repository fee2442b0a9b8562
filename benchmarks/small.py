"""Small models trained on sequences of a made-up language: small enough for exact influence and for retraining.

A sequence is a walk over 32 tokens under the transition table of one of 2 topics. The first 6 tokens are the prompt, the
next 14 the response, so that a sequence is explained by others of its topic.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lancet_pipeline.config.study import Training
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, collate
from lancet_pipeline.models.training import train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY, TOPICS, PROMPT, RESPONSE = 32, 2, 6, 14
TRAINING = Training(epochs=20, batch_size=16, learning_rate=3e-3, weight_decay=0.01)


def walks(seed: int, count: int) -> list[TokenSequence]:
    """Sequences of one language; the same seed gives the same ones."""
    generator = np.random.default_rng(seed)
    tables = generator.dirichlet(np.full(VOCABULARY, 0.05), size=(TOPICS, VOCABULARY))
    sequences = []
    for index in range(count):
        table = tables[generator.integers(TOPICS)]
        tokens = [int(generator.integers(VOCABULARY))]
        for _ in range(PROMPT + RESPONSE - 1):
            tokens.append(int(generator.choice(VOCABULARY, p=table[tokens[-1]])))
        sequences.append(TokenSequence(str(index), np.asarray(tokens, dtype=np.int32), PROMPT))
    return sequences


def trained(sequences: Sequence[TokenSequence], seed: int, settings: Training = TRAINING) -> "PreTrainedModel":
    """A Llama with about 25,000 parameters in its linear layers, trained on `sequences`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=88,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT + RESPONSE,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    train(model, sequences, settings, seed=seed)
    return model


def batches(sequences: Sequence[TokenSequence], size: int = 128) -> list[TokenBatch]:
    return [collate(sequences[start : start + size]) for start in range(0, len(sequences), size)]
