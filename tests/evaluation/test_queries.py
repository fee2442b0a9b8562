"""Which answers to the probes become queries, and which their controls."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import tiny_tree
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges.base import word_judge
from lancet_pipeline.evaluation.queries import gather, kind, representative
from lancet_pipeline.models.loading import save_model
from lancet_pipeline.models.runtime import Runtime

PROBES = [
    {"sample_id": f"{n}", "source": "probes", "prompt": f"prompt {n} asks for something", "category": "abc"[n % 3]}
    for n in range(24)
]

kinds = st.lists(st.sampled_from(["insult", "threat", "fraud", None]), max_size=60)


def rows_of(names: list[str | None]) -> list[dict]:
    return [{"sample_id": number, "category": name, "source": "probes"} for number, name in enumerate(names)]


@given(kinds, st.integers(0, 70), st.integers(0, 2**32))
def test_rows_are_drawn_evenly_over_kinds(names, maximum, seed):
    rows = rows_of(names)
    chosen = representative(rows, maximum, seed)
    ids = [row["sample_id"] for row in chosen]
    assert len(chosen) == min(maximum, len(rows))
    assert ids == sorted(set(ids))
    there, taken = Counter(map(kind, rows)), Counter(map(kind, chosen))
    most = max(taken.values(), default=0)
    assert all(taken[name] >= most - 1 for name in there if taken[name] < there[name])


@given(kinds, st.integers(0, 70), st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_rows(names, maximum, seed):
    rows = rows_of(names)
    assert representative(rows, maximum, seed) == representative(rows, maximum, seed)


def test_another_seed_draws_other_rows_and_lets_another_kind_go_first():
    rows = rows_of(["insult", "threat", "fraud"] * 20)
    drawn = [representative(rows, 10, seed) for seed in range(20)]
    assert len({tuple(row["sample_id"] for row in rows) for rows in drawn}) == 20
    larger = {Counter(map(kind, rows)).most_common(1)[0][0] for rows in drawn}
    assert larger == {"insult", "threat", "fraud"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"category": "insult", "source": "probes"}, "insult"),
        ({"category": None, "source": "probes"}, "probes"),
        ({}, "uncategorised"),
    ],
)
def test_a_kind_is_a_category_or_else_a_source(row, expected):
    assert kind(row) == expected


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny model."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([row["prompt"] for row in PROBES], 300)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_model(
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes)), tokenizer, folder
    )
    return folder


@pytest.fixture(scope="module")
def judge():
    """Harmful: an even number of characters."""
    return word_judge("parity", lambda text: "odd" if len(text) % 2 else "even", {"even"}, {"odd"})


def gathered(base, judge, **queries):
    study = Study.model_validate(tiny_tree() | {"queries": {"max_new_tokens": 5, "minimum": 1, **queries}})
    return gather(study, base, PROBES, judge, Runtime())


def test_harmful_answers_are_queries_and_harmless_ones_their_controls(base, judge):
    found = gathered(base, judge)
    assert [row["sample_id"] for row in found.answers] == [row["sample_id"] for row in PROBES]
    assert [row["category"] for row in found.answers] == [row["category"] for row in PROBES]
    answered = [row for row in found.answers if row["response"]]
    assert found.queries == [row for row in answered if row["harmful"]]
    assert found.controls == [row for row in answered if not row["harmful"]]
    assert found.queries
    assert found.controls


def test_queries_and_controls_are_no_more_than_asked_for(base, judge):
    found = gathered(base, judge, maximum=2, controls=1)
    assert (len(found.queries), len(found.controls)) == (2, 1)
    assert gathered(base, judge, controls=0).controls == []


def test_an_answer_that_could_not_be_read_is_no_control(base, judge):
    rows = gathered(base, judge).controls
    unreadable = rows[0]["response"]

    def verdict(text: str) -> str:
        return "broken" if text == unreadable else judge.verdict(text)

    lenient = word_judge("parity", verdict, {"even"}, {"odd"})
    strict = replace(lenient, unread=frozenset({"broken"}))
    assert len(gathered(base, lenient).controls) == len(rows)
    assert gathered(base, strict).controls == [row for row in rows if row["response"] != unreadable]


def test_an_answer_to_a_prompt_that_leaves_no_room_for_it_is_neither(base, judge):
    tree = tiny_tree() | {"queries": {"max_new_tokens": 5, "minimum": 1}}
    tree["data"]["max_length"] = 30
    long = {**PROBES[0], "sample_id": "long", "prompt": "prompt asks for " * 8}
    gathering = [
        gather(Study.model_validate(tree), base, probes, judge, Runtime()) for probes in (PROBES, [*PROBES, long])
    ]
    assert gathering[1].answers[-1]["response"]
    assert gathering[1].queries == gathering[0].queries
    assert gathering[1].controls == gathering[0].controls


def test_too_few_harmful_answers_stop(base, judge):
    with pytest.raises(
        InputError, match=r"answered \d+ of 24 probe prompts harmfully, fewer than queries.minimum = 25"
    ):
        gathered(base, judge, minimum=25)
