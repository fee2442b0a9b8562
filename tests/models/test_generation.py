"""Answers against loops that take the likeliest token, or draw it, one prompt at a time."""

import copy

import pytest
import torch
from models.test_architectures import ARCHITECTURES, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.data.tokenization import prompt_text, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.generation import Answer, GumbelNoise, end_of_turn, generate
from lancet_pipeline.models.runtime import Runtime

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
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=10, runtime=Runtime(batch_tokens=batch_tokens))
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
    together = generate(model, tokenizer, prompts, max_new_tokens=4, runtime=Runtime(batch_tokens=100))
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


CHECKPOINT_DEFAULTS = [
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 9},
    {"suppress_tokens": list(range(4, 200))},
    {"bad_words_ids": [[token] for token in range(4, 200)]},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 8},
    {"sequence_bias": [[[9], 50.0]]},
    {
        "do_sample": True,
        "temperature": 9.0,
        "top_k": 2,
        "top_p": 0.5,
        "typical_p": 0.5,
        "min_p": 0.3,
        "epsilon_cutoff": 0.1,
    },
    {"num_beams": 3, "length_penalty": 5.0},
    {"guidance_scale": 3.0},
    {"return_dict_in_generate": True, "output_scores": True},
    {"use_cache": False, "max_length": 3, "max_time": 1e-9, "stop_strings": ["a"]},
]


@pytest.mark.parametrize("defaults", CHECKPOINT_DEFAULTS, ids=lambda defaults: next(iter(defaults)))
def test_what_a_checkpoint_says_of_generation_changes_no_answer(model, tokenizer, defaults):
    own = copy.deepcopy(model)
    for name, value in defaults.items():
        setattr(own.generation_config, name, value)
    before = own.generation_config.to_dict()
    assert [(a.text, a.finished) for a in generate(own, tokenizer, PROMPTS, max_new_tokens=10)] == [
        greedy(model, tokenizer, prompt, 10) for prompt in PROMPTS
    ]
    sampled = [generate(m, tokenizer, PROMPTS, max_new_tokens=10, temperature=1.0) for m in (own, model)]
    assert sampled[0] == sampled[1]
    assert own.generation_config.to_dict() == before


@pytest.mark.parametrize("several", [False, True])
def test_end_tokens_of_the_checkpoint_end_an_answer(model, tokenizer, several):
    own, whole = copy.deepcopy(model), greedy(model, tokenizer, PROMPTS[1], 10)[0]
    ids = tokenizer(prompt_text(tokenizer, PROMPTS[1]), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        second = int(model(torch.tensor([[*ids, first]])).logits[0, -1].argmax())
    assert first != second
    own.generation_config.eos_token_id = [second, 299] if several else second
    own.generation_config.min_new_tokens = 5
    answer = generate(own, tokenizer, [PROMPTS[1]], max_new_tokens=10)[0]
    assert answer == Answer(tokenizer.decode([first]).strip(), True)
    assert whole.startswith(answer.text)
    assert whole != answer.text


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
    assert together == sampled(PROMPTS, runtime=Runtime(batch_tokens=1))
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
