"""Models and batches small enough for brute force."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lancet_pipeline.linfac import TokenBatch


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, num_attention_heads=2, max_position_embeddings=32, **sizes)
    ).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def batch(rows: int = 6, length: int = 12, seed: int = 0) -> TokenBatch:
    """Right-padded; the second row is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, length), generator=generator)
    attention, loss = torch.ones_like(ids), torch.zeros(rows, length, dtype=torch.bool)
    loss[:, 5:] = True
    attention[1, 9:], loss[1, 9:] = 0, False
    return TokenBatch(ids, attention, loss)


def split(whole: TokenBatch, *sizes: int) -> list[TokenBatch]:
    return [whole.rows(chosen) for chosen in torch.arange(len(whole)).split(list(sizes))]
