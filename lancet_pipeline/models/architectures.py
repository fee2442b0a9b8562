"""Where a decoder keeps its sublayers: found by structure, or registered.

A layer's attention is the child whose name says so; everything linear beside it is its feed-forward network. The output
projection of a sublayer is its last linear layer that is as wide as the residual stream. An architecture that is built
otherwise is registered in one line, before the model is used:

    register("my_arch", Sublayers("model.layers", "attn.qkv", "attn.out", "mlp.up", "mlp.down"))
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lancet_pipeline.errors import InputError


@dataclass(frozen=True)
class Sublayers:
    """Module names: `layers` from the model's root, the others from one layer.

    The *input* modules are the first projections of a sublayer, whose input is the normalised hidden state that
    enters it; the *output* modules are its last projections, whose output joins the residual stream.
    """

    layers: str
    attention_input: str
    attention_output: str
    ffn_input: str
    ffn_output: str


_REGISTRY: dict[str, Sublayers] = {}


def register(model_type: str, sublayers: Sublayers) -> None:
    """Teach LinFAC an architecture; `model_type` is what its config.json says."""
    _REGISTRY[model_type] = sublayers


def sublayers_of(model: nn.Module) -> Sublayers:
    """The registered places of a model's architecture, or those that its structure shows.

    Raises:
        InputError: there are none, as in mixtures of experts and state-space models; says which part was not found.
    """
    config: Any = model.config
    model_type = config.model_type
    if model_type in _REGISTRY:
        return _REGISTRY[model_type]
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not stacks:
        raise _unknown(model_type, "no list of num_hidden_layers layers")
    layers = min(stacks, key=len)
    layer = next(model.get_submodule(layers).children())
    width = config.hidden_size
    attention, ffn = [], []
    for name, module in projections(layer):
        (attention if "attn" in name or "attention" in name else ffn).append((name, module))
    places = []
    for label, found in (("attention", attention), ("feed-forward network", ffn)):
        outputs = [name for name, module in found if widths(module)[0] == width]
        if len(found) < 2 or not outputs:
            raise _unknown(
                model_type, f"no {label} of linear layers that ends as wide as the residual stream ({width})"
            )
        places += [found[0][0], outputs[-1]]
    return Sublayers(layers, *places)


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every Transformer layer, first to last."""
    prefix = sublayers_of(model).layers
    return [(f"{prefix}.{index}", layer) for index, layer in enumerate(model.get_submodule(prefix).children())]


def projections(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every linear layer below `module`, by name; one that an adapter wraps counts once, as the wrapper."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_modules():
        inside_adapter = any(name.startswith(f"{outer}.") for outer, _ in found)
        if not inside_adapter and isinstance(base_layer(child), nn.Linear | _conv1d()):
            found.append((name, child))
    return found


def base_layer(module: nn.Module) -> nn.Module:
    """The layer that a peft adapter wraps; the module itself where none does."""
    return getattr(module, "base_layer", module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection keeps its weight as [d_a, d_s], as GPT-2's do."""
    return isinstance(base_layer(module), _conv1d())


def widths(module: nn.Module) -> tuple[int, int]:
    """(d_s, d_a) of a projection: how wide its output is, and its input."""
    first, second = base_layer(module).get_parameter("weight").shape
    return (second, first) if is_transposed(module) else (first, second)


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def _unknown(model_type: str, missing: str) -> InputError:
    return InputError(
        f"architecture '{model_type}': its sublayers are unknown ({missing}); "
        "register them with lancet_pipeline.models.architectures.register"
    )
