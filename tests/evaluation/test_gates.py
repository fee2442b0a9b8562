"""When a correction counts as shown to be good enough, and when not."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lancet_pipeline.config.study import Architecture, EvaluationSettings, Training
from lancet_pipeline.data.tokenization import tokenize, train_tokenizer
from lancet_pipeline.evaluation.answer_shape import commonest, garbled, imbalance, opening_figures
from lancet_pipeline.evaluation.gates import GATES, all_gates, gate, prompts_needed
from lancet_pipeline.evaluation.statistics import perplexity_ratio, upper_difference, upper_ratio, upper_share
from lancet_pipeline.governance.wording import told
from lancet_pipeline.models.loading import new_model
from lancet_pipeline.models.training import train

SETTINGS = EvaluationSettings()


@pytest.mark.parametrize("times", [1.0, 0.5])
def test_bound_of_a_paired_difference_covers_the_truth(times):
    """Exactly, by all tables of 16 pairs: the share of tables, weighed by their probability, whose bound lies above the truth."""
    n = 16
    tables = [(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]
    bounds = np.array([upper_difference(table, times) for table in tables])
    ways = np.array([math.factorial(n) / math.prod(math.factorial(k) for k in table) for table in tables])
    covered = []
    for shares in itertools.product((0.02, 0.1, 0.3, 0.6), repeat=3):
        if sum(shares) < 1:
            cells = np.array([*shares, 1 - sum(shares)])
            truth = cells @ [1 - times, -times, 1, 0]
            likely = ways * np.prod(cells ** np.array(tables), axis=1)
            covered.append(likely[bounds >= truth - 1e-9].sum())
    assert min(covered) > 0.91
    assert np.mean(covered) > 0.945


TABLE = st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(lambda table: sum(table) > 0)


@settings(deadline=None)  # roots within roots
@given(TABLE, st.floats(0.05, 2.0))
def test_bounds_lie_above_what_was_measured_and_draw_in_with_more_prompts(table, times):
    both, first, second, _ = table
    found = (both + second - times * (both + first)) / sum(table)
    bound = upper_difference(table, times)
    assert found < bound <= 1 or found == bound == 1  # no rate is higher
    assert upper_difference([9 * count for count in table], times) <= bound + 1e-9
    if both + first:
        assert upper_ratio(table) >= (both + second) / (both + first) * (1 - 1e-9)


def test_bounds_have_width_where_no_pair_differs():
    assert upper_difference([0, 0, 0, 100]) == pytest.approx(1.645**2 / (100 + 1.645**2), rel=1e-3)  # Wilson's
    assert upper_share(0, 100) == pytest.approx(1 - 0.05**0.01)  # Clopper and Pearson's
    assert upper_ratio([0, 90, 0, 10]) < 0.05
    assert upper_ratio([0, 3, 0, 97]) > 0.5  # three prompts tell little, though none of them fails any more


def test_bound_of_a_perplexity_ratio_is_that_of_a_bootstrap():
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 60, 200)
    first = tokens * generator.normal(2.0, 0.3, 200)
    second = first + tokens * generator.normal(0.04, 0.2, 200)
    found = perplexity_ratio(first, second, tokens)
    drawn = generator.integers(0, 200, (4000, 200))
    ratios = np.exp((second - first)[drawn].sum(1) / tokens[drawn].sum(1))
    assert found["value"] == pytest.approx(np.exp(second.sum() / tokens.sum() - first.sum() / tokens.sum()))
    assert found["high"] == pytest.approx(np.quantile(ratios, 0.95), rel=5e-3)
    same = perplexity_ratio(first, first, tokens)
    assert same["value"] == same["high"] == 1.0
    assert perplexity_ratio(first[:1], second[:1], tokens[:1])["high"] == math.inf


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ([2, 80, 0, 18], "passed"),
        ([0, 4, 0, 96], "not_shown"),
        ([60, 20, 0, 20], "failed"),
        ([0, 0, 0, 100], "not_measured"),  # nothing to fall from
        ([0, 0, 5, 95], "failed"),
    ],
)
def test_a_gate_has_four_answers(counts, outcome):
    found = gate("harm_falls", {"counts": counts}, SETTINGS)
    assert found.outcome == outcome
    assert found.passed == (outcome == "passed")
    assert outcome.split("_")[-1] in told(found.row())


def test_a_check_shows_no_infinite_number():
    rose = gate("harm_falls", {"counts": [0, 0, 5, 95]}, SETTINGS)
    assert rose.value == rose.bound == math.inf
    assert rose.shown() == {"outcome": "failed", "value": "infinite", "bound": "infinite", "limit": 0.5, "n": 100}


def test_an_estimate_passes_where_its_bound_does_not():
    few = {"counts": [0, 4, 0, 96]}
    assert gate("harm_falls", few, SETTINGS).outcome == "not_shown"
    assert gate("harm_falls", few, EvaluationSettings(gates="estimate")).outcome == "passed"


def test_what_no_report_measured_does_not_pass_and_what_cannot_be_asked_is_left_out():
    found = {g.name: g.outcome for g in all_gates({}, SETTINGS)}
    assert set(found.values()) == {"not_measured"}
    assert found.keys() == {name for name, kind in GATES.items() if not kind.optional}
    fell = all_gates({"benign_rate": {"counts": [150, 48, 0, 2]}}, SETTINGS)
    assert {g.name: g.outcome for g in fell}["benign_rate_holds"] == "failed"


@pytest.fixture(scope="module")
def speaker():
    """A model that learnt a few plain sentences, and its tokenizer."""
    torch.manual_seed(0)
    texts = [f"{who} {does} the {what} in the {where}." for who, does, what, where in itertools.product(*WORDS)]
    rows = [{"sample_id": str(i), "prompt": f"Tell {i % 7}", "response": text} for i, text in enumerate(texts)]
    tokenizer = train_tokenizer([f"{row['prompt']} {row['response']}" for row in rows], 300)
    model = new_model(
        Architecture(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2),
        tokenizer,
        max_length=64,
        seed=0,
    )
    train(
        model, tokenize(tokenizer, rows, max_length=64), Training(epochs=4, batch_size=16, learning_rate=1e-2), seed=0
    )
    return (model, tokenizer), [{**row, "finished": True} for row in rows]


WORDS = (("Ada", "Bo", "Kim", "Lee"), ("reads", "paints", "sells"), ("book", "map", "lamp"), ("garden", "kitchen"))


def test_garbled_answers_are_told_from_right_ones_that_the_model_would_not_have_given(speaker):
    loaded, rows = speaker
    generator = np.random.default_rng(0)

    def answered(texts):
        return [{**row, "response": text} for row, text in zip(rows, texts, strict=True)]

    own = [row["response"] for row in rows]
    mixed = [" ".join(generator.permutation(text.split())) for text in own]
    found = garbled(
        loaded,
        {
            "base": rows,
            "others": answered(own[1:] + own[:1]),
            "mixed": answered(mixed),
            "stuck": answered(["Ada reads the book the book the book the book the book"] * len(own)),
        },
        max_length=64,
    )
    shares = {name: np.mean(outcomes) for name, outcomes in found.items()}
    assert shares["base"] <= 0.05
    assert shares["others"] == shares["base"]  # the same texts after other prompts
    assert shares["mixed"] > 0.7
    assert shares["stuck"] == 1.0
    late = garbled(loaded, {"base": rows, "mixed": answered(mixed)}, max_length=64, skipped=60)
    assert not any(late["mixed"])  # none is that long


def test_alike_answers_and_those_off_balance():
    assert commonest(["I am sorry for it", "I am sorry about that", "Yes"]) == [True, True, False]
    assert opening_figures(["No."] * 8)["opening_entropy"] == 0
    assert opening_figures(["a", "b", "c", "d"])["opening_entropy"] == pytest.approx(2)
    rows = [
        {"response": "No", "wanted_answer": [wanted], "harmful_answer": [harmful]}
        for wanted, harmful in [("Yes", "No"), ("No", "Yes")] * 50
    ]
    found = imbalance(rows)
    assert found is not None
    assert found["value"] == 0.5  # all answers are No, half of them should be
    assert 0.5 < found["high"] < 0.6
    assert gate("balance_holds", found, SETTINGS).outcome == "failed"
    right = imbalance([{**row, "response": row["wanted_answer"][0] + "."} for row in rows])
    assert right is not None
    assert right["value"] == 0
    assert gate("balance_holds", right, SETTINGS).outcome == "passed"
    assert imbalance(rows[::2]) is None  # one answer is wanted throughout
    spelt = [{"response": "Yes", "wanted_answer": [answer]} for answer in ("Yes", "yes", "YES.")]
    assert imbalance(spelt) is None  # one answer in three spellings
    several = [
        {"response": a, "wanted_answer": w} for a, w in (("Yes", ["Yes", "Yeah"]), ("No", ["No"]), ("Yeah", ["Yes"]))
    ]
    found = imbalance(several)
    assert found is not None
    assert found["value"] == 0
    facts = [{"response": "zzz qqq", "wanted_answer": [f"city {number}"]} for number in range(200)]
    found = imbalance(facts)
    assert found is not None
    assert found["value"] == 1.0  # none of the wanted answers
    assert imbalance([*rows, {"response": "No"}]) is None


def test_prompts_needed_are_the_fewest_that_can_pass():
    (name, needed), *others = prompts_needed(SETTINGS).values()
    assert not others
    assert (name, needed) == ("benign_harm_holds", 88)
    for n, outcome in ((needed - 1, "not_shown"), (needed, "passed")):
        assert gate(name, {"counts": (0, 0, 0, n)}, SETTINGS).outcome == outcome
    assert prompts_needed(EvaluationSettings(max_over_refusal_increase=0)) == {
        "benign_prompts": ("over_refusal_holds", None)
    }
    assert prompts_needed(EvaluationSettings(gates="estimate")) == {}
