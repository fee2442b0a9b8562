"""A tiny model with its data and factors, for what a study does with LinFAC."""

import pytest
import torch
from conftest import training_rows
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import load_study
from lancet_pipeline.data.batches import collate
from lancet_pipeline.data.tokenization import tokenize, train_tokenizer
from lancet_pipeline.linfac import LinfacConfig, fit_factors


@pytest.fixture(scope="module")
def rows():
    return [{"sample_id": f"s{number:03d}", **row} for number, row in enumerate(training_rows()[:48])]


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_tokenizer([row[column] for row in rows for column in ("prompt", "response")], 400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval()


@pytest.fixture(scope="module")
def sequences(rows, tokenizer):
    return tokenize(tokenizer, rows, max_length=64)


@pytest.fixture(scope="module")
def factors(model, sequences):
    return fit_factors(model, [collate(sequences[::3])], LinfacConfig())


@pytest.fixture
def study(tiny_study):
    return load_study(tiny_study)
