"""The Pareto rule against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lancet_pipeline.config.study import ParetoSettings
from lancet_pipeline.errors import InputError
from lancet_pipeline.selection import driving, pair, select
from lancet_pipeline.selection.pareto import hill_index

SETTINGS = ParetoSettings(alpha=0.2, minimum=1, neutral_ratio=1.0)
scores = st.lists(st.floats(-100, 100).filter(lambda x: abs(x) > 1e-6), min_size=20, max_size=120).filter(
    lambda values: min(values) < 0 < max(values)
)


@given(scores)
def test_sides_are_the_smallest_sets_that_carry_the_share(values):
    values = np.array(values)
    selection = select(values, SETTINGS)
    for sign, side in ((1, selection.positive), (-1, selection.negative)):
        signed = sign * values
        chosen, rest = signed[side.indices], np.delete(signed, side.indices)
        total = signed[signed > 0].sum()
        limit = int(0.2 * len(values))
        assert (chosen > 0).all()
        assert len(chosen) <= limit
        assert chosen.min() >= rest[rest > 0].max(initial=0)
        assert len(chosen) == limit or chosen.sum() >= 0.8 * total * (1 - 1e-9)
        assert chosen[:-1].sum() < 0.8 * total, "one fewer would do"


@given(scores)
def test_roles_are_disjoint_and_the_indifferent_are_the_least_influential(values):
    values = np.array(values)
    selection = select(values, SETTINGS)
    influential = np.concatenate([selection.positive.indices, selection.negative.indices])
    assert not set(influential) & set(selection.neutral)
    assert len(selection.neutral) >= max(len(selection.positive.indices), len(selection.negative.indices))
    others = np.setdiff1d(np.arange(len(values)), np.concatenate([influential, selection.neutral]))
    assert np.abs(values[selection.neutral]).max() <= np.abs(values[others]).min(initial=np.inf)


@given(scores)
def test_equal_sides_hold_half_of_alpha_each_as_far_as_there_are_samples_of_their_sign(values):
    values = np.array(values)
    selection = select(values, SETTINGS, equal=True)
    for sign, side in ((1, selection.positive), (-1, selection.negative)):
        signed = sign * values
        assert len(side.indices) == min(int(0.2 * len(values) / 2), (signed > 0).sum())
        assert (signed[side.indices] > 0).all()
        assert signed[side.indices].min(initial=np.inf) >= np.delete(signed, side.indices).max(initial=-np.inf)
    assert np.array_equal(selection.positive.indices, driving(values, equal=True))
    assert np.array_equal(select(values, SETTINGS).positive.indices, driving(values))


def test_hill_index_recovers_a_pareto_tail():
    sample = np.sort(np.random.default_rng(0).pareto(1.5, 20_000) + 1)[::-1]
    assert hill_index(sample, 2_000) == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    ("index", "samples", "tail"),
    [
        (1.0, 4000, "heavy"),
        (1.5, 20, "undecided"),
        (1.9, 1000, "undecided"),
        (4.0, 4000, "light"),
        (4.0, 20, "undecided"),
    ],
)
def test_tail_is_decided_only_by_enough_samples_on_one_side_of_two(index, samples, tail):
    """Quantiles of a Pareto law of that index."""
    side = (np.arange(1, samples + 1) / samples) ** (-1 / index)
    selection = select(np.r_[side, -side], ParetoSettings(minimum=1, light_tail="report"))
    for found in (selection.positive, selection.negative):
        assert found.tail_index == pytest.approx(index, rel=0.3)
        assert found.tail_high - found.tail_low == pytest.approx(
            2 * 1.96 * found.tail_index / np.sqrt(len(found.indices))
        )
        assert found.tail_low <= 2 <= found.tail_high or tail != "undecided"
        assert found.tail == found.figures()["tail"] == tail


def test_one_value_repeated_is_a_light_tail():
    assert select(np.r_[np.ones(50), -np.ones(50)], ParetoSettings(minimum=1)).positive.tail == "light"


def test_undecided_tail_does_not_stop_a_study_that_stops_on_light_ones():
    side = np.arange(1, 21) ** -0.25
    selection = select(np.r_[side, -side], ParetoSettings(minimum=1, light_tail="stop"))
    assert selection.positive.tail_index > 2
    assert selection.positive.tail == "undecided"


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (np.r_[np.ones(50), -1.0], ParetoSettings(minimum=4), "1 countering"),
        (np.r_[np.ones(50), np.nan], ParetoSettings(), "1 of 51 are not finite"),
        (np.r_[np.linspace(5, 6, 50), -np.linspace(5, 6, 50)], ParetoSettings(light_tail="stop"), "light tail"),
    ],
)
def test_unusable_influence_ends_with_the_reason(values, settings, message):
    with pytest.raises(InputError, match=message):
        select(values, settings)


@pytest.mark.parametrize("pairing", ["balanced", "random", "rank", "nearest", "matched"])
def test_pairs_join_a_countering_and_a_driving_sample(pairing):
    values = np.random.default_rng(0).standard_t(2, 100)
    selection = select(values, SETTINGS)
    prompts = [f"prompt about thing {i % 7}" for i in range(100)]
    texts = prompts, [f"response {i % 5}" for i in range(100)]
    sides = selection.negative.indices, selection.positive.indices
    pairs = pair(*sides, values, *texts, pairing=pairing, count=40, seed=3)
    again = pair(*sides, values, *texts, pairing=pairing, count=40, seed=3)
    assert all(np.array_equal(part, other) for part, other in zip(pairs, again, strict=True))
    preferred, dispreferred, weights = pairs
    assert {len(part) for part in pairs} == {40}
    assert set(preferred) <= set(selection.negative.indices)
    assert set(dispreferred) <= set(selection.positive.indices)
    assert weights.mean() == pytest.approx(1)


def test_barred_samples_leave_the_countering_side_and_enter_no_other():
    scores = np.concatenate([np.linspace(5, 1, 20), -np.linspace(5, 1, 20), np.full(60, 1e-3)])
    free = select(scores, ParetoSettings())
    barred = np.zeros(len(scores), dtype=bool)
    barred[free.negative.indices[[0, 2]]] = True
    found = select(scores, ParetoSettings(), barred=barred)
    assert found.negative.indices.tolist() == [i for i in free.negative.indices.tolist() if not barred[i]]
    assert found.positive.indices.tolist() == free.positive.indices.tolist()
    assert not set(found.neutral.tolist()) & set(np.flatnonzero(barred).tolist())


def test_indifferent_samples_come_from_groups_that_the_behaviour_is_not_about():
    scores = np.concatenate([np.linspace(5, 1, 20), -np.linspace(5, 1, 20), np.full(40, 1e-6), np.full(80, 1e-3)])
    groups = ["about it"] * 80 + ["cooking"] * 50 + ["travel"] * 30
    settings = ParetoSettings(neutral_ratio=2.0)
    found = select(scores, settings, groups=groups)
    larger = max(len(found.positive.indices), len(found.negative.indices))
    assert len(found.neutral) == 2 * larger
    assert {groups[i] for i in found.neutral} <= {"cooking", "travel"}
    free = select(scores, settings)
    assert {groups[i] for i in free.neutral} == {"about it"}  # they have the smallest scores
    assert free.positive.indices.tolist() == found.positive.indices.tolist()


def test_indifferent_samples_come_from_everywhere_where_no_group_is_calm():
    scores = np.concatenate([np.linspace(5, 1, 20), -np.linspace(5, 1, 20), np.full(60, 1e-3)])
    everywhere = select(scores, ParetoSettings(), groups=["one source"] * 100)
    assert everywhere.neutral.tolist() == select(scores, ParetoSettings()).neutral.tolist()
    few = select(scores, ParetoSettings(), groups=["about it"] * 95 + ["calm"] * 5)
    assert few.neutral.tolist() == everywhere.neutral.tolist()


def test_indifferent_samples_come_from_everywhere_where_calm_groups_hold_fewer_than_are_barred():
    scores = np.concatenate([[-1.0, 1.0], np.zeros(198)])
    barred = np.isin(np.arange(200), np.arange(100, 140))
    sparse = ParetoSettings(neutral_ratio=3.0).model_copy(update={"minimum": 0})
    found = select(scores, sparse, barred=barred, groups=["about it"] * 199 + ["calm"])
    assert len(found.neutral) == 3 * 40
