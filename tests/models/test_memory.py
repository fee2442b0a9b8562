"""Batches that do not fit into memory: a model that is out of it above a number of tokens, in its forward or backward pass."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from linfac.small import batch, llama, split
from models.test_architectures import ARCHITECTURES, make_model
from models.test_training import sequences

from benchmarks.margin import negative_log_likelihoods
from lancet_pipeline.config.study import CorrectionSettings, LoraSettings, Training
from lancet_pipeline.correction import RankedPair, correct
from lancet_pipeline.correction.reference import Reference
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_sequences, self_influence
from lancet_pipeline.linfac.journal import score_dataset
from lancet_pipeline.linfac.scores import gradient_norms
from lancet_pipeline.models.architectures import layers_of, sublayers_of
from lancet_pipeline.models.likelihood import perplexity, token_logps
from lancet_pipeline.models.memory import Backoff, activation_checkpointing
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.models.training import train


class Device:
    """What fits into `model` at once; `tried` are the tokens of every batch that it met."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.tried = tokens, []

    def take(self, tokens: int) -> None:
        self.tried.append(tokens)
        if tokens > self.tokens:
            raise torch.OutOfMemoryError(f"{tokens} tokens")


@contextmanager
def device_of(model, tokens: int, place: str):
    """`model` with memory for `tokens`: it runs out on entry, or in the middle of the backward pass."""
    device = Device(tokens)

    def forward(_module, _args, arguments):
        device.take(arguments["input_ids"].numel())

    def backward(_module, _args, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: device.take(gradient.shape[:-1].numel()))

    if place == "forward":
        handle = model.register_forward_pre_hook(forward, with_kwargs=True)
    else:
        handle = model.model.layers[0].register_forward_hook(backward)  # after the units of layer 1
    try:
        yield device
    finally:
        handle.remove()


PLACES = ["forward", "backward"]
SPLIT = 3 * 12
"""Three of the twelve tokens wide sequences of `batch`."""


@given(rows=strategies.integers(1, 40), width=strategies.integers(1, 9), fits=strategies.integers(9, 200))
def test_every_row_is_worked_on_once_in_order_and_no_size_is_tried_twice_in_vain(rows, width, fits):
    device, backoff = Device(fits), Backoff()

    def work(part: slice) -> list[int]:
        device.take((part.stop - part.start) * width)
        return list(range(part.start, part.stop))

    for _ in range(2):
        assert [row for part in backoff.run(work, rows, width, str) for row in part] == list(range(rows))
    failed = [tokens for tokens in device.tried if tokens > fits]
    assert failed == sorted(set(failed), reverse=True)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "config", [{}, {"factors": "token"}, {"eigenvalue_correction": True}, {"units": "linear", "labels": "true"}]
)
def test_factors_do_not_depend_on_what_fits(config, place):
    model, data = llama(), split(batch(11), 7, 4)
    chosen = LinfacConfig(**config)
    held_out = [batch(24, seed=1)]
    expected = fit_factors(model, split(batch(11), 2, 2, 2, 1, 2, 2), chosen, held_out=held_out)
    with device_of(model, SPLIT, place) as device:
        found = fit_factors(model, data, chosen, held_out=held_out)
    assert device.tried[:3] == [7 * 12, 4 * 12, 2 * 12]
    assert found.sequences == expected.sequences
    # Every other sequence went to the same half.
    assert found.reliabilities
    assert found.reliabilities == pytest.approx(expected.reliabilities, rel=1e-3)
    assert found.mean_eigenvalue == pytest.approx(expected.mean_eigenvalue, rel=1e-4)
    for one, other in zip(found.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(one.eigenvalues(), other.eigenvalues(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("place", PLACES)
def test_queries_scores_and_norms_do_not_depend_on_what_fits(place):
    model, data = llama(), split(batch(11), 7, 4)
    factors = fit_factors(model, data, LinfacConfig())

    def everything() -> list[torch.Tensor]:
        query = query_gradient(model, {"one": data[:1], "two": data[1:]}, factors)
        scores = score_dataset(model, sequences(), query, Runtime(batch_tokens=120))
        return [
            *query.matrices,
            score_sequences(model, data, query),
            self_influence(model, data, factors),
            gradient_norms(model, data, factors.units),
            *(torch.as_tensor(column) for column in (scores.by_group, scores.pooled, scores.norms, scores.shares)),
        ]

    expected = everything()
    with device_of(model, SPLIT, place) as device:
        found = everything()
    assert max(device.tried) > SPLIT
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_likelihoods_do_not_depend_on_what_fits():
    model = llama()

    def everything() -> np.ndarray:
        reference = Reference(model, sequences(), sequences(), 120)
        found = [perplexity(model, sequences(), 120), *negative_log_likelihoods(model, sequences(), 120)]
        return np.array([*found, *reference.logps_of(sequences()), *reference.logits_of(sequences()).flatten()])

    expected = everything()
    with device_of(model, SPLIT, "forward") as device:
        found = everything()
    assert max(device.tried) > SPLIT
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_training_in_parts_has_the_gradients_of_the_whole(place):
    start, settings = llama(), Training(epochs=2, batch_size=8, learning_rate=1e-4)

    def trained(tokens: int) -> tuple[list[float], dict[str, torch.Tensor], Device]:
        model = copy.deepcopy(start)
        with device_of(model, tokens, place) as device:
            curve = train(model, sequences(), settings, seed=0)
        return curve, model.state_dict(), device

    expected, parameters, _ = trained(10**9)
    found, others, device = trained(SPLIT)
    assert sum(tokens > SPLIT for tokens in device.tried) < 4  # it remembers
    assert found == pytest.approx(expected, rel=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(others[name], parameter, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_computed_again_give_the_same_gradients(name):
    model, data = make_model(name), batch()
    _, layer = layers_of(model)[0]
    calls = []
    projection = layer.get_submodule(sublayers_of(model).attention_output)
    handle = projection.register_forward_hook(lambda *_: calls.append(1))

    def gradients(checkpointing) -> tuple[list[torch.Tensor], int]:
        model.zero_grad()
        calls.clear()
        with activation_checkpointing(model, checkpointing):
            token_logps(model, data).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], len(calls)

    (expected, once), (found, twice), (auto, small) = gradients(False), gradients(True), gradients("auto")
    handle.remove()
    assert (once, twice, small) == (1, 2, 1)
    assert "forward" not in vars(layer)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(auto, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_training_and_correction_with_activations_computed_again(name, monkeypatch):
    start, data = make_model(name), sequences()
    if name == "opt":
        for _, layer in layers_of(start):
            layer.dropout = 0.1
    pairs = [RankedPair(data[i], data[i + 4], 1.0) for i in range(4)]
    settings = CorrectionSettings(
        steps=4, check_every=2, retain_budget=9.0, retain_validation=4, lora=LoraSettings(rank=2)
    )

    def both(checkpointing) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(start)
        torch.manual_seed(0)
        runtime = Runtime(activation_checkpointing=checkpointing)
        train(model, data, Training(learning_rate=1e-4), seed=0, runtime=runtime)
        correct(model, pairs, data[8:], settings, seed=0, runtime=runtime)
        return model.state_dict()

    expected = both(False)
    torch.testing.assert_close(both(True), expected, rtol=1e-4, atol=2e-5)
    monkeypatch.setattr("lancet_pipeline.models.memory.LARGE_MODEL", 0)
    torch.testing.assert_close(both("auto"), expected, rtol=1e-4, atol=2e-5)


def test_a_sequence_that_does_not_fit_by_itself_is_named_with_the_remedy():
    model, data = llama(), sequences()
    largest = max(range(len(data)), key=lambda i: (len(data[i]), -i))
    with device_of(model, 8, "forward"):
        with pytest.raises(InputError, match=rf"sample {largest}: its 12 tokens .* lower data\.max_length"):
            perplexity(model, data)
        with pytest.raises(InputError, match=r"sequence 0 of its batch: its 12 tokens"):
            fit_factors(model, [batch()], LinfacConfig())
        with pytest.raises(InputError, match=r"sample \d+: its \d+ tokens"):
            train(model, data, Training(), seed=0)
