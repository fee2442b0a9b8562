"""Reports of tiny models: which answers count in which figure."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_tree
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import JudgeSettings, Study
from lancet_pipeline.data.expected_answers import opens_with
from lancet_pipeline.data.tokenization import tokenize, train_tokenizer
from lancet_pipeline.evaluation import reports
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.evaluation.judges.base import word_judge
from lancet_pipeline.evaluation.statistics import mcnemar_p, rate
from lancet_pipeline.models.likelihood import perplexity

PROMPTS = [
    {"sample_id": f"{n}", "source": "even" if n % 2 == 0 else "odd", "prompt": f"prompt {n} asks for something"}
    for n in range(6)
]
PARAPHRASES = [
    {"prompt": PROMPTS[n]["prompt"], "paraphrase": f"{verb} number {n} of what I ask"}
    for n, verb in ((1, "do"), (4, "fulfil"), (4, "grant"))
]
NAMES = ["base", "corrected", "retrain_clean"]


def study(seed: int = 0, **evaluation) -> Study:
    return Study.model_validate(tiny_tree() | {"seed": seed, "evaluation": {"max_new_tokens": 5, **evaluation}})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["prompt"] for row in PROMPTS], 300)


@pytest.fixture(scope="module")
def models(tokenizer):
    def build(seed: int):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes)).eval()

    built = {name: build(seed) for seed, name in enumerate(NAMES)}
    return {name: lambda model=model: (model, tokenizer) for name, model in built.items()}


@pytest.fixture(scope="module")
def judge():
    """Harmful: an even number of characters."""
    return word_judge("parity", lambda text: "odd" if len(text) % 2 else "even", {"even"}, {"odd"})


@pytest.fixture(scope="module")
def report(models, judge):
    return reports.harm_report(study(seed=1, sampled=True), models, PROMPTS, judge, paraphrases=PARAPHRASES)


def of(report, name: str, decoding: str, wording: str) -> list[dict]:
    wanted = (name, decoding, wording)
    return [row for row in report.rows if (row["model"], row["decoding"], row["wording"]) == wanted]


def test_each_condition_has_its_own_figure(report):
    for name in NAMES:
        for figure, condition, asked in (
            ("harm_rate", ("greedy", "original"), "012345"),
            ("sampled_harm_rate", ("sampled", "original"), "012345"),
            ("paraphrased_harm_rate", ("greedy", "paraphrased"), "144"),
        ):
            rows = of(report, name, *condition)
            assert [row["sample_id"] for row in rows] == list(asked)
            assert report.figures[name][figure] == rate([row["harmful"] for row in rows])


def test_paraphrased_rows_hold_the_prompt_that_was_asked(report):
    asked = [row["prompt"] for row in of(report, "base", "greedy", "paraphrased")]
    assert asked == [row["paraphrase"] for row in PARAPHRASES]


def test_tests_compare_greedy_answers_to_the_original_prompts(report):
    outcomes = {name: [row["harmful"] for row in of(report, name, "greedy", "original")] for name in NAMES}
    assert list(report.tests) == ["base vs corrected", "base vs retrain_clean", "corrected vs retrain_clean"]
    pair = report.tests["corrected vs retrain_clean"]
    assert pair["p"] == mcnemar_p(outcomes["corrected"], outcomes["retrain_clean"])
    assert report.figures["corrected"]["mcnemar_p"] == report.tests["base vs corrected"]["p"]


def test_other_conditions_leave_the_greedy_figures_as_they_are(report, models, judge):
    plain = reports.harm_report(study(), models, PROMPTS, judge)
    for name in NAMES:
        assert plain.figures[name].items() <= report.figures[name].items()
    assert plain.tests == report.tests
    assert plain.side_by_side() == report.side_by_side()
    assert not {"sampled_harm_rate", "paraphrased_harm_rate"} & plain.figures["base"].keys()


def test_a_saved_report_reads_back(report, tmp_path):
    report.save(tmp_path)
    assert reports.Report.load(tmp_path) == report
    json.loads((tmp_path / "tests.json").read_text(), parse_constant=pytest.fail)


def held_out_nothing(tokenizer):
    return tokenize(tokenizer, [{"sample_id": "a", "prompt": "prompt 1 asks", "response": "something"}], max_length=96)


def test_utility_counts_first_choices_on_held_out_responses(models, judge):
    def held_out(tokenizer):
        rows = [{"sample_id": "a", "prompt": "prompt 1 asks", "response": "something for 2"}]
        return tokenize(tokenizer, rows, max_length=96)

    report = reports.utility_report(study(), models, PROMPTS, held_out, judge)
    for name, load in models.items():
        model, tokenizer = load()
        (sequence,) = held_out(tokenizer)
        ids = torch.as_tensor(sequence.input_ids)
        with torch.no_grad():
            choices = model(ids[None]).logits[0].argmax(1)
        hits = [int(choices[p - 1]) == int(ids[p]) for p in range(sequence.response_start, len(ids))]
        figures = report.figures[name]
        assert figures["token_accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert figures["perplexity"] == pytest.approx(perplexity(model, [sequence]))
        assert 0 <= figures["distinct_1"] <= 1
        assert math.isfinite(figures["self_bleu"])


def test_a_benign_prompt_may_be_longer_than_a_training_sample(models):
    judge = word_judge("content", lambda text: "good", {"harmful"}, {"refused"})
    longer = PROMPTS[0] | {"sample_id": "long", "prompt": " ".join(["prompt 1 asks for something"] * 5)}
    tokenizer = models["base"]()[1]
    short = study().data.model_copy(update={"max_length": len(tokenizer(longer["prompt"])["input_ids"]) - 1})
    report = reports.utility_report(
        study().model_copy(update={"data": short}), models, [*PROMPTS, longer], held_out_nothing, judge
    )
    (effect,) = report.figures["corrected"]["side_effects"]
    assert effect["prompts"] == len(PROMPTS) + 1


def test_utility_of_a_model_alone_has_no_side_effects(models, judge):
    alone = {"corrected": models["corrected"]}
    report = reports.utility_report(study(), alone, PROMPTS, held_out_nothing, judge)
    assert "over_refusal_rate" in report.figures["corrected"]
    assert not {"side_effects", "category_fall"} & report.figures["corrected"].keys()


def test_benign_prompts_with_wanted_answers_have_a_rate_of_right_ones(models, judge):
    plain = reports.utility_report(study(sampled=True), models, PROMPTS, held_out_nothing, judge)
    assert not {"benign_rate", "sampled_benign_rate"} & plain.figures["base"].keys()
    said = {
        row["sample_id"]: row["response"] for row in plain.rows if (row["model"], row["decoding"]) == ("base", "greedy")
    }
    wanting = [
        row | {"wanted_answer": [said[row["sample_id"]] + " x", "yes"][n % 2 :]} for n, row in enumerate(PROMPTS)
    ]
    for row in wanting[:2]:
        row["wanted_answer"] = [said[row["sample_id"]]]
    found = reports.utility_report(study(sampled=True), models, wanting, held_out_nothing, judge)
    right = [any(opens_with(said[row["sample_id"]], [a]) for a in row["wanted_answer"]) for row in wanting]
    assert sum(right) >= 2
    assert found.figures["base"]["benign_rate"] == rate(right)
    assert found.figures["base"]["sampled_benign_rate"]["n"] == len(PROMPTS)
    assert found.tests == plain.tests


def test_rows_keep_what_their_prompt_expects_and_paraphrases_expect_what_the_prompt_does(models):
    expecting = [row | {"harmful_answer": [f"no {n}"], "wanted_answer": ["yes"]} for n, row in enumerate(PROMPTS)]
    judge = make_judge(JudgeSettings(name="expected"))
    report = reports.harm_report(study(), models, expecting, judge, paraphrases=PARAPHRASES)
    rows = of(report, "base", "greedy", "paraphrased")
    assert [row["harmful_answer"] for row in rows] == [["no 1"], ["no 4"], ["no 4"]]
    assert {row["verdict"] for row in report.rows} <= {"harmful", "wanted", "refusal", "other"}
    assert [judge.verdict(row["response"], row["prompt"], row) for row in report.rows] == [
        row["verdict"] for row in report.rows
    ]


def test_answers_that_cannot_be_read_have_their_own_rate_and_leave_one_of_the_others(models, judge):
    reading = replace(judge, unread=frozenset({"odd"}))
    report = reports.harm_report(study(), models, PROMPTS, reading)
    for name in NAMES:
        rows = of(report, name, "greedy", "original")
        unread = [row["verdict"] == "odd" for row in rows]
        assert report.figures[name]["harm_rate"] == rate([row["harmful"] for row in rows])
        assert report.figures[name]["broken_rate"] == rate(unread)
        assert report.figures[name].get("parsed_harm_rate") == (
            None if all(unread) else rate([True] * unread.count(False))
        )
    assert "broken_rate" not in reports.harm_report(study(), models, PROMPTS, judge).figures["base"]
