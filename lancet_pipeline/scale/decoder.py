"""What a decoder is made of and what a pass through it costs, counted on the meta device, where tensors have no values."""

import copy
import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError, first_line
from lancet_pipeline.linfac.units import UnitKind, find_units
from lancet_pipeline.models.architectures import widths
from lancet_pipeline.models.loading import find_checkpoint

Gradients = Literal["none", "activations", "parameters"]
CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("decoders.json").read_text())
"""Configurations as the models' config.json on the hub give them, so that planning needs no connection."""
SHORT = 64
"""Tokens of the sequence whose activations are measured: attention's square, which fused kernels do not keep, is small in it."""


class Decoder:
    """Counts of a causal language model. A pass is counted with one layer and with two; each further layer adds the difference.

    parameters: of the whole model. layers: how many. dtype: of its weights.

    Raises:
        InputError: the configuration is of no such model.
    """

    def __init__(self, config: PreTrainedConfig, dtype: str = "float32") -> None:
        self.config, self.dtype, self.layers = config, dtype, config.num_hidden_layers
        try:
            self.parameters = self._built(self.layers).num_parameters()
            self._thin = [self._built(layers) for layers in (1, 2)]
            self.flops = cache(self._flops)
            self.flops(SHORT, 1, "none")
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"does not give the shape of a decoder ({first_line(error)})") from None

    def _flops(self, tokens: float, read: float, gradients: Gradients) -> float:
        """Operations of dense products of one sequence, `read` positions of which need logits: forwards, and backwards to the
        activations alone, or to the parameters too."""
        found = []
        for model in self._thin:
            with FlopCounterMode(display=False) as counter:
                _pass(model, max(1, round(tokens)), max(1, round(read)), gradients)
            found.append(counter.get_total_flops())
        return found[0] + (self.layers - 1) * (found[1] - found[0])

    @cached_property
    def activations(self) -> float:
        """Bytes that a token leaves in a layer for the backward pass."""
        found = []
        for model in self._thin:
            weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
            kept = {}

            def keep(tensor: Any, kept: dict = kept) -> Any:
                kept[tensor.untyped_storage()._cdata] = tensor
                return tensor

            with saved_tensors_hooks(keep, lambda tensor: tensor):
                _pass(model, SHORT, 1, "parameters", backward=False)
            found.append(sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights))
        return (found[1] - found[0]) / SHORT

    def units(self, kind: UnitKind) -> tuple[tuple[int, int], ...]:
        """Widths (d_s, d_a) of the units of one layer, for `linfac.units`."""
        module = self._thin[0].get_submodule
        units = find_units(self._thin[0], kind)
        return tuple((widths(module(unit.output_module))[0], widths(module(unit.input_module))[1]) for unit in units)

    def as_json(self) -> dict[str, Any]:
        """`values`: width of the keys, and of the values. `gated`: three matrices in a feed-forward network instead of two."""
        linear, ffn = self.units("linear"), self.units("sublayer_output")[1][1]
        return {
            "parameters": self.parameters,
            "layers": self.layers,
            "width": self.config.hidden_size,
            "ffn": ffn,
            "vocabulary": self.config.vocab_size,
            "values": min(out for out, _ in linear),
            "gated": sum(ffn in unit for unit in linear) > 2,
            "tied": bool(self.config.tie_word_embeddings),
        }

    def _built(self, layers: int) -> PreTrainedModel:
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        with torch.device("meta"):
            # Eager attention alone reads no value of the mask.
            return AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, self.dtype), attn_implementation="eager"
            ).eval()


def _pass(model: Any, tokens: int, read: int, gradients: Gradients, *, backward: bool = True) -> None:
    model.requires_grad_(gradients == "parameters")
    with torch.set_grad_enabled(gradients != "none"):
        embedded = model.get_input_embeddings()(torch.zeros(1, tokens, dtype=torch.long, device="meta"))
        if gradients == "activations":
            embedded.requires_grad_()
        mask = torch.ones(1, tokens, dtype=torch.long, device="meta")
        hidden = model.base_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False)[0]
        logits = model.get_output_embeddings()(hidden[:, -read:])
        if gradients != "none" and backward:
            logits.sum().backward()


def decoder_of(study: Study, model_directories: Sequence[Path], parameters: int | None = None) -> Decoder:
    """A study's model; with `parameters`, a Llama of about that many with its vocabulary.

    Raises:
        InputError: a checkpoint without a config.json here that is not among CONFIGS either.
    """
    if parameters is not None and parameters < 10**7:
        raise InputError(f"--parameters {parameters}: give at least 10000000; below, embeddings are most of a model")
    if study.model.architecture is not None:
        found = _configured(study.model.architecture.model_dump())
    else:
        assert study.model.checkpoint is not None
        found = _known(study.model.checkpoint, model_directories)
        if found is None and parameters is None:
            raise InputError(
                f"model.checkpoint = {study.model.checkpoint}: no config.json of it is here, and its shape is not among those "
                f"known ({', '.join(CONFIGS)}); put the checkpoint into a model directory, or give --parameters"
            )
    if parameters is not None:
        found = _resized(found or _configured(CONFIGS["meta-llama/Llama-2-7b-hf"]), parameters)
    assert found is not None
    try:
        return Decoder(found, study.model.dtype)
    except InputError as error:
        place = study.model.checkpoint or "model.architecture"
        raise InputError(f"{place}: {error}; give --parameters") from None


def known_decoder(checkpoint: str, model_directories: Sequence[Path]) -> Decoder | None:
    """A model in bfloat16 that lies here or is among CONFIGS; None where it is neither, or no decoder."""
    try:
        config = _known(checkpoint, model_directories)
        return None if config is None else Decoder(config, "bfloat16")
    except InputError:
        return None


def _known(checkpoint: str, model_directories: Sequence[Path]) -> PreTrainedConfig | None:
    folder = Path(find_checkpoint(checkpoint, model_directories))
    if not (folder.is_absolute() and (folder / "config.json").is_file()):
        return _configured(CONFIGS[checkpoint]) if checkpoint in CONFIGS else None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"does not give the shape of a decoder ({first_line(error)})"
        raise InputError(f"{folder / 'config.json'}: {reason}; give --parameters") from None


def _configured(settings: dict[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(**settings, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def _resized(config: PreTrainedConfig, parameters: int) -> PreTrainedConfig:
    """In the proportions of Llama's 7B and 70B: a layer for every 128 of width, which has 12 width^2 parameters."""
    tables = config.vocab_size * (1 if config.tie_word_embeddings else 2)

    def size(width: int) -> int:
        return (width // 128) * 12 * width**2 + tables * width

    width = min(range(128, 2**15, 128), key=lambda width: abs(size(width) - parameters))
    sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": width // 128}
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": width // 128}
    kept = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_word_embeddings}
    return _configured({"model_type": "llama", **sizes, **heads, **kept})
