"""Answers against loops that take the likeliest token, or draw it, one prompt at a time."""

import pytest
import torch
from models.test_architectures import ARCHITECTURES, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.data.tokenization import prompt_text, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.generation import GumbelNoise, end_of_turn, generate

PROMPTS = ["short", "a prompt that is rather longer than the first one", "another", "b c d e f"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes)).eval()


def greedy(model, tokenizer, prompt: str, limit: int) -> tuple[str, bool]:
    ids = tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < limit and tokenizer.eos_token_id not in new:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True).strip(), tokenizer.eos_token_id in new


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_answers_are_greedy_and_in_the_order_of_the_prompts(model, tokenizer, batch_tokens):
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=10, batch_tokens=batch_tokens)
    assert [(a.text, a.finished) for a in answers] == [greedy(model, tokenizer, p, 10) for p in PROMPTS]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_of_like_length_are_answered_together_as_each_alone(name, tokenizer):
    model, prompts = make_model(name, vocab_size=len(tokenizer)), ["a b c d e f g", *["short", "a b"] * 8]
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.dim() == 2 else 1  # answers follow the prompts
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    together = generate(model, tokenizer, prompts, max_new_tokens=4, batch_tokens=100)
    handle.remove()
    widths = [len(tokenizer(prompt_text(tokenizer, p), add_special_tokens=False)["input_ids"]) for p in prompts]
    first_passes = [shape for shape in shapes if shape[1] > 1]
    assert sum(rows for rows, _ in first_passes) == len(prompts)
    assert all(rows * (width + 4) <= 100 for rows, width in first_passes)
    assert max(rows for rows, _ in first_passes) > 100 // (max(widths) + 4), "the longest prompt is not everybody's"
    alone = {prompt: generate(model, tokenizer, [prompt], max_new_tokens=4)[0] for prompt in set(prompts)}
    assert together == [alone[prompt] for prompt in prompts]
    assert len({answer.text for answer in together}) > 1


def test_answers_do_not_depend_on_what_fits_into_memory(model, tokenizer):
    tried = []

    def take(_module, _args, arguments):
        tried.append(len(arguments["input_ids"]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError

    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    handle = model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == expected
    finally:
        handle.remove()
    assert sorted(rows for rows in tried if rows > 1) == [2, 4]


def test_an_answer_that_ends_by_itself_is_finished(tokenizer, model):
    favour_the_end = model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([tokenizer.eos_token_id]), 1e4)
    )
    try:
        answer = generate(model, tokenizer, ["short"], max_new_tokens=3)[0]
    finally:
        favour_the_end.remove()
    assert (answer.text, answer.finished) == ("", True)


def test_end_of_turn_knows_the_templates_closing_token(tokenizer):
    assert end_of_turn(tokenizer) == [tokenizer.convert_tokens_to_ids("<|end|>")]


def test_a_prompt_without_room_is_named(model, tokenizer):
    with pytest.raises(InputError, match=r"prompt 2 .*do not fit into the model's context of 96"):
        generate(model, tokenizer, ["short", "word " * 60], max_new_tokens=10)


def test_samples_depend_on_prompt_and_seed_only(model, tokenizer):
    def sampled(prompts, **options):
        options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3} | options
        return [answer.text for answer in generate(model, tokenizer, prompts, **options)]

    together = sampled(PROMPTS)
    assert together == sampled(PROMPTS, batch_tokens=1)
    assert together == [sampled([prompt])[0] for prompt in PROMPTS]
    assert together == sampled(PROMPTS[::-1])[::-1]
    assert together != sampled(PROMPTS, seed=4)
    assert sampled(PROMPTS, temperature=1e-4) == [greedy(model, tokenizer, p, 8)[0] for p in PROMPTS]


def test_noisy_maxima_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = GumbelNoise(["prompt"], temperature=2.0, seed=0)
    draws = torch.stack([noise(torch.zeros(1, 1), logits[None]).argmax() for _ in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert shares.tolist() == pytest.approx((logits / 2).softmax(0).tolist(), abs=0.03)
