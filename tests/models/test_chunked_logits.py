"""Likelihoods and gradients from chunks of logits, against those from all logits at once."""

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings, strategies
from linfac.small import batch, llama
from models.test_architectures import ARCHITECTURES, make_model

from lancet_pipeline.config.study import CorrectionSettings, Training
from lancet_pipeline.correction import RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_sequences
from lancet_pipeline.models import likelihood
from lancet_pipeline.models.likelihood import (
    perplexity_and_accuracy,
    read_logits,
    response_logps,
    sequence_losses,
    token_logps,
)
from lancet_pipeline.models.training import train


@contextmanager
def chunks(elements: int):
    """No more than `elements` logits at once."""
    held = likelihood.LOGITS
    likelihood.LOGITS = elements
    try:
        yield
    finally:
        likelihood.LOGITS = held


def largest_read(model, data) -> int:
    """Most logits that were read at once."""
    sizes = []

    def read(logits, rows):
        sizes.append(logits.numel())
        return logits[:, 0]

    with torch.no_grad():
        read_logits(model, data, read)
    return max(sizes)


def gradients(model, data) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logps = token_logps(model, data)
    (logps * torch.linspace(0.5, 2.0, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_up_to_rounding(found, expected) -> None:
    """By the largest gradient of the model: some, such as those of OPT's key biases, are zero but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.fixture(autouse=True)
def scaling_architectures(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "cohere", {"intermediate_size": 24, "logit_scale": 0.3})
    monkeypatch.setitem(ARCHITECTURES, "granite", {"intermediate_size": 24, "logits_scaling": 3.0})


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cohere", "granite"])
def test_chunks_give_the_likelihoods_and_gradients_of_the_whole(name):
    model, data = make_model(name), batch()
    expected = gradients(model, data)
    before = model.config.to_dict()
    with chunks(250):
        found = gradients(model, data)
        scaled = name in ("cohere", "granite")
        assert largest_read(model, data) == (50 * 39 if scaled else 250)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert_equal_up_to_rounding(found[1], expected[1])
    assert model.config.to_dict() == before


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("head", [False, True])
def test_adapters_train_through_chunks(name, head):
    from peft import LoraConfig, get_peft_model

    plain, data = make_model(name), batch()
    targets = {"target_modules": ["lm_head"]} if head else {"target_modules": "all-linear"}
    torch.manual_seed(0)
    model = get_peft_model(plain, LoraConfig(r=2, init_lora_weights=False, fan_in_fan_out=name == "gpt2", **targets))
    expected = gradients(model, data)
    with chunks(250):
        found = gradients(model, data)
    assert 0 < len(found[1]) < len(list(model.parameters()))
    assert_equal_up_to_rounding(found[1], expected[1])


def test_a_head_with_bias_and_mixed_precision():
    model, data = llama(), batch()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(50))
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False)):
        with context:
            expected = gradients(model, data)
            with chunks(250):
                found = gradients(model, data)
        assert found[0].dtype == torch.float32
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
        bfloat16 = not isinstance(context, nullcontext)  # sums over chunks round to its 8 bits
        for key, gradient in expected[1].items():
            tolerance = (2e-2 if bfloat16 else 1e-5) * gradient.abs().max().item()
            torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    rows=strategies.integers(1, 7),
    length=strategies.integers(7, 14),
    elements=strategies.integers(1, 2000),
    seed=strategies.integers(0, 99),
)
def test_any_chunk_size_gives_the_same(rows, length, elements, seed):
    model, data = llama(), batch(max(rows, 2), max(length, 10), seed)
    expected = gradients(model, data)
    with chunks(elements):
        assert largest_read(model, data) <= max(elements, 50)
        found = gradients(model, data)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert_equal_up_to_rounding(found[1], expected[1])


@pytest.mark.parametrize("labels", ["sampled", "true"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "cohere"])
def test_factors_and_scores_from_chunks(name, labels):
    model, data = make_model(name), batch()

    def both():
        factors = fit_factors(model, [data], LinfacConfig(labels=labels))
        return factors, score_sequences(model, [data], query_gradient(model, [data], factors))

    factors, scores = both()
    with chunks(250):
        chunked_factors, chunked_scores = both()
    torch.testing.assert_close(chunked_scores, scores, rtol=1e-3, atol=1e-4 * scores.abs().max().item())
    for found, expected in zip(chunked_factors.blocks, factors.blocks, strict=True):
        torch.testing.assert_close(found.gradient_values, expected.gradient_values, rtol=1e-3, atol=1e-6)


def sequences() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    return [TokenSequence(str(i), torch.randint(0, 50, (12,), generator=generator).numpy(), 5) for i in range(24)]


def test_perplexity_accuracy_and_sums_from_chunks():
    model, data = llama(), batch()
    with torch.no_grad():
        expected = response_logps(model, data), *perplexity_and_accuracy(sequence_losses(model, sequences())).values()
        with chunks(250):
            found = response_logps(model, data), *perplexity_and_accuracy(sequence_losses(model, sequences())).values()
    torch.testing.assert_close(found[0], expected[0])
    assert found[1:] == pytest.approx(expected[1:], rel=1e-5)


@pytest.mark.parametrize("generator", ["logsumexp", "euclidean"])
def test_training_and_correction_from_chunks_end_at_the_same_parameters(generator):
    data = sequences()
    start = llama()
    pairs = [RankedPair(data[i], data[i + 4], 1.0) for i in range(4)]
    chosen = CorrectionSettings(
        beta=0.1,
        mu=1.0,
        steps=4,
        check_every=2,
        retain_budget=9.0,
        retain_validation=4,
        learning_rate=1e-4,
        generator=generator,
    )

    def both() -> dict[str, torch.Tensor]:
        model = copy.deepcopy(start)
        train(model, data, Training(epochs=1, learning_rate=1e-4), seed=0)
        correct(model, pairs, data[8:], chosen, seed=0)
        return model.state_dict()

    expected = both()
    with chunks(250):
        found = both()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=2e-5)
