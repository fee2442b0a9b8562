"""LinFAC against autograd, brute force and its own restatements."""

import pytest
import torch
from linfac.small import batch, gpt2, llama, split

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    TokenBatch,
    find_units,
    fit_factors,
    query_gradient,
    score_sequences,
    score_tokens,
)
from lancet_pipeline.linfac.factors import sequence_outer_products
from lancet_pipeline.linfac.units import backward_pass
from lancet_pipeline.models.likelihood import response_logps


def output_projection_gradient(model, unit, one: TokenBatch) -> torch.Tensor:
    """d log p / d W of a unit's output projection, by autograd: [d_s, d_a]."""
    module = model.get_submodule(unit.output_module)
    model.zero_grad()
    response_logps(model, one).sum().backward()
    gradient = module.weight.grad.clone()
    return gradient.T if type(module).__name__ == "Conv1D" else gradient


@pytest.mark.parametrize("make_model", [llama, gpt2])
def test_modular_gradient_is_the_gradient_of_the_output_projection(make_model):
    model, data = make_model(), batch()
    found = {}
    units = find_units(model, "sublayer_output")
    backward_pass(model, data, units, lambda unit, a, ds: found.__setitem__(unit, ds.mT @ a))
    for row, one in enumerate(split(data, *[1] * 6)):
        for unit in units:
            expected = output_projection_gradient(model, unit, one)
            torch.testing.assert_close(found[unit][row], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["sublayer_output", "linear"])
def test_scores_equal_the_explicit_kronecker_formula(kind):
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig(units=kind))
    scores = score_sequences(model, [data], query_gradient(model, split(data, 4, 2)[:1], factors))
    expected = torch.zeros(6, dtype=torch.float64)
    ones = split(data, *[1] * 6)
    for unit, block in zip(factors.units, factors.blocks, strict=True):
        gradients = torch.stack([output_projection_gradient(model, unit, one) for one in ones]).double()
        s = (block.gradient_vectors * block.gradient_values) @ block.gradient_vectors.T
        a = (block.input_vectors * block.input_values) @ block.input_vectors.T
        kronecker = torch.kron(s.double().contiguous(), a.double().contiguous())
        damped = kronecker + factors.damping_value * torch.eye(len(kronecker), dtype=torch.float64)
        solved = torch.linalg.solve(damped, gradients[:4].mean(0).flatten())
        expected += gradients.flatten(1) @ solved
    torch.testing.assert_close(scores.double(), expected, rtol=2e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["sublayer_output", "sublayer_input", "linear"])
def test_result_does_not_depend_on_batching(kind):
    model, data = llama(), batch()
    config = LinfacConfig(units=kind)
    whole = fit_factors(model, [data], config)
    parts = fit_factors(model, split(data, 1, 3, 2), config)
    assert parts.damping_value == pytest.approx(whole.damping_value, rel=1e-5)
    one = score_sequences(model, [data], query_gradient(model, [data], whole))
    other = score_sequences(model, split(data, 2, 4), query_gradient(model, split(data, 5, 1), parts))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_same_input_gives_the_same_bits():
    model, data = llama(), batch()
    runs = []
    for _ in range(2):
        factors = fit_factors(model, [data], LinfacConfig())
        runs.append(score_sequences(model, [data], query_gradient(model, [data], factors)))
    assert torch.equal(*runs)


def test_token_shares_add_up_to_the_score():
    model, data = llama(), batch()
    query = query_gradient(model, [data], fit_factors(model, [data], LinfacConfig()))
    shares = score_tokens(model, data, query)
    assert shares.shape == (6, 12)
    torch.testing.assert_close(shares.sum(1), score_sequences(model, [data], query))
    assert shares[1, 9:].abs().max() == 0, "padding has no share"


def test_groups_score_as_they_would_alone():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    first, second = split(data, 3, 3)
    grouped = score_sequences(model, [data], query_gradient(model, {"a": [first], "b": [second]}, factors))
    assert grouped.shape == (6, 2)
    torch.testing.assert_close(grouped[:, 0], score_sequences(model, [data], query_gradient(model, [first], factors)))


def test_a_sample_drives_its_own_output():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    for row, one in enumerate(split(data, *[1] * 6)):
        assert score_sequences(model, [data], query_gradient(model, [one], factors))[row] > 0


@pytest.mark.parametrize(("length", "width_a", "width_s"), [(3, 40, 40), (60, 5, 4)])
def test_both_contractions_give_the_outer_products(length, width_a, width_s):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, length, width_a, generator=generator, dtype=torch.float64)
    gradients = torch.randn(3, length, width_s, generator=generator, dtype=torch.float64)
    modular = gradients.mT @ inputs
    rows, columns = sequence_outer_products(inputs, gradients)
    torch.testing.assert_close(rows, sum(m @ m.T for m in modular))
    torch.testing.assert_close(columns, sum(m.T @ m for m in modular))


def test_sketch_as_wide_as_the_side_changes_nothing_and_a_narrow_one_stays_close_in_shape():
    model, data = llama(), batch()
    exact = fit_factors(model, [data], LinfacConfig())
    narrow = fit_factors(model, [data], LinfacConfig(max_dim=8))
    assert {len(block.input_values) for block in narrow.blocks} == {8}
    query = query_gradient(model, [data], narrow)
    assert [m.shape for m in query.matrices] == [m.shape for m in query_gradient(model, [data], exact).matrices]


def test_factors_survive_the_disk(tmp_path):
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig(damping=0.5))
    factors.save(tmp_path)
    loaded = Factors.load(tmp_path)
    assert (loaded.config, loaded.units, loaded.damping_value) == (factors.config, factors.units, factors.damping_value)
    assert all(
        torch.equal(a.input_vectors, b.input_vectors) for a, b in zip(loaded.blocks, factors.blocks, strict=True)
    )


def test_parameters_and_mode_are_left_as_they_were():
    model, data = llama().train(), batch()
    fit_factors(model, [data], LinfacConfig())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_no_batches_is_an_input_error():
    with pytest.raises(InputError, match="no batches"):
        fit_factors(llama(), [], LinfacConfig())
