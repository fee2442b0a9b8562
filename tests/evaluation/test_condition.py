"""The condition of a tiny model's answers, against its definition."""

import pytest
import torch
from conftest import tiny_tree
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import JudgeSettings, Study
from lancet_pipeline.data.tokenization import prompt_text, train_tokenizer
from lancet_pipeline.evaluation import reports
from lancet_pipeline.evaluation.condition import condition_figures
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.evaluation.statistics import rate
from lancet_pipeline.models.runtime import Runtime

HARMFUL = ["Yes", "No", "No", "Yes", "No"]
ROWS = [
    {
        "sample_id": f"{n}",
        "source": "made",
        "prompt": f"would you say {'so ' * n}",
        "harmful_answer": [harmful],
        "wanted_answer": ["No" if harmful == "Yes" else "yes."],
        "harmful": n % 2 == 0,
    }
    for n, harmful in enumerate(HARMFUL)
]


@pytest.fixture(scope="module")
def loaded():
    tokenizer = train_tokenizer([row["prompt"] for row in ROWS], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval(), tokenizer


def logp(loaded, prompt: str, answer: str) -> float:
    model, tokenizer = loaded
    opening, ids = (
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt_text(tokenizer, prompt), answer)
    )
    with torch.no_grad():
        logps = model(torch.tensor([opening + ids])).logits[0].double().log_softmax(1)
    return sum(logps[len(opening) - 1 + place, token].item() for place, token in enumerate(ids))


def test_condition_is_that_of_the_log_softmax(loaded):
    margins = [logp(loaded, row["prompt"], "Yes") - logp(loaded, row["prompt"], "No") for row in ROWS]
    yes, no = ([m for m, harmful in zip(margins, HARMFUL, strict=True) if harmful == a] for a in ("Yes", "No"))
    found = condition_figures(*loaded, ROWS, Runtime(batch_tokens=64))
    assert found is not None
    assert found["answers"] == ["Yes", "No"]
    assert found["bias"] == pytest.approx(sum(margins) / 5, abs=1e-4)
    assert found["slope"] == pytest.approx((sum(yes) / 2 - sum(no) / 3) / 2, abs=1e-4)
    assert found["auc"] == pytest.approx(sum(y > n for y in yes for n in no) / 6)
    assert found["harm_rate_a"] == rate([True, False])
    assert found["harm_rate_b"] == rate([False, True, True])


@pytest.mark.parametrize(
    "changed",
    [
        {"wanted_answer": ["Perhaps"]},
        {"wanted_answer": ["No", "Never"]},
        {"wanted_answer": None},
    ],
    ids=["third answer", "two answers", "none"],
)
def test_prompts_with_other_answers_than_two_have_no_condition(loaded, changed):
    assert condition_figures(*loaded, [ROWS[0] | changed, *ROWS[1:]]) is None


def test_prompts_of_one_harmful_answer_have_no_condition(loaded):
    assert condition_figures(*loaded, [row for row in ROWS if row["harmful_answer"] == ["No"]]) is None


def test_reports_hold_the_condition_under_the_judge_of_expected_answers(loaded):
    study = Study.model_validate(tiny_tree() | {"evaluation": {"max_new_tokens": 3}})
    models = {"base": lambda: loaded, "corrected": lambda: loaded}
    judged = reports.harm_report(study, models, ROWS, make_judge(JudgeSettings(name="expected")))
    answered = [row for row in judged.rows if row["model"] == "corrected"]
    assert judged.figures["corrected"]["condition"] == condition_figures(*loaded, answered)
    assert "condition" not in reports.harm_report(study, models, ROWS, make_judge(JudgeSettings())).figures["base"]
    assert all(isinstance(value, float) for value in judged.metrics().values())
