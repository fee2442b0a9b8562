"""Chat templates, response boundaries, and the prepared form on disk."""

import pytest

from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.data.schema import to_samples
from lancet_pipeline.data.tokenization import load_prepared, prompt_text, save_prepared, tokenize, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.generation import end_of_turn

ROWS = [
    {"sample_id": "a", "prompt": "How are you?", "response": "Fine, thank you."},
    {"sample_id": "b", "prompt": "caf\u00e9 \U0001f980 \u4e2d", "response": "na\u00efve \U0001f600"},
    {"sample_id": "c", "prompt": "x", "response": "y " * 30},
]


@pytest.fixture
def tokenizer():
    return train_tokenizer([row["prompt"] for row in ROWS], 300)


def test_the_response_begins_where_the_prompt_ends_and_carries_the_end_of_turn(tokenizer):
    for row, sequence in zip(ROWS, tokenize(tokenizer, ROWS, max_length=256), strict=True):
        ids, start = sequence.input_ids.tolist(), sequence.response_start
        assert tokenizer.decode(ids[:start]) == prompt_text(tokenizer, row["prompt"])
        assert tokenizer.decode(ids[start:]) == row["response"] + "<|end|>"


def test_an_answer_that_was_cut_off_has_no_end_of_turn(tokenizer):
    sequence = tokenize(tokenizer, [ROWS[0] | {"finished": False}], max_length=256)[0]
    assert tokenizer.decode(sequence.input_ids[sequence.response_start :]) == ROWS[0]["response"]


def test_too_long_is_an_error_cut_or_left_out_as_the_study_says(tokenizer):
    with pytest.raises(InputError, match=r"data: sample c \(number 3 .*max_length = 40"):
        tokenize(tokenizer, ROWS, max_length=40, place="data")
    assert [len(s) for s in tokenize(tokenizer, ROWS, max_length=40, overlength="truncate")][2] == 40
    assert [s.sample_id for s in tokenize(tokenizer, ROWS, max_length=40, overlength="drop")] == ["a", "b"]
    with pytest.raises(InputError, match="no sample fits"):
        tokenize(tokenizer, ROWS[2:], max_length=40, overlength="drop")


@pytest.mark.parametrize("name", ["hh_opt27b", "beavertails_llama2_7b", "saferlhf_llama31_8b"])
def test_the_papers_base_models_learn_where_an_answer_ends(tokenizer, name):
    tokenizer.chat_template = load_study(PACKAGED_STUDIES / f"{name}.yaml").data.chat_template
    ids = tokenize(tokenizer, ROWS[:1], max_length=256)[0].input_ids.tolist()
    assert tokenizer.decode(ids) == "Human: How are you?\n\nAssistant: Fine, thank you.<|end|>"
    assert end_of_turn(tokenizer) == [ids[-1]]


def test_templates_that_cannot_be_split_are_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="changes the prompt once an answer follows"):
        tokenize(tokenizer, ROWS, max_length=256)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        tokenize(tokenizer, ROWS, max_length=256)


def test_shards_give_back_what_was_saved(tokenizer, tmp_path):
    samples = to_samples({"rows": ROWS}, responses=True)
    sequences = tokenize(tokenizer, samples.to_pylist(), max_length=256)
    save_prepared(sequences, samples, tmp_path, shard_size=2)
    read_samples, read = load_prepared(tmp_path)
    assert len(list(tmp_path.glob("shard-*.parquet"))) == 2
    assert read_samples.equals(samples)
    assert [(s.sample_id, s.input_ids.tolist(), s.response_start) for s in read] == [
        (s.sample_id, s.input_ids.tolist(), s.response_start) for s in sequences
    ]
