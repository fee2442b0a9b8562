"""Which outputs are traced, and what counts as a sound trace."""

import math

import pytest

from lancet_pipeline.evaluation.traced_outputs import read_traces, sound, traced_answers, write_traces


def answer(model: str, number: int, **changes) -> dict:
    row = {
        "model": model,
        "sample_id": f"p{number}",
        "prompt": "How?",
        "response": f"{model} {number}",
        "finished": True,
    }
    return {**row, "verdict": "other", "harmful": False, "decoding": "greedy", "wording": "original", **changes}


GENERATIONS = [
    *[answer("base", number, harmful=number != 1, verdict="bad") for number in range(5)],
    answer("base", 6, harmful=True, response=""),
    answer("base", 0, harmful=True, decoding="sampled"),
    answer("base", 0, harmful=True, wording="paraphrased"),
    *[answer("corrected", number) for number in range(7)],
    answer("corrected", 0, decoding="sampled", response="another"),
    answer("retrain_clean", 0, harmful=True),
]
SAMPLE = {"sample_id": "a", "role": "driving", "score": 1.5, "tokens": [{"position": 1, "token": "x", "share": 0.5}]}


def test_harmful_greedy_answers_of_the_base_model_stand_beside_the_corrected_ones():
    found = traced_answers("ood", GENERATIONS, 10)
    assert [row["sample_id"] for row in found] == ["p0", "p2", "p3", "p4"]
    assert found[0]["response"] == "base 0"
    assert found[0]["corrected_response"] == "corrected 0"
    assert {row["report"] for row in found} == {"ood"}


def test_no_more_outputs_than_the_limit():
    assert [row["sample_id"] for row in traced_answers("ood", GENERATIONS, 2)] == ["p0", "p2"]


def test_traces_come_back_as_they_were_written(tmp_path):
    outputs = traced_answers("ood", GENERATIONS, 2)
    write_traces(outputs, [[SAMPLE], []], tmp_path)
    rows = read_traces(tmp_path).to_pylist()
    assert [row["samples"] for row in rows] == [[SAMPLE], []]
    assert rows[0]["corrected_verdict"] == "other"


def test_study_without_harmful_outputs_gives_an_empty_table(tmp_path):
    write_traces([], [], tmp_path)
    assert read_traces(tmp_path).num_rows == 0


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ([SAMPLE], True),
        ([], True),
        ([SAMPLE, SAMPLE], False),
        ([{**SAMPLE, "role": "countering"}], False),
        ([{**SAMPLE, "sample_id": "unknown"}], False),
        ([{**SAMPLE, "score": math.inf}], False),
        ([{**SAMPLE, "tokens": [{"position": 1, "token": "x", "share": math.nan}]}], False),
    ],
)
def test_sound_trace_has_selected_samples_once_and_finite_numbers(trace, expected):
    assert sound(trace, {"a": "driving"}) is expected
