"""What new samples cost: 50,000 sequences scored, then 1 % more among them.

python -m benchmarks.incremental --json OUT
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_dataset


def main(json_out: Annotated[Path | None, typer.Option("--json")] = None, samples: int = 50_000) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, max_position_embeddings=32, **sizes)).eval()
    generator = np.random.default_rng(0)
    every = [
        TokenSequence(str(i), generator.integers(0, 512, int(generator.integers(12, 33))).astype(np.int32), 6)
        for i in range(samples + samples // 100)
    ]
    first, order = every[:samples], generator.permutation(len(every))
    factors = fit_factors(model, [collate(first[:256])], LinfacConfig())
    query = query_gradient(model, [collate(first[256:272])], factors)
    with tempfile.TemporaryDirectory() as folder:
        seconds, reused = {}, {}
        for name, sequences in (("all", first), ("again", first), ("one_percent_more", [every[i] for i in order])):
            started = time.monotonic()
            scores = score_dataset(model, sequences, query, batch_tokens=8192, journal=Path(folder))
            seconds[name], reused[name] = time.monotonic() - started, scores.reused
    result = {
        "samples": samples,
        "seconds": seconds,
        "reused": reused,
        "share_of_full_time": {name: seconds[name] / seconds["all"] for name in ("again", "one_percent_more")},
    }
    print(json.dumps(result, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
