"""Cost of LinFAC against the width and depth of the model and the number of samples.

    python -m benchmarks.scaling --json OUT

Random Llamas; sequences of 64 tokens. Seconds of a plain forward and backward pass, of fitting factors on an eighth of the
sequences and of scoring all of them: medians of three interleaved rounds.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.influence import plain_pass
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_sequences

WIDTHS, DEPTHS, SAMPLES = (64, 128, 256, 512), (2, 4, 8, 16), (64, 128, 256, 512)
BASE = {"width": 128, "depth": 4, "samples": 128}


def main(json_out: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    points = [
        BASE | {axis: value}
        for axis, values in (("width", WIDTHS), ("depth", DEPTHS), ("samples", SAMPLES))
        for value in values
    ]
    result = []
    for point in points:
        result.append(point | seconds(**point))
        print(json.dumps(result[-1]), flush=True)
    if json_out is not None:
        json_out.write_text(json.dumps({"base": BASE, "points": result}, indent=2))


def seconds(width: int, depth: int, samples: int) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 1024, "hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": depth}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, max_position_embeddings=64, **sizes)).eval()
    tokens = np.random.default_rng(0).integers(0, 1024, (samples + 16, 64)).astype(np.int32)
    sequences = [TokenSequence(str(i), row, 1) for i, row in enumerate(tokens)]
    data = [collate(sequences[start : start + 32]) for start in range(0, samples, 32)]
    queries, few = [collate(sequences[samples:])], [collate(sequences[: max(8, samples // 8)])]
    plain_pass(model, data[:1])
    found: dict[str, list[float]] = {"plain": [], "factors": [], "scores": []}
    for _ in range(3):
        for name in found:
            started = time.monotonic()
            if name == "plain":
                plain_pass(model, data)
            elif name == "factors":
                factors = fit_factors(model, few, LinfacConfig())
            else:
                score_sequences(model, data, query_gradient(model, queries, factors))
            found[name].append(time.monotonic() - started)
    return {f"{name}_seconds": float(np.median(values)) for name, values in found.items()}


if __name__ == "__main__":
    typer.run(main)
