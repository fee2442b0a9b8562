"""What a correction does to benign prompts, category by category."""

import numpy as np
import pytest

from lancet_pipeline.config.study import EvaluationSettings
from lancet_pipeline.evaluation.gates import gate
from lancet_pipeline.evaluation.side_effects import FEWEST, OTHERS, side_effects, worst


def answers(category: str, good: int, count: int) -> list[dict]:
    return [
        {"category": category, "response": "Yes.", "harmful": False, "refusing": number >= good}
        for number in range(count)
    ]


def losses(rows: list[dict], per_token: float) -> np.ndarray:
    """Of answers of four tokens each."""
    return np.array([[4 * per_token + 0.01 * (i % 2), 0, 4] for i, _ in enumerate(rows)])


def test_the_category_that_lost_most_comes_first():
    base = answers("cooking", 40, 40) + answers("travel", 20, 40)
    corrected = answers("cooking", 10, 40) + answers("travel", 20, 40)
    after = np.concatenate([losses(base[:40], 1.5), losses(base[40:], 0.6)])
    cooking, travel = side_effects(base, corrected, losses(base, 0.5), after)
    assert (cooking["category"], cooking["n"], cooking["prompts"]) == ("cooking", 40, 40)
    assert cooking["divergence"] == pytest.approx(1.0)
    assert cooking["fall"] == pytest.approx(0.75)
    assert cooking["fall_high"] > 0.75
    assert (travel["category"], travel["n"], travel["fall"]) == ("travel", 20, 0.0)
    assert travel["divergence"] == pytest.approx(0.1)
    assert travel["divergence_high"] >= travel["divergence"]


def test_the_average_hides_what_the_worst_category_shows():
    """One category of ten lost whole: 0.05 of all prompts more would pass any gate on the average."""
    names = [f"category {number}" for number in range(10)]
    base = [row for name in names for row in answers(name, 40, 40)]
    corrected = [row for name in names for row in answers(name, 40 if name != "category 3" else 20, 40)]
    effects = side_effects(base, corrected, losses(base, 0.5), losses(base, 0.5))
    found = gate("category_answers_hold", worst(effects, "fall", "prompts"), EvaluationSettings())
    assert (found.outcome, found.value, found.n) == ("failed", 0.5, 40)
    assert np.mean([row["refusing"] for row in corrected]) == pytest.approx(0.05)


def test_a_model_that_answers_as_before_passes_both_gates():
    base = answers("cooking", 40, 40) + answers("travel", 40, 40)
    effects = side_effects(base, base, losses(base, 0.5), losses(base, 0.5))
    for name, key, size in (
        ("category_likelihood_holds", "divergence", "n"),
        ("category_answers_hold", "fall", "prompts"),
    ):
        assert gate(name, worst(effects, key, size), EvaluationSettings()).outcome == "passed"


def test_small_categories_are_looked_at_together():
    base = [row for number in range(FEWEST) for row in answers(f"of {number}", 2, 2)]
    (found,) = side_effects(base, base, losses(base, 0.5), losses(base, 0.5))
    assert (found["category"], found["prompts"]) == (OTHERS, 2 * FEWEST)


@pytest.mark.parametrize(
    ("odd", "categories"),
    [
        (answers("odd", 4, 4), {"cooking", OTHERS}),
        (answers("odd", 1, 1), {"cooking", OTHERS}),
        (answers("odd", 1, 40), {"cooking", OTHERS}),
        (answers("odd", 0, 40), {"cooking", "travel"}),
        (answers("odd", FEWEST, FEWEST), {"cooking", "travel", "odd"}),
    ],
    ids=["four prompts", "one prompt", "one good answer", "no good answer", "as many as show that nothing is lost"],
)
def test_a_category_too_small_to_show_anything_is_looked_at_with_the_next_larger_one(odd, categories):
    base = answers("cooking", 40, 40) + answers("travel", 20, 20) + odd
    effects = side_effects(base, base, losses(base, 0.5), losses(base, 0.5))
    assert {row["category"] for row in effects} == categories
    for name, key, size in (
        ("category_likelihood_holds", "divergence", "n"),
        ("category_answers_hold", "fall", "prompts"),
    ):
        assert gate(name, worst(effects, key, size), EvaluationSettings()).outcome == "passed"


def test_an_answer_other_than_wanted_is_none_of_the_good_ones():
    base = [{**row, "wanted_answer": ["No"]} for row in answers("cooking", 20, 20)]
    assert side_effects(base, base, losses(base, 0.5), losses(base, 0.5)) == []
