"""LinFAC against autograd, brute force and its own restatements."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linfac.small import batch, gpt2, llama, split
from scipy.stats import spearmanr

from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    TokenBatch,
    find_units,
    fit_factors,
    query_gradient,
    score_sequences,
    score_tokens,
    self_influence,
)
from lancet_pipeline.linfac.eigen import probe_matrix
from lancet_pipeline.linfac.scores import contract_groups, gradient_norms
from lancet_pipeline.linfac.sums import OuterProducts, sequence_outer_products
from lancet_pipeline.linfac.units import backward_pass, squared_norms
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


@pytest.mark.parametrize(("kind", "factors"), [("sublayer_output", "sequence"), ("linear", "token")])
def test_sums_of_wide_sides_are_those_of_the_whole_side_times_its_probes(kind, factors):
    model, data = llama(), batch()
    found = {}
    for max_dim in (4096, 8):
        config = LinfacConfig(units=kind, factors=factors, max_dim=max_dim)
        units = tuple(find_units(model, kind))
        found[max_dim] = [part.factors(config) for part in OuterProducts(units, config)(model, split(data, 4, 2))]
    for whole, narrow in zip(found[4096], found[8], strict=True):
        for one, other in zip(whole, narrow, strict=True):
            probe = probe_matrix(len(one.product), 8, 0, torch.device("cpu"))
            torch.testing.assert_close(other.product, one.product @ probe, rtol=1e-3, atol=1e-6)
            assert other.trace == pytest.approx(one.trace, rel=1e-4)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("max_dim", [8, 20])
def test_kept_eigenvectors_and_the_mean_of_the_rest_equal_the_dense_matrix(max_dim, corrected):
    model, data = llama(), batch()
    narrow = fit_factors(model, [data], LinfacConfig(max_dim=max_dim, eigenvalue_correction=corrected))
    whole = fit_factors(model, [data], LinfacConfig(eigenvalue_correction=corrected))
    assert narrow.damping_value == pytest.approx(whole.damping_value, rel=1e-4), "the mean is over all dimensions"
    gradients = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))
    for index, block in enumerate(narrow.blocks):
        gradient = gradients[:, :, : len(block.input_vectors)]
        bases = []
        for vectors in (block.gradient_vectors, block.input_vectors):
            complement = torch.linalg.svd(vectors).U[:, vectors.shape[1] :]  # any orthonormal basis of what is left out
            bases.append(torch.cat([complement, vectors], 1).double())
        spread = [
            torch.arange(len(basis)).sub(len(basis) - vectors.shape[1]).clamp_min(-1) + (len(basis) > vectors.shape[1])
            for basis, vectors in zip(bases, (block.gradient_vectors, block.input_vectors), strict=True)
        ]
        values = block.eigenvalues()[spread[0]][:, spread[1]].double()
        rotated = bases[0].T @ gradient.double() @ bases[1] / (values + narrow.damping_value)
        expected = bases[0] @ rotated @ bases[1].T
        torch.testing.assert_close(narrow.precondition(index, gradient).double(), expected, rtol=1e-3, atol=1e-2)
        own = narrow.squared_norm(index, torch.eye(gradient.shape[2]).expand(2, -1, -1), gradient.mT)
        torch.testing.assert_close(own.double(), (expected * gradient).sum((1, 2)), rtol=1e-3, atol=1e-3)


def test_a_side_as_wide_as_the_bound_is_not_sketched():
    model, data = llama(), batch()
    scores = []
    for max_dim in (24, 4096):
        factors = fit_factors(model, [data], LinfacConfig(units="linear", max_dim=max_dim))
        scores.append(score_sequences(model, [data], query_gradient(model, [data], factors)))
    assert torch.equal(*scores)


def test_factors_survive_the_disk(tmp_path):
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig(damping=0.5))
    factors.save(tmp_path)
    loaded = Factors.load(tmp_path)
    assert replace(loaded, blocks=()) == replace(factors, blocks=())
    assert all(
        torch.equal(a.input_vectors, b.input_vectors) for a, b in zip(loaded.blocks, factors.blocks, strict=True)
    )


@pytest.mark.parametrize("spoil", ["truncate", "alter"])
def test_a_spoilt_file_of_factors_is_refused(tmp_path, spoil):
    fit_factors(llama(), [batch()], LinfacConfig()).save(tmp_path)
    path = tmp_path / "factors.safetensors"
    content = bytearray(path.read_bytes())
    if spoil == "truncate":
        del content[-100:]
    else:
        content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"factors\.safetensors"):
        Factors.load(tmp_path)


def test_factors_and_queries_of_another_model_are_refused():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    query = query_gradient(model, [data], factors)
    other = llama()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(InputError, match="another model"):
        query_gradient(other, [data], factors)
    with pytest.raises(InputError, match="another model"):
        score_sequences(other, [data], query)
    with pytest.raises(InputError, match="another model"):
        self_influence(other, [data], factors)


def explicit_factors(model, data: TokenBatch, unit, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """S and A of one unit as docs/method.md defines them, sequence by sequence and token by token, true labels."""
    seen = {}
    backward_pass(model, data, [unit], lambda _unit, a, ds: seen.update(a=a.double(), ds=ds.double()))
    if kind == "sequence":
        modular = [ds.T @ a for ds, a in zip(seen["ds"], seen["a"], strict=True)]
        s = sum(m @ m.T for m in modular) / len(modular)
        return s, sum(m.T @ m for m in modular) / len(modular) / s.trace()
    s = sum(torch.outer(v, v) for row in seen["ds"] for v in row) / len(seen["ds"])
    tokens = [v for row, mask in zip(seen["a"], data.attention_mask, strict=True) for v in row[mask.bool()]]
    return s, sum(torch.outer(v, v) for v in tokens) / len(tokens)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_factors_are_those_of_the_definition(kind):
    model, data = llama(), batch()
    factors = fit_factors(model, split(data, 2, 3, 1), LinfacConfig(factors=kind, labels="true"))
    for unit, block in zip(factors.units, factors.blocks, strict=True):
        s, a = explicit_factors(model, data, unit, kind)
        for expected, values, vectors in (
            (s, block.gradient_values, block.gradient_vectors),
            (a, block.input_values, block.input_vectors),
        ):
            found = ((vectors * values) @ vectors.T).double()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_corrected_eigenvalues_are_the_mean_squared_gradients_along_the_eigenvectors():
    model, data = llama(), batch()
    factors = fit_factors(model, split(data, 2, 4), LinfacConfig(labels="true", eigenvalue_correction=True))
    for unit, block in zip(factors.units, factors.blocks, strict=True):
        rotated = [
            block.gradient_vectors.T @ output_projection_gradient(model, unit, one) @ block.input_vectors
            for one in split(data, *[1] * 6)
        ]
        expected = torch.stack(rotated).square().mean(0)
        torch.testing.assert_close(block.eigenvalues(), expected, rtol=1e-2, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize("max_dim", [4096, 8])
def test_self_influence_is_a_sample_scored_on_itself(max_dim):
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig(max_dim=max_dim))
    own = self_influence(model, split(data, 4, 2), factors)
    for row, one in enumerate(split(data, *[1] * 6)):
        expected = score_sequences(model, [one], query_gradient(model, [one], factors))
        torch.testing.assert_close(own[row : row + 1], expected, rtol=1e-3, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), length=st.integers(1, 7), groups=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_contraction_over_groups_is_the_inner_product_of_gradients(rows, length, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, length, 5, generator=generator)
    gradients = torch.randn(rows, length, 4, generator=generator)
    matrices = torch.randn(groups, 4, 5, generator=generator)
    expected = torch.einsum("bts,bta,gsa->bg", gradients, inputs, matrices)
    torch.testing.assert_close(contract_groups(inputs, gradients, matrices), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sublayer_output", "linear"])
def test_gradient_norms_are_those_of_autograd(kind):
    model, data = llama(), batch()
    units = find_units(model, kind)
    found = gradient_norms(model, split(data, 4, 2), units)
    for row, one in enumerate(split(data, *[1] * 6)):
        squares = [output_projection_gradient(model, unit, one).square().sum() for unit in units]
        torch.testing.assert_close(found[row], torch.stack(squares).sum().sqrt(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("length", [2, 40])
def test_both_ways_to_a_norm_agree(length):
    generator = torch.Generator().manual_seed(3)
    inputs, gradients = torch.randn(3, length, 6, generator=generator), torch.randn(3, length, 5, generator=generator)
    expected = (gradients.mT @ inputs).square().sum((1, 2))
    torch.testing.assert_close(squared_norms(inputs, gradients), expected, rtol=1e-4, atol=1e-4)


def test_pooled_query_is_the_mean_over_all_queries_of_unequal_groups():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    parts = split(data, 4, 2)
    grouped = query_gradient(model, {"a": [parts[0]], "b": [parts[1]]}, factors)
    expected = score_sequences(model, [data], query_gradient(model, [data], factors))
    torch.testing.assert_close(score_sequences(model, [data], grouped.pooled()), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_the_ranking():
    model, data = llama(), batch(rows=48)
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        factors = fit_factors(model, [data], LinfacConfig(labels="true"))
        assert factors.blocks[0].gradient_values.dtype == torch.float32
        scores.append(score_sequences(model, [data], query_gradient(model, split(data, 8, 40)[:1], factors)))
    assert spearmanr(*scores)[0] > 0.98


def test_parameters_and_mode_are_left_as_they_were():
    model, data = llama().train(), batch()
    fit_factors(model, [data], LinfacConfig())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def spoilt(rows_without_loss=(), length=12) -> TokenBatch:
    data = batch(length=length)
    loss = data.loss_mask.clone()
    loss[list(rows_without_loss)] = False
    return TokenBatch(data.input_ids, data.attention_mask, loss, tuple("abcdef"))


def test_a_sample_without_response_is_named():
    with pytest.raises(InputError, match="sample c: has no response token"):
        fit_factors(llama(), [spoilt([2])], LinfacConfig())


def test_a_sequence_past_the_context_is_named():
    with pytest.raises(InputError, match=r"sample a: 40 tokens, more than the model's context of 32"):
        fit_factors(llama(), [spoilt(length=40)], LinfacConfig())


def test_what_is_not_finite_is_named_with_its_sample_and_module():
    model, data = llama(), spoilt()
    token = int(data.input_ids[3, 7])
    rows = [int(row) for row in (data.input_ids[:, :] == token).any(1).nonzero()[:, 0]]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    with pytest.raises(InputError, match=rf"sample {'abcdef'[rows[0]]}: what 'model\.embed_tokens'"):
        fit_factors(model, [data], LinfacConfig())


def test_no_batches_is_an_input_error():
    with pytest.raises(InputError, match="no batches"):
        fit_factors(llama(), [], LinfacConfig())
