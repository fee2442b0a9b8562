"""Pairs that hold the same answer, or answers in the same shares."""

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lancet_pipeline.data.expected_answers import normalised
from lancet_pipeline.selection import pair
from lancet_pipeline.selection.pairing import same_answer

answers = st.lists(st.sampled_from(["Yes", "yes.", " YES", "No", "no!", "Maybe", "maybe not", "...", ""]), min_size=1)


def matched(
    negative: list[str], positive: list[str], count: int, seed: int = 0, pairing="matched"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into [*negative, *positive] of the pairs: countering and driving, [count] each."""
    sides = np.arange(len(negative)), len(negative) + np.arange(len(positive))
    texts = [*negative, *positive]
    found = pair(*sides, np.zeros(len(texts)), texts, texts, pairing=pairing, count=count, seed=seed)
    return found[0], found[1]


@settings(deadline=None)  # the first call imports scikit-learn
@given(answers, answers, st.integers(1, 60), st.integers(0, 9))
def test_matched_pairs_hold_the_same_answer_wherever_the_countering_side_has_it(negative, positive, count, seed):
    texts = [*negative, *positive]
    preferred, dispreferred = matched(negative, positive, count, seed)
    assert len(preferred) == len(dispreferred) == min(count, len(negative) * len(positive))
    assert set(preferred) <= set(range(len(negative)))
    held = {normalised(text) for text in negative} - {""}
    same = [normalised(texts[i]) == normalised(texts[j]) != "" for i, j in zip(preferred, dispreferred, strict=True)]
    assert same == [normalised(texts[j]) in held for j in dispreferred]
    assert same_answer(preferred, dispreferred, texts) == np.mean(same)
    again = matched(negative, positive, count, seed)
    assert np.array_equal(preferred, again[0])
    assert np.array_equal(dispreferred, again[1])


@settings(deadline=None)
@given(answers, answers, st.integers(1, 60))
def test_matched_pairs_use_the_rows_of_each_side_evenly(negative, positive, count):
    preferred, dispreferred = matched(negative, positive, count)
    share = len(dispreferred) / len(positive)
    used = Counter(dispreferred.tolist())
    assert {used[len(negative) + i] for i in range(len(positive))} <= {math.floor(share), math.ceil(share)}
    yes = [i for i, text in enumerate(negative) if normalised(text) == "yes"]
    answered = [
        i for i, j in zip(preferred, dispreferred, strict=True) if normalised(positive[j - len(negative)]) == "yes"
    ]
    times = [answered.count(i) for i in yes]
    assert max(times, default=0) - min(times, default=0) <= 1


def test_matched_pairs_of_free_text_hold_the_nearest_response():
    negative = ["Please ask a pharmacist about the dose.", "A lawyer knows the verdict.", "Try 3.5 drops of oil."]
    positive = ["Take the dose twice.", "The verdict is guilty, lawyer or not.", "3.5 drops", "!?", "unheard"]
    preferred, dispreferred = matched(negative, positive, 15)
    partners = {j: {i for i, other in zip(preferred, dispreferred, strict=True) if other == j} for j in range(3, 8)}
    assert [partners[j] for j in (3, 4, 5)] == [{0}, {1}, {2}]
    assert len(partners[6] | partners[7]) == 3, "responses that share no word with any come with all"
    assert same_answer(preferred, dispreferred, [*negative, *positive]) == 0


def test_seed_shuffles_matched_pairs():
    found = [matched(["Yes"] * 8, ["yes"] * 8, 8, seed)[0].tolist() for seed in (0, 1)]
    assert found[0] != found[1]
    assert sorted(found[0]) == sorted(found[1])


def shared_answers(negative: list[str], positive: list[str]) -> set[str]:
    """Answers of both sides; none where most of a side holds none that the other one has."""
    sides = [[normalised(text) for text in side] for side in (negative, positive)]
    shared = set(sides[0]) & set(sides[1]) - {""}
    other = [any(text not in shared for text in side) for side in sides]
    left_out = [sum(text not in shared for text in side) if not all(other) else 0 for side in sides]
    return shared if all(2 * left <= len(side) for left, side in zip(left_out, sides, strict=True)) else set()


@settings(deadline=None)
@given(answers, answers, st.integers(1, 60), st.integers(0, 9))
def test_balanced_pairs_hold_each_shared_answer_as_often_on_both_sides(negative, positive, count, seed):
    texts = [*negative, *positive]
    preferred, dispreferred = matched(negative, positive, count, seed, "balanced")
    assert len(preferred) == len(dispreferred) == min(count, len(negative) * len(positive))
    assert set(preferred) <= set(range(len(negative)))
    assert set(dispreferred) <= set(range(len(negative), len(texts)))
    shared = shared_answers(negative, positive)
    first, second = (
        Counter(normalised(texts[i]) for i in side if normalised(texts[i]) in shared)
        for side in (preferred, dispreferred)
    )
    assert first == second
    for side, size in ((preferred, len(negative)), (dispreferred - len(negative), len(positive))):
        kinds = [{}, {}]
        times = Counter(side.tolist())
        for i in range(size):
            text = normalised((negative if size == len(negative) and side is preferred else positive)[i])
            kinds[0].setdefault(text if text in shared else "", []).append(times[i])
        assert all(max(found) - min(found) <= 1 for found in kinds[0].values()), (
            "samples of an answer come equally often"
        )


def test_balanced_pairs_give_an_answer_the_geometric_mean_of_its_shares():
    negative, positive = ["Yes"] * 10 + ["No"] * 90, ["yes"] * 90 + ["no"] * 10
    preferred, dispreferred = matched(negative, positive, 400, 0, "balanced")
    assert (preferred < 10).sum() == (dispreferred < 190).sum() == 200
    crossed = sum((i < 10) != (j < 190) for i, j in zip(preferred, dispreferred, strict=True))
    assert 60 < crossed < 140, (
        "half of the pairs hold one answer, of the others which comes with which is left to chance"
    )


def test_balanced_pairs_of_free_text_are_pairs_at_random():
    negative, positive = [f"good {i}" for i in range(8)], [f"bad {i}" for i in range(4)]
    preferred, dispreferred = matched(negative, positive, 24, 0, "balanced")
    assert Counter(preferred.tolist()) == dict.fromkeys(range(8), 3)
    assert Counter(dispreferred.tolist()) == dict.fromkeys(range(8, 12), 6)


def test_balanced_pairs_are_at_random_where_most_of_a_side_would_be_left_out():
    preferred, dispreferred = matched(["No"] * 6, ["Yes"] * 5 + ["no"], 30, 0, "balanced")
    assert Counter(preferred.tolist()) == dict.fromkeys(range(6), 5)
    assert Counter(dispreferred.tolist()) == dict.fromkeys(range(6, 12), 5)
    preferred, dispreferred = matched(["No"] * 6, ["Yes"] * 2 + ["no"] * 4, 24, 0, "balanced")
    assert set(dispreferred.tolist()) == set(range(8, 12)), "those of one side alone are left out where they are few"
