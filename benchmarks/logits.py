"""Peak memory and processor time of a training step and of LinFAC's pass, with logits read whole and in chunks.

OMP_NUM_THREADS=1 python -m benchmarks.logits
"""

import resource
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.linfac import find_units
from lancet_pipeline.linfac.units import backward_pass
from lancet_pipeline.models import likelihood

VOCABULARY, WIDTH, ROWS, LENGTH = 128_256, 256, 8, 257


def measure(work: str, way: str) -> str:
    """A line of the table; peak memory is a process's own, so that one process measures one thing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes)).eval()
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    batch = TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    if way == "whole":
        likelihood.LOGITS = sys.maxsize
    held, begun = _peak(), time.process_time()
    for _ in range(2):
        if work == "training":
            (-likelihood.token_logps(model, batch).mean()).backward()
            model.zero_grad()
        else:
            backward_pass(model, batch, find_units(model, "sublayer_output"), lambda *_: None)
    return f"{work:8}  {way:6}  {_peak() - held:5.2f} GB  {(time.process_time() - begun) / 2:5.1f} s"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*sys.argv[1:]))
    else:
        for work in ("training", "linfac"):
            for way in ("whole", "chunks"):
                subprocess.run([sys.executable, "-m", "benchmarks.logits", work, way], check=True)
