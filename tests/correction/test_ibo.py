"""IBO's losses against closed forms, and the whole correction on a tiny model."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.correction import RankedPair, correct
from lancet_pipeline.correction.losses import euclidean_divergence, logsumexp_divergence, ranking_loss
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.errors import LancetError
from lancet_pipeline.models.likelihood import response_logps
from lancet_pipeline.study import CorrectionSettings


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
    assert ranking_loss(zeros, zeros, ones, 0.1).item() == pytest.approx(np.log(2))
    assert ranking_loss(ones * 20, zeros, ones, 0.1) < ranking_loss(ones * 10, zeros, ones, 0.1)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    draw = np.random.default_rng(0)
    sequences = [TokenSequence(str(i), draw.integers(0, 40, 10), 5) for i in range(40)]
    pairs = [RankedPair(sequences[i], sequences[i + 4], 1.0) for i in range(4)]
    return LlamaForCausalLM(config).eval(), pairs, sequences[8:]


SETTINGS = CorrectionSettings(
    steps=20, learning_rate=2e-3, check_every=5, retain_budget=1.2, retain_validation=8, pairs_per_step=4
)


def test_correction_ranks_the_pairs_and_keeps_the_budget(setting):
    model, pairs, neutral = setting
    before = copy.deepcopy(model)
    result = correct(model, pairs, neutral, SETTINGS, seed=0)

    def margin(which):
        with torch.no_grad():
            preferred, dispreferred = (
                response_logps(which, collate([getattr(p, side) for p in pairs]))
                for side in ("preferred", "dispreferred")
            )
        return (preferred - dispreferred).mean().item()

    assert margin(model) > margin(before) + 1
    kept = next(row for row in result.curve if row["step"] == result.best_step)
    assert kept["perplexity_ratio"] <= SETTINGS.retain_budget


def test_same_seed_gives_the_same_parameters(setting):
    model, pairs, neutral = setting
    twin = copy.deepcopy(model)
    correct(model, pairs, neutral, SETTINGS, seed=7)
    correct(twin, pairs, neutral, SETTINGS, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_budget_broken_at_the_first_look_is_an_error(setting):
    model, pairs, neutral = setting
    wild = SETTINGS.model_copy(update={"learning_rate": 1.0, "retain_budget": 1.0001, "mu": 0.0})
    with pytest.raises(LancetError, match=r"lower correction\.learning_rate|diverged"):
        correct(model, pairs, neutral, wild, seed=0)
