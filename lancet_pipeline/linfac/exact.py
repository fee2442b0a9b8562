"""The exact Gauss-Newton matrix of a model, as products with vectors: the reference for LinFAC and its refinement.

G = E_z[ sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t ] over sequences z and their loss tokens t, with J_t the Jacobian of the
logits that predict t, in the weights of the units' projections.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.units import Unit, frozen
from lancet_pipeline.models.architectures import base_layer, is_transposed
from lancet_pipeline.models.likelihood import response_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Blocks = tuple[torch.Tensor, ...]
"""One tensor [K, d_s, d_a] a unit: K vectors in the space of all units' weights."""


@dataclass(frozen=True)
class _Graph:
    """What one batch keeps between products: its logits, and their vector-Jacobian product as a function of `seed`."""

    logits: torch.Tensor
    probabilities: torch.Tensor
    seed: torch.Tensor
    pulled_back: tuple[torch.Tensor, ...]


class GaussNewton:
    """Products with the exact Gauss-Newton matrix of `batches` in the weights of `units`.

    The graphs of all batches are kept, about five times the activations of one forward pass, so that a product costs no
    forward pass: two backward passes over the data for J v, one for J^T u. Meant for small models or few sequences.

    Raises:
        InputError: no batches, or a unit whose modular gradient is no weight's gradient (`sublayer_input`).
    """

    def __init__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch], units: Sequence[Unit]) -> None:
        for unit in units:
            if unit.input_module != unit.output_module:
                raise InputError(
                    f"unit '{unit.name}': reads one module and writes another, so no weight has its gradient; "
                    "use units `sublayer_output` or `linear` for an exact Gauss-Newton matrix"
                )
        modules = [model.get_submodule(unit.output_module) for unit in units]
        self._transposed = [is_transposed(module) for module in modules]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = [base_layer(module).get_parameter("weight") for module in modules]
        weights = {names[id(weight)]: weight.detach().requires_grad_() for weight in found}
        self._weights = tuple(weights.values())
        self.sequences = 0
        self._graphs: list[_Graph] = []
        with frozen(model):
            for batch in batches:
                self._graphs.append(self._graph(model, weights, batch.to(model.device)))
                self.sequences += len(batch.input_ids)
        if not self._graphs:
            raise InputError("GaussNewton: no batches; give at least one sequence")

    def product(self, vectors: Blocks) -> Blocks:
        """G v for each of the K vectors."""
        total = [torch.zeros_like(vector) for vector in vectors]
        for graph in self._graphs:
            pushed = torch.autograd.grad(
                graph.pulled_back, graph.seed, self._oriented(vectors), retain_graph=True, is_grads_batched=True
            )[0]
            p = graph.probabilities
            curved = p * (pushed - (p * pushed).sum(-1, keepdim=True))
            back = torch.autograd.grad(graph.logits, self._weights, curved, retain_graph=True, is_grads_batched=True)
            for part, gradient in zip(total, self._oriented(back), strict=True):
                part += gradient
        return tuple(part / self.sequences for part in total)

    def _oriented(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [t.mT if transposed else t for t, transposed in zip(tensors, self._transposed, strict=True)]

    def _graph(self, model: "PreTrainedModel", weights: dict[str, torch.Tensor], batch: TokenBatch) -> _Graph:
        def with_weights(**inputs: Any) -> Any:
            return functional_call(model, weights, kwargs=inputs)

        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            logits, _ = response_logits(model, batch, with_weights)
            seed = torch.zeros_like(logits, requires_grad=True)
            pulled_back = torch.autograd.grad(logits, self._weights, seed, create_graph=True)
        return _Graph(logits, logits.detach().softmax(-1), seed, pulled_back)


def conjugate_gradients(
    product: Callable[[Blocks], Blocks],
    right: Blocks,
    damping_value: float,
    *,
    steps: int,
    start: Blocks | None = None,
    precondition: Callable[[Blocks], Blocks] = lambda blocks: blocks,
    tolerance: float = 1e-6,
    watch: Callable[[int, Blocks], None] = lambda step, solution: None,
) -> Blocks:
    """Solve (G + damping_value I) x = right for each of the K right-hand sides, at most `steps` steps.

    Args:
        product: G x.
        start: the first guess; zero where absent.
        precondition: an approximate inverse, symmetric positive definite.
        tolerance: a right-hand side is done when its residual has shrunk to this share of its norm.
        watch: called with each solution, the first guess as step 0.
    """

    def damped(blocks: Blocks) -> Blocks:
        return tuple(g + damping_value * x for g, x in zip(product(blocks), blocks, strict=True))

    solution = tuple(torch.zeros_like(block) for block in right) if start is None else start
    residual = right if start is None else _axpy(right, -1.0, damped(start))
    watch(0, solution)
    conditioned = precondition(residual)
    direction, agreement = conditioned, _inner(residual, conditioned)
    goal = tolerance * _inner(right, right).sqrt()
    for step in range(1, steps + 1):
        if bool((_inner(residual, residual).sqrt() <= goal).all()):
            break
        image = damped(direction)
        length = agreement / _inner(direction, image).clamp_min(1e-38)
        solution, residual = _axpy(solution, length, direction), _axpy(residual, -length, image)
        watch(step, solution)
        conditioned = precondition(residual)
        previous, agreement = agreement, _inner(residual, conditioned)
        direction = _axpy(conditioned, agreement / previous.clamp_min(1e-38), direction)
    return solution


def _inner(left: Blocks, right: Blocks) -> torch.Tensor:
    """Inner product of each pair of vectors, [K]."""
    return sum(((a * b).flatten(1).sum(1) for a, b in zip(left, right, strict=True)), torch.zeros(()))


def _axpy(blocks: Blocks, factor: torch.Tensor | float, direction: Blocks) -> Blocks:
    scale = factor[:, None, None] if isinstance(factor, torch.Tensor) else factor
    return tuple(block + scale * step for block, step in zip(blocks, direction, strict=True))
