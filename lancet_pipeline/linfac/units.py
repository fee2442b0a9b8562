"""The units of the approximation, and the one pass over a batch that shows each unit its input and its gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lancet_pipeline.config.study import UnitKind
from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.architectures import base_layer, is_transposed, layers_of, projections, sublayers_of
from lancet_pipeline.models.likelihood import loss_tokens, read_logits, sum_by_sequence
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Unit:
    """Where one block of the approximation reads `a` (what enters `input_module`) and `s` (what leaves
    `output_module`). Its modular gradient is M = sum_t ds_t a_t^T, with ds the gradient at s."""

    name: str
    input_module: str
    output_module: str


GRADIENT_ELEMENTS = 2**24
"""Per-sample gradients held at once, in float32 elements (64 MiB)."""


Consume = Callable[[Unit, torch.Tensor, torch.Tensor], None]
Labels = Callable[[torch.Tensor, TokenBatch, slice], torch.Tensor]


def find_units(model: "PreTrainedModel", kind: UnitKind) -> list[Unit]:
    """The units of a model, first layer to last.

    `sublayer_output`: a is the input of the sublayer's output projection, so that M is that projection's exact
    gradient. `sublayer_input`: a is the normalised hidden state entering the sublayer. `linear`: one unit for
    every linear layer.

    Raises:
        InputError: the architecture is unknown.
    """
    places = sublayers_of(model)
    units = []
    for name, layer in layers_of(model):
        if kind == "linear":
            units += [Unit(*[f"{name}.{path}"] * 3) for path, _ in projections(layer)]
            continue
        for label, entry, exit_ in (
            ("attention", places.attention_input, places.attention_output),
            ("ffn", places.ffn_input, places.ffn_output),
        ):
            read = exit_ if kind == "sublayer_output" else entry
            units.append(Unit(f"{name}.{label}", f"{name}.{read}", f"{name}.{exit_}"))
    return units


def gradient_elements(model: "PreTrainedModel", units: Sequence[Unit]) -> int:
    """Elements of the modular gradients of one sequence, over all `units`."""

    def elements(unit: Unit) -> int:
        layer: Any = base_layer(model.get_submodule(unit.output_module))
        if unit.input_module == unit.output_module:
            return layer.weight.numel()
        return layer.weight.shape[1 if is_transposed(layer) else 0] * model.config.hidden_size

    return sum(map(elements, units))


def backward_pass(
    model: "PreTrainedModel",
    batch: TokenBatch,
    units: Sequence[Unit],
    consume: Consume,
    labels: Labels | None = None,
) -> torch.Tensor:
    """One forward and one activation-only backward pass; `consume(unit, a, ds)` is called for each unit.

    Parameters take no gradient: the outputs of the lowest units are the leaves, so no weight gradient is ever formed
    and nothing below them is differentiated. `a` is [B, T, d_a], `ds` [B, T, d_s]: the gradient of each sequence's
    log-probability summed over its loss tokens.

    Args:
        labels: chooses the tokens [m] whose log-probability is differentiated, from the logits [m, vocab] of a slice of
            all loss positions of the batch; the tokens of the batch where absent.

    Returns:
        Log-probability of each sequence, [B] float32.

    Raises:
        InputError: a sequence without loss tokens or past the model's context; activations, losses or gradients that
            are not finite. Names the sequence and, for the latter, the module.
    """
    _check(model, batch)
    inputs: dict[Unit, torch.Tensor] = {}
    leaves: dict[Unit, torch.Tensor] = {}  # of the last forward pass, should there be two

    def read(unit: Unit) -> Callable:
        def hook(_module: nn.Module, args: tuple) -> None:
            inputs[unit] = by_sequence(args[0].detach())

        return hook

    def watch(unit: Unit) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
            if not output.requires_grad:  # no unit lies below
                leaves[unit] = output.requires_grad_()
            output.register_hook(lambda gradient: consume(unit, inputs.pop(unit), by_sequence(gradient)))

        return hook

    def by_sequence(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, batch.input_ids.shape) if values.dim() == 2 else values  # OPT flattens its FFN

    def logps(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        targets = tokens[rows] if labels is None else labels(logits.detach(), batch, rows)
        return -nn.functional.cross_entropy(logits, targets, reduction="none")

    batch = batch.to(model.device)
    tokens = loss_tokens(batch)
    handles = []
    with frozen(model), torch.enable_grad():
        try:
            for unit in units:
                handles.append(model.get_submodule(unit.input_module).register_forward_pre_hook(read(unit)))
                handles.append(model.get_submodule(unit.output_module).register_forward_hook(watch(unit)))
            token_logps = read_logits(model, batch, logps)
            last_gradients = torch.autograd.grad(token_logps.sum(), list(leaves.values()))
        finally:
            for handle in handles:
                handle.remove()
    # Whatever is not finite anywhere in the network is not finite in one of these.
    if not all(values.isfinite().all() for values in (token_logps, *last_gradients)):
        raise _not_finite(model, batch)
    return sum_by_sequence(token_logps.detach(), batch)


def sum_over(
    model: "PreTrainedModel",
    batch: TokenBatch,
    units: Sequence[Unit],
    add: Callable[[slice, Unit, torch.Tensor, torch.Tensor], None],
    backoff: Backoff,
    labels: Labels | None = None,
) -> None:
    """As `backward_pass`, for sums over sequences: `add(rows, unit, a, ds)` gets each unit of every sequence once.

    rows: the slice of the batch that `a` and `ds` are of, all of it where it fits into memory. `add` must change its sums
    last of all, so that nothing of it stays where it is out of memory.
    """
    summed = [frozenset[Unit]()] * len(batch)

    def work(rows: slice) -> None:
        # Units that were summed before the rest was out of memory are not summed again in its halves.
        before, done = summed[rows.start], set[Unit]()

        def add_once(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
            add(rows, unit, inputs, gradients)
            done.add(unit)

        left = [unit for unit in units if unit not in before]
        try:
            if left:
                backward_pass(model, batch.part(rows), left, add_once, labels)
        finally:
            summed[rows] = [before | done] * (rows.stop - rows.start)

    backoff.run(work, len(batch), batch.input_ids.shape[1], batch.name)


def squared_norms(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> torch.Tensor:
    """||M_b||^2 of every sequence, [B]: from inner products of tokens, or from M_b itself where it is smaller."""
    inputs, gradients = inputs_bta.float(), gradients_bts.float()
    length, width_a, width_s = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    if length * (width_a + width_s) <= width_a * width_s:
        return ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2)).clamp_min(0)
    chunks = row_chunks(inputs, gradients)
    return torch.cat([(gradients[rows].mT @ inputs[rows]).square().sum((1, 2)) for rows in chunks])


def row_chunks(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> list[slice]:
    """Slices of the batch whose per-sample gradients fit into GRADIENT_ELEMENTS."""
    size = max(1, GRADIENT_ELEMENTS // (inputs_bta.shape[-1] * gradients_bts.shape[-1]))
    return [slice(start, start + size) for start in range(0, len(inputs_bta), size)]


def _check(model: "PreTrainedModel", batch: TokenBatch) -> None:
    empty = (batch.loss_tokens == 0).nonzero()[:, 0]
    if len(empty):
        raise InputError(
            f"{batch.name(int(empty[0]))}: has no response token, so nothing of it is learnt; leave it out"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and batch.input_ids.shape[1] > context:
        row = int(batch.attention_mask.sum(1).argmax())
        raise InputError(
            f"{batch.name(row)}: {batch.input_ids.shape[1]} tokens, more than the model's context of {context}; "
            "shorten or truncate it"
        )


def _not_finite(model: "PreTrainedModel", batch: TokenBatch) -> InputError:
    """Runs the batch again and finds the first module of the forward pass whose output is not finite."""
    found: list[tuple[str, torch.Tensor]] = []

    def look(name: str) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(values, torch.Tensor) and not values.isfinite().all():
                found.append((name, ~values.isfinite()))

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return InputError(
            f"{', '.join(batch.names) or 'a batch'}: gradients are not finite though all activations are; "
            "use a wider model.dtype"
        )
    name, where = found[0]
    row = int(where.reshape(len(batch), -1).any(1).nonzero()[0])
    return InputError(
        f"{batch.name(row)}: what '{name}' computes of it is not finite; "
        "check that the model's weights are finite, or use a wider model.dtype"
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter that takes a gradient, until the block ends."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
