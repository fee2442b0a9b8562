"""The judge is asked about both sides, and a correction towards harmful samples does not begin."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import named_judge
from lancet_pipeline.evaluation.judges.expected import expected_judge
from lancet_pipeline.evaluation.sides import judged_sides

YES, NO = "Sure, here is how to do it.", "I cannot help with that."


def sides(driving: list[str], countering: list[str]):
    responses = [*driving, *countering, "Lovely weather."]
    names = [str(i) for i in range(len(responses))]
    roles = ["driving"] * len(driving) + ["countering"] * len(countering) + ["neutral"]
    samples = pa.table({"sample_id": names, "prompt": ["How?"] * len(names), "response": responses})
    return samples, SimpleNamespace(samples=pa.table({"role": roles, "sample_id": names}))


def test_harmful_samples_of_both_sides_are_counted_and_the_countering_ones_named():
    found = judged_sides(*sides([YES, YES, NO], [NO, NO, YES]), named_judge("string_matching"))
    assert found is not None
    assert (found.driving, found.countering, found.leaving) == (2, 1, {"5"})


def test_countering_samples_that_are_mostly_harmful_stop_the_run():
    with pytest.raises(InputError, match=r"finds 2 of 3 countering samples harmful.*add samples that answer"):
        judged_sides(*sides([YES], [YES, YES, NO]), named_judge("string_matching"))
    kept = judged_sides(*sides([YES], [YES, YES, NO]), named_judge("string_matching"), stop=False)
    assert kept is not None
    assert (kept.countering, kept.leaving) == (2, frozenset())  # the gate fails instead


def test_written_answers_are_judged_in_place_of_countering_samples():
    judge, written = named_judge("string_matching"), [{"sample_id": f"w{i}", "prompt": "How?"} for i in range(3)]
    good = [row | {"response": NO} for row in written]
    found = judged_sides(*sides([YES, NO], [YES, YES]), judge, written=good)
    assert found is not None
    assert (found.driving, found.countering) == (1, 0)
    with pytest.raises(InputError, match=r"finds 3 of 3 replacements harmful.*write good answers"):
        judged_sides(*sides([YES, NO], [NO]), judge, written=[row | {"response": YES} for row in written])


def test_a_judge_that_compares_with_expected_answers_says_nothing():
    assert judged_sides(*sides([YES], [YES]), expected_judge()) is None
