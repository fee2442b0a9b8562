"""Where each decoder architecture keeps its sublayers.

An architecture that is not listed is added in one line, before the model is used:

    register("my_arch", Sublayers("model.layers", "attn.qkv", "attn.out", "mlp.up", "mlp.down"))
"""

from dataclasses import dataclass

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


_LLAMA = Sublayers("model.layers", "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")

_REGISTRY: dict[str, Sublayers] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"), _LLAMA),
    "phi": Sublayers("model.layers", "self_attn.q_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "opt": Sublayers("model.decoder.layers", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
    "gpt2": Sublayers("transformer.h", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": Sublayers(
        "gpt_neox.layers", "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    ),
}


def register(model_type: str, sublayers: Sublayers) -> None:
    """Teach LinFAC an architecture; `model_type` is what its config.json says."""
    _REGISTRY[model_type] = sublayers


def sublayers_of(model_type: str) -> Sublayers:
    """Raises InputError where the architecture is unknown."""
    if model_type not in _REGISTRY:
        raise InputError(
            f"architecture '{model_type}': its sublayers are unknown (known: {', '.join(sorted(_REGISTRY))}); "
            "register them with lancet_pipeline.models.architectures.register"
        )
    return _REGISTRY[model_type]


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every Transformer layer, first to last."""
    prefix = sublayers_of(model.config.model_type).layers
    return [(f"{prefix}.{index}", layer) for index, layer in enumerate(model.get_submodule(prefix))]
