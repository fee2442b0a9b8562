"""The shape of a decoder, from its config.json, a study's architecture, or a table of models of the hub."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import Study
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.loading import find_checkpoint


@dataclass(frozen=True)
class Shape:
    """Widths of a decoder-only Transformer. `gated`: three matrices in a feed-forward network instead of two. `values`:
    width of the keys, and of the values, which grouped-query attention makes narrower than the stream."""

    layers: int
    width: int
    ffn: int
    vocabulary: int
    values: int
    gated: bool = True
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.width * (self.width + self.values)
        return attention + (3 if self.gated else 2) * self.width * self.ffn

    @property
    def body(self) -> int:
        """Parameters of the layers, which every token passes."""
        return self.layers * self.layer_parameters

    @property
    def head(self) -> int:
        """Parameters of the output embedding, which only positions before a loss token pass."""
        return self.width * self.vocabulary

    @property
    def parameters(self) -> int:
        return self.body + self.head * (1 if self.tied else 2)

    def units(self, kind: str) -> list[tuple[int, int]]:
        """(d_s, d_a) of the units of one layer, for `linfac.units`."""
        if kind == "sublayer_output":
            return [(self.width, self.width), (self.width, self.ffn)]
        if kind == "sublayer_input":
            return [(self.width, self.width)] * 2
        into, out = (self.ffn, self.width), (self.width, self.ffn)
        return [
            *[(self.width, self.width), (self.values, self.width), (self.values, self.width), (self.width, self.width)],
            *([into, into, out] if self.gated else [into, out]),
        ]

    def resized(self, parameters: int) -> "Shape":
        """A shape of about `parameters` in the proportions of Llama: width over depth as in its 7B and 70B models."""
        layers, width = self.layers, self.width
        for _ in range(32):  # the embeddings do not grow with the layers
            body = max(parameters - (1 if self.tied else 2) * width * self.vocabulary, parameters // 4)
            width = max(64, 64 * round((body * 110 / 12.5) ** (1 / 3) / 64))
            layers = max(1, round(body / (12.5 * width**2)))
        ffn = round(width * 8 / 3) if self.gated else 4 * width
        return Shape(layers, width, ffn, self.vocabulary, width, self.gated, self.tied)


KNOWN: dict[str, Shape] = {
    "facebook/opt-125m": Shape(12, 768, 3072, 50272, 768, gated=False, tied=True),
    "facebook/opt-1.3b": Shape(24, 2048, 8192, 50272, 2048, gated=False, tied=True),
    "facebook/opt-2.7b": Shape(32, 2560, 10240, 50272, 2560, gated=False, tied=True),
    "facebook/opt-6.7b": Shape(32, 4096, 16384, 50272, 4096, gated=False, tied=True),
    "meta-llama/Llama-2-7b-hf": Shape(32, 4096, 11008, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": Shape(40, 5120, 13824, 32000, 5120),
    "meta-llama/Llama-2-70b-hf": Shape(80, 8192, 28672, 32000, 1024),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 14336, 128256, 1024),
    "meta-llama/Llama-3.1-70B": Shape(80, 8192, 28672, 128256, 1024),
    "meta-llama/Llama-Guard-3-8B": Shape(32, 4096, 14336, 128256, 1024),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 1536, 49152, 192, tied=True),
}
"""Shapes as the models' config.json give them, so that planning needs no connection."""


def shape_of(study: Study, model_directories: Sequence[Path], parameters: int | None = None) -> Shape:
    """The shape of a study's model, resized where `parameters` are given.

    Raises:
        InputError: a checkpoint without a config.json here that is not in the table either.
    """
    if parameters is not None and parameters < 10**7:
        raise InputError(f"--parameters {parameters}: give at least 10000000; below, embeddings are most of a model")
    architecture = study.model.architecture
    if architecture is not None:
        found = of_config({**architecture.model_dump(), "vocab_size": architecture.vocab_size})
    else:
        assert study.model.checkpoint is not None
        known = known_shape(study.model.checkpoint, model_directories)
        if known is None and parameters is None:
            raise InputError(
                f"model.checkpoint = {study.model.checkpoint}: no config.json of it is here, and its shape is not among those "
                f"known ({', '.join(KNOWN)}); put the checkpoint into a model directory, or give --parameters"
            )
        found = known or KNOWN["meta-llama/Llama-2-7b-hf"]
    return found if parameters is None else found.resized(parameters)


def known_shape(checkpoint: str, model_directories: Sequence[Path]) -> Shape | None:
    """The shape of a checkpoint that lies here or is in the table. Raises InputError for a config.json that does not fit."""
    place = find_checkpoint(checkpoint, model_directories)
    config = Path(place) / "config.json"
    if not (Path(place).is_absolute() and config.is_file()):
        return KNOWN.get(checkpoint)
    try:
        return of_config(json.loads(config.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config}: does not give the shape of a decoder ({error!r}); give --parameters") from None


def of_config(config: Mapping[str, Any]) -> Shape:
    """A shape from what config.json says, in the words of Llama, OPT or GPT-2. Raises KeyError where a width is missing."""

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name)), None)

    layers, width = first("num_hidden_layers", "n_layer"), first("hidden_size", "n_embd")
    if layers is None or width is None:
        raise KeyError("num_hidden_layers and hidden_size")
    heads = first("num_attention_heads", "n_head") or 1
    head = first("head_dim") or width // heads
    gated = config.get("model_type", "llama") not in ("opt", "gpt2", "gpt_neox", "phi", "bloom", "falcon")
    return Shape(
        layers,
        width,
        first("intermediate_size", "ffn_dim", "n_inner") or 4 * width,
        config["vocab_size"],
        head * (first("num_key_value_heads") or heads),
        gated,
        bool(config.get("tie_word_embeddings", not gated)),
    )


def sketched(width: int, max_dim: int) -> int:
    """Width of a factor side: no wider than `max_dim`."""
    return min(width, max_dim)


def batches(sequences: float, tokens: float, batch_tokens: int) -> float:
    """Batches of `sequences` of `tokens` tokens each on average."""
    return math.ceil(max(1.0, sequences) / max(1.0, batch_tokens // max(1.0, tokens)))
