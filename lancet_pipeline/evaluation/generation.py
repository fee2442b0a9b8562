"""A model's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.tokenization import prompt_text
from lancet_pipeline.errors import InputError
from lancet_pipeline.progress import Track, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """`finished`: the model ended it by itself, and not the limit of new tokens."""

    text: str
    finished: bool


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    track: Track = no_progress,
) -> list[Answer]:
    """Greedy answers to `prompts`, in their order, without special tokens.

    Raises:
        InputError: a prompt leaves no room for `max_new_tokens` in the model's context.
    """
    encoded = [tokenizer(prompt_text(tokenizer, p), add_special_tokens=False)["input_ids"] for p in prompts]
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, encoded), default=0)
    if context is not None and longest + max_new_tokens > context:
        where = max(range(len(encoded)), key=lambda i: len(encoded[i]))
        raise InputError(
            f"prompt {where + 1} ({prompts[where][:60]!r}): {longest} tokens and {max_new_tokens} new ones do not fit "
            f"into the model's context of {context}; shorten it or lower max_new_tokens"
        )
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
    size = max(1, batch_tokens // (longest + max_new_tokens)) if prompts else 1
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    answers = [Answer("", True)] * len(prompts)
    ends = end_of_turn(tokenizer)
    for group in track(groups, len(groups), "generating"):
        width = max(len(encoded[i]) for i in group)
        ids = torch.full((len(group), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(group):
            ids[row, width - len(encoded[index]) :] = torch.tensor(encoded[index])
            mask[row, width - len(encoded[index]) :] = 1
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
        new = output[:, width:]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text, ids_ in zip(group, texts, new.tolist(), strict=True):
            answers[index] = Answer(text.strip(), any(end in ids_ for end in ends))
    return answers


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that end an answer: the tokenizer's own, and those that its chat template closes an answer with."""
    message = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    closing = tokenizer.apply_chat_template(message, tokenize=False).rpartition("b")[2].strip()
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    special = set(tokenizer.all_special_ids)
    return sorted({tokenizer.eos_token_id, *(i for i in ids[:1] if i in special)} - {None})
