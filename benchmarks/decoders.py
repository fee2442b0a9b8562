"""Configurations of the paper's models, reduced to a size for a laptop."""

from typing import Any

from lancet_pipeline.scale.decoder import CONFIGS


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
