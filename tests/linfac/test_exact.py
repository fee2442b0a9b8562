"""Gauss-Newton products against the dense matrix of a model, and conjugate gradients against a dense solver."""

import pytest
import torch
from linfac.small import batch, gpt2, llama, split
from torch.func import functional_call, jacrev

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import LinfacConfig, Refinement, find_units, fit_factors, query_gradient
from lancet_pipeline.linfac.exact import GaussNewton, conjugate_gradients
from lancet_pipeline.models.likelihood import response_logits


def dense_gauss_newton(model, unit, data) -> torch.Tensor:
    """J^T H J / N of one unit's weight by its full Jacobian, row-major in [d_s, d_a]."""
    name = f"{unit.output_module}.weight"
    weight = model.get_parameter(name).detach()
    transposed = type(model.get_submodule(unit.output_module)).__name__ == "Conv1D"

    def logits(weight):
        weights = {name: weight.T if transposed else weight}
        return response_logits(model, data, lambda **inputs: functional_call(model, weights, kwargs=inputs))[0]

    jacobian = jacrev(logits)((weight.T if transposed else weight).clone()).flatten(2)
    p = response_logits(model, data)[0].softmax(-1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nvi,nvw,nwj->ij", jacobian, hessian, jacobian).detach() / len(data.input_ids)


@pytest.mark.parametrize("make_model", [llama, gpt2])
def test_products_equal_the_dense_matrix(make_model):
    model, data = make_model(), batch()
    model.config._attn_implementation = "eager"  # the reference differentiates with functorch
    unit = find_units(model, "sublayer_output")[1]
    dense = dense_gauss_newton(model, unit, data)
    vectors = torch.randn(3, *model_shape(model, unit), generator=torch.Generator().manual_seed(1))
    (products,) = GaussNewton(model, split(data, 2, 4), [unit]).product((vectors,))
    torch.testing.assert_close(products.flatten(1), vectors.flatten(1) @ dense, rtol=1e-3, atol=1e-6)


def model_shape(model, unit) -> tuple[int, int]:
    weight = model.get_submodule(unit.output_module).weight
    rows, columns = weight.shape
    return (columns, rows) if type(model.get_submodule(unit.output_module)).__name__ == "Conv1D" else (rows, columns)


def test_products_reach_across_units():
    model, data = llama(), batch()
    units = find_units(model, "linear")
    shapes = [model_shape(model, unit) for unit in units]
    only_first = tuple(torch.ones(1, *shape) * (index == 0) for index, shape in enumerate(shapes))
    products = GaussNewton(model, [data], units).product(only_first)
    assert all(product.abs().max() > 0 for product in products)


def test_conjugate_gradients_solve_the_damped_system():
    generator = torch.Generator().manual_seed(2)
    half = torch.randn(20, 20, generator=generator)
    matrix, right = half @ half.T, torch.randn(3, 4, 5, generator=generator)

    def product(blocks):
        return ((blocks[0].flatten(1) @ matrix).unflatten(1, (4, 5)),)

    (solution,) = conjugate_gradients(product, (right,), 0.5, steps=60)
    expected = torch.linalg.solve(matrix + 0.5 * torch.eye(20), right.flatten(1).T).T
    torch.testing.assert_close(solution.flatten(1), expected, rtol=1e-3, atol=1e-3)


def test_surrogate_units_have_no_exact_matrix():
    model = llama()
    with pytest.raises(InputError, match="sublayer_output"):
        GaussNewton(model, [batch()], find_units(model, "sublayer_input"))


def test_refinement_holds_out_every_third_sequence_whatever_the_batches():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    found = [
        query_gradient(model, [data], factors, refinement=Refinement(split(data, *sizes))).matrices
        for sizes in ((6,), (1, 1, 1, 1, 1, 1), (2, 4))
    ]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_refinement_on_two_sequences_says_that_it_needs_more():
    model, data = llama(), batch()
    factors = fit_factors(model, [data], LinfacConfig())
    with pytest.raises(InputError, match="at least 3 sequences"):
        query_gradient(model, [data], factors, refinement=Refinement(split(data, 2, 4)[:1]))
