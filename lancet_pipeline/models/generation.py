"""Generate a model's answers to prompts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from lancet_pipeline.data.batches import bucketed
from lancet_pipeline.data.tokenization import prompt_text
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.memory import Backoff
from lancet_pipeline.models.runtime import Runtime

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
    temperature: float = 0.0,
    seed: int = 0,
    templated: bool = False,
    runtime: Runtime = Runtime(),
) -> list[Answer]:
    """Answers to `prompts`, in their order, without special tokens: greedy ones, or one sample each.

    Of the checkpoint's generation_config the end tokens count, and nothing else: penalties, suppressed tokens, beams and
    the like would make other answers of the same model.

    A sample follows from the model, its prompt and the seed: neither the other prompts nor the size of a batch change
    it (as far as padding leaves the logits the same), and two models meet the same chance on the same prompt.

    Args:
        temperature: of the sampling from the whole distribution; 0 is greedy decoding.
        templated: the prompts stand as they are to be read, special tokens written out, and get no chat template.

    Raises:
        InputError: a prompt leaves no room for `max_new_tokens` in the model's context.
    """
    from transformers import GenerationConfig

    if not templated:
        prompts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, encoded), default=0)
    if context is not None and longest + max_new_tokens > context:
        where = max(range(len(encoded)), key=lambda i: len(encoded[i]))
        raise InputError(
            f"prompt {where + 1} ({prompts[where][:60]!r}): {longest} tokens and {max_new_tokens} new ones do not fit "
            f"into the model's context of {context}; shorten it or lower max_new_tokens"
        )
    groups = bucketed(encoded, runtime.batch_tokens, max_new_tokens)
    answers = [Answer("", True)] * len(prompts)
    pad: Any = tokenizer.pad_token_id
    own: Any = model.generation_config
    listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = sorted({*end_of_turn(tokenizer), *listed} - {None})
    plain = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)

    def answer(group: list[int]) -> None:
        rows = [torch.tensor(encoded[i]) for i in group]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        noise = [GumbelNoise([prompts[i] for i in group], temperature, seed)] if temperature else []
        try:
            model.generation_config = plain  # what `generate` is not told it would take from the checkpoint's own
            with torch.no_grad():
                output = cast(Any, model).generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=plain,
                    logits_processor=noise,
                )
        finally:
            model.generation_config = own
        for index, new in zip(group, output[:, ids.shape[1] :].tolist(), strict=True):
            stop = next((place for place, token in enumerate(new) if token in ends), None)
            text = str(tokenizer.decode(new[:stop], skip_special_tokens=True))
            answers[index] = Answer(text.strip(), stop is not None)

    backoff = Backoff()
    for group in runtime.track(groups, len(groups), "generating"):
        backoff.run(
            lambda rows, group=group: answer(group[rows]),
            len(group),
            max(len(encoded[i]) for i in group) + max_new_tokens,
            lambda i, group=group: f"prompt {group[i] + 1} ({prompts[group[i]][:60]!r})",
        )
    return answers


class GumbelNoise:
    """Turns greedy decoding into sampling: the arg max of logits / temperature + Gumbel noise is a sample of their
    softmax. Each prompt has a generator of its own, on the CPU, so that every device and batch draws the same."""

    def __init__(self, prompts: Sequence[str], temperature: float, seed: int) -> None:
        self.temperature = temperature
        digests = [hashlib.sha256(f"{seed}\x1f{prompt}".encode()).digest() for prompt in prompts]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Noisy logits [B, vocab] float32 from those that predict the next token, [B, vocab]."""
        waits = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores.float() / self.temperature - torch.stack(waits).to(scores.device).log()


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that end an answer: the tokenizer's own, and those that its chat template closes an answer with."""
    message = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    closing = str(tokenizer.apply_chat_template(message, tokenize=False)).rpartition("b")[2].strip()
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    special, end = set(tokenizer.all_special_ids), cast("int | None", tokenizer.eos_token_id)
    return sorted({end, *(i for i in ids[:1] if i in special)} - {None})
