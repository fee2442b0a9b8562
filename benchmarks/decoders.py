"""Configurations of the paper's models, as their config.json on the hub give them, in full or reduced to a size for a laptop."""

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
    "facebook/opt-2.7b": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "dropout": 0.1,
        "attention_dropout": 0.0,
    },
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}


def reduced(name: str, depth: int, width: int, vocabulary: int) -> dict[str, Any]:
    """The configuration of `name` with other sizes: proportions of the feed-forward network and of grouped heads stay, four
    heads, and everything that is no size."""
    full = CONFIGS[name]
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "vocab_size": vocabulary, "num_attention_heads": 4}
    for key in ("ffn_dim", "intermediate_size"):
        if key in full:
            sizes[key] = 8 * round(width * full[key] / full["hidden_size"] / 8)
    if "word_embed_proj_dim" in full:
        sizes["word_embed_proj_dim"] = width
    if "num_key_value_heads" in full:
        sizes["num_key_value_heads"] = 4 * full["num_key_value_heads"] // full["num_attention_heads"]
    return full | sizes
