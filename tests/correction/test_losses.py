"""Losses of the corrections against closed forms."""

import math

import pytest
import torch

from lancet_pipeline.config.study import CorrectionSettings
from lancet_pipeline.correction.losses import (
    METHODS,
    Pairs,
    Responses,
    euclidean_divergence,
    logsumexp_divergence,
    ranking_loss,
)


def bregman(potential, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """U(x) - U(y) - <grad U(y), x - y>, with the gradient by autograd."""
    reference = reference.clone().requires_grad_()
    value = potential(reference)
    (gradient,) = torch.autograd.grad(value.sum(), reference)
    return potential(logits) - value.detach() - (gradient * (logits - reference.detach())).sum(-1)


def test_divergences_are_the_bregman_divergences_of_their_generators():
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 7, 11, generator=generator, dtype=torch.float64)
    expected = bregman(lambda x: x.logsumexp(-1), logits, reference)
    torch.testing.assert_close(logsumexp_divergence(logits, reference), expected)
    centred = [x - x.mean(-1, keepdim=True) for x in (logits, reference)]
    expected = bregman(lambda x: 0.5 * x.square().sum(-1), *centred)
    torch.testing.assert_close(euclidean_divergence(logits, reference), expected)
    assert logsumexp_divergence(reference, reference).abs().max() < 1e-12


def test_ranking_loss_is_log_two_without_a_margin_and_falls_with_it():
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert ranking_loss(zeros, zeros, ones, 0.1).item() == pytest.approx(math.log(2))
    assert ranking_loss(ones * 20, zeros, ones, 0.1) < ranking_loss(ones * 10, zeros, ones, 0.1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Two pairs: log-probabilities, those of the uncorrected model, tokens.
PREFERRED = Responses(torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -7.0]), torch.tensor([2.0, 4.0]))
DRIVING = Responses(torch.tensor([-2.0, -6.0]), torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ibo", -(math.log(sigmoid(0.5 * 2)) + math.log(sigmoid(0.5 * 2))) / 2),
        ("dpo", -(math.log(sigmoid(0.5 * 2)) + math.log(sigmoid(0.5 * 2))) / 2),
        ("pbo", ((-2 + 1.5) + (-2 + 2)) / 2),
        ("ga", -8 / 4),
        ("graddiff", -8 / 4),
        ("npo", -4 * (math.log(sigmoid(0.5)) + math.log(sigmoid(1.5))) / 2),
        ("simnpo", -4 * (math.log(sigmoid(1.0)) + math.log(sigmoid(1.0))) / 2),
        ("task_vector", 8 / 4),
        ("sft_safe", 11 / 6),
    ],
)
def test_losses_are_those_of_their_papers(method, expected):
    pairs = Pairs(PREFERRED, DRIVING, torch.ones(2))
    loss = METHODS[method].loss(pairs, CorrectionSettings(beta=0.5))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["ibo", "dpo"])
def test_written_answers_gain_likelihood_too(method):
    settings, first = CorrectionSettings(beta=0.5), torch.tensor([True, False])
    losses = [METHODS[method].loss(Pairs(PREFERRED, DRIVING, torch.ones(2), w), settings).item() for w in (None, first)]
    assert losses[1] - losses[0] == pytest.approx(3 / 2, rel=1e-6)


def test_length_normalised_ranking_and_margin():
    pairs = Pairs(PREFERRED, DRIVING, torch.ones(2))
    loss = METHODS["ibo"].loss(pairs, CorrectionSettings(beta=1.0, length_normalised=True))
    margins = (1 / 2 + 1 / 1, -1 / 4 + 3 / 3)
    assert loss.item() == pytest.approx(-sum(math.log(sigmoid(m)) for m in margins) / 2, rel=1e-6)
    assert pairs.margin() == pytest.approx(0.0 + 2.0)
    assert Pairs(None, DRIVING, torch.ones(2)).margin() == pytest.approx(2.0)
