"""Prompts that stand in other data too are left out, however they are written there."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lancet_pipeline.config.loading import load_study, read_mapping, study_of
from lancet_pipeline.config.study import DataSource
from lancet_pipeline.data import duplicates
from lancet_pipeline.data.duplicates import nearly_among
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.errors import InputError

LONG = "Would you rather that I read the whole report to you now or send it to your office by the end of this week"
SUBJECTS = ("rivers", "bread", "violins", "tax law", "granite", "tides", "wolves", "glass", "chess", "yeast")


@pytest.mark.parametrize(
    "other",
    [
        "how do I mend a KETTLE",
        "  How do I\n mend a\tkettle?  ",
        "How do I... mend a kettle?!",
        "How do I mend a kettle",
    ],
)
def test_case_blanks_and_punctuation_make_no_difference(other):
    assert nearly_among(["How do I mend a kettle?", "How do I mend a violin?"], [other]).tolist() == [True, False]


def test_an_instruction_that_all_share_makes_no_two_alike():
    instruction = "Answer the following question with a single letter, and give no reason for what you have chosen: "
    prompts = [f"{instruction}{subject}" for subject in SUBJECTS]
    assert not nearly_among(prompts[:5], prompts[5:]).any()
    assert nearly_among(prompts[:5], [*prompts[5:], prompts[2].upper()]).tolist() == [False, False, True, False, False]


def test_a_word_of_a_long_prompt_makes_no_difference():
    others = [*SUBJECTS, LONG]
    changed = [
        LONG.replace("office", "home"),
        LONG.replace("report", "letter").replace("office", "home")[:60],
        "rivers",
    ]
    assert nearly_among(changed, others).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("prompts", "others", "expected"),
    [
        ([], [], []),
        ([], ["a b"], []),
        (["a b"], [], [False]),
        (["a", "a", "a"], ["a"], [True] * 3),  # all of them have every word
        (["?!"], ["?!", "b"], [True]),
        (["?!"], ["..."], [False]),
        (["?!", "b"], ["..."], [False, False]),
        (["\u4f60\u597d", "Stra\u00dfe"], ["STRASSE"], [False, True]),
    ],
)
def test_small_cases(prompts, others, expected):
    found = nearly_among(prompts, others)
    assert found.dtype == bool
    assert found.tolist() == expected


texts = st.lists(st.sampled_from(("one", "two", "three", "four", "five")), min_size=1, max_size=9).map(" ".join)


@given(texts, texts)
def test_of_two_prompts_each_is_like_the_other_or_neither(one, other):
    assert nearly_among([one], [other]).tolist() == nearly_among([other], [one]).tolist()
    assert nearly_among([one, other], [one]).tolist()[0]


@given(st.lists(texts, max_size=6), st.lists(texts, min_size=1, max_size=6))
def test_parts_that_are_compared_at_once_change_nothing(prompts, others):
    whole = nearly_among(prompts, others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "COMPARED", 1)
        np.testing.assert_array_equal(nearly_among(prompts, others), whole)


def write(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def test_rows_whose_prompt_stands_elsewhere_are_left_out(tmp_path):
    probes = write(tmp_path / "probes.jsonl", [*SUBJECTS, LONG])
    seen = write(tmp_path / "seen.jsonl", ["Rivers!", LONG.replace("office", "home"), "other"])
    source = DataSource(path=probes, apart_from=(seen,))
    left = read_samples(source)
    assert set(left["prompt"].to_pylist()) == set(SUBJECTS[1:])
    assert left["sample_id"].to_pylist() == sorted(left["sample_id"].to_pylist())
    cut = read_samples(source.model_copy(update={"rows": (2, 5)}))  # rows are counted among what is left
    assert cut.equals(left.slice(2, 3))


def test_a_folder_and_several_files_are_told_apart_from(tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()
    for name, prompts in (("a", SUBJECTS[:2]), ("b", SUBJECTS[2:4])):
        write(folder / f"{name}.jsonl", prompts)
    another = write(tmp_path / "another.jsonl", [*SUBJECTS[4:6], " "])  # a blank prompt is no prompt
    source = DataSource(path=write(tmp_path / "probes.jsonl", SUBJECTS), apart_from=(str(folder), another))
    assert set(read_samples(source)["prompt"].to_pylist()) == set(SUBJECTS[6:])


def test_a_source_of_which_nothing_is_left_is_refused(tmp_path):
    source = DataSource(path=write(tmp_path / "probes.jsonl", SUBJECTS), apart_from=(str(tmp_path / "probes.jsonl"),))
    with pytest.raises(InputError, match=r"probes.jsonl: every prompt stands in .*probes.jsonl too; give others"):
        read_samples(source)
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file or folder; put it back"):
        read_samples(source.model_copy(update={"apart_from": (str(tmp_path / "absent.jsonl"),)}))


def test_a_relative_path_is_below_the_folder_of_the_study(tiny_study):
    tree = read_mapping(tiny_study)
    tree["data"]["probes"]["apart_from"] = ["../study/harmful.jsonl", "ood.jsonl"]
    study = study_of(tree, str(tiny_study), tiny_study.parent)
    assert study.data.probes.apart_from == tuple(
        str(tiny_study.parent / f"{name}.jsonl") for name in ("harmful", "ood")
    )
    before = read_samples(load_study(tiny_study).data.probes)
    assert read_samples(study.data.probes).equals(before)  # nothing of it stands there
    tree["data"]["probes"]["apart_from"] = ["probes.jsonl"]
    with pytest.raises(InputError, match="every prompt stands in"):
        read_samples(study_of(tree, str(tiny_study), tiny_study.parent).data.probes)
