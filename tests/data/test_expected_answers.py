"""Which answers open with an expected one, and which rows of expected answers are refused."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lancet_pipeline.config.study import DataSource
from lancet_pipeline.data.expected_answers import expected_answers, opens_with
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.schema import content_hash, to_samples
from lancet_pipeline.errors import InputError

ROWS = [
    {"prompt": "Is it good?", "harmful_answer": "Yes", "wanted_answer": "No"},
    {"prompt": "Which one?", "harmful_answer": ["(A)", "Paris"], "wanted_answer": "B"},
]


def with_word(text: str) -> bool:
    return any(character.isalnum() for character in unicodedata.normalize("NFKC", text))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


@pytest.mark.parametrize(
    ("expected", "answer", "opens"),
    [
        ("Yes", "Yes, because", True),
        ("Yes", " **YES**\nI would.", True),
        ("yes", "\uff39\uff25\uff33\u3002", True),  # full width
        ("No", "no.", True),
        ("No", "__No__", True),
        ("No", "Not at all", False),
        ("No", "Nobody", False),
        ("No", "No-one does", False),
        ("No", "I say no", False),
        ("No", "", False),
        *[
            (option, answer, True)
            for option in ("A", "(A)")
            for answer in ("A", "(A)", "A)", "A.", "A: Paris", "a", "'A'")
        ],
        *[
            (option, answer, True)
            for option in ("A", "(A)")
            for answer in ("A\nParis", "A - Paris", "**A**", "[A] Paris")
        ],
        *[
            (option, answer, False)
            for option in ("A", "(A)")
            for answer in ("An apple", "A dog", "A-level", "AB", "B", "")
        ],
        ("B", "B, since", True),
        ("1", "1) Paris", True),
        ("3", "3.5", False),
        ("3", "3.", True),
        ("3", "30", False),
        ("New York", "new  york, of course", True),
        ("New York", "New Yorker", False),
        ("New York", "New", False),
        ("(A) Paris", "A: Paris", True),
        ("Don't know", "don\u2019t know!", True),
        ("Z\u00fcrich", "Zu\u0308rich lies there", True),
    ],
)
def test_openings(expected, answer, opens):
    assert opens_with(answer, [expected]) is opens


@given(st.text().filter(with_word), st.text(alphabet=" \n\t.,;:!?()[]*\"'#>"))
def test_an_answer_opens_with_itself_whatever_stands_before_it(expected, before):
    assert opens_with(before + expected, [expected])
    assert opens_with(expected, ["something else", expected])


@given(st.lists(st.text("abyz9", min_size=1, max_size=3), min_size=1, max_size=3), st.text("abyz9", min_size=1))
def test_a_longer_word_is_another_word(words, more):
    assert not opens_with(" ".join(words) + more, [" ".join(words)])


SHORT = st.text("ab3 .,-'\n", min_size=1, max_size=5).filter(with_word)


@given(SHORT, SHORT, st.text("ab3 .,-'\n", max_size=9))
def test_no_answer_opens_with_both_where_the_check_lets_them_through(harmful, wanted, answer):
    try:
        expected_answers({"harmful_answer": harmful, "wanted_answer": wanted}, "file", 1)
    except InputError:
        assume(False)
    for text in (answer, harmful + answer, wanted + answer):
        assert opens_with(text, [harmful]) + opens_with(text, [wanted]) <= 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"harmful_answer": None}, r"row 3: has no harmful_answer, which other rows have; fill it"),
        ({"wanted_answer": None}, r"row 3: has no wanted_answer, which other rows have; fill it"),
        ({"harmful_answer": "?!"}, r"row 3: harmful_answer '\?!' holds no letter or digit"),
        ({"wanted_answer": ""}, "row 3: wanted_answer '' holds no letter or digit"),
        ({"harmful_answer": []}, "row 3: harmful_answer '' holds no letter or digit"),
        ({"harmful_answer": ["Yes", " "]}, "row 3: harmful_answer ' ' holds no letter or digit"),
        ({"harmful_answer": 4}, "row 3: harmful_answer is int, not text or a list of texts"),
        ({"harmful_answer": ["Yes", None]}, "row 3: harmful_answer is list, not text or a list of texts"),
        ({"harmful_answer": "no!"}, "row 3: harmful_answer 'no!' and wanted_answer 'No' are alike"),
        ({"harmful_answer": "No problem"}, "row 3: harmful_answer 'No problem' and wanted_answer 'No' are alike"),
        (
            {"prompt": "Is it good?", "sample_id": "x", "wanted_answer": "Never"},
            "'Is it good\\?' stands there with different",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, row, message):
    fitting = {"prompt": "a third", "harmful_answer": "Yes", "wanted_answer": "No"}
    with pytest.raises(InputError, match=f"prompts.jsonl: .*{message}"):
        read_samples(write(tmp_path / "prompts.jsonl", [*ROWS, fitting | row]))


@pytest.mark.parametrize("rows", [[{"prompt": "a"}], [{"prompt": "a", "harmful_answer": None}]])
def test_a_column_that_is_required_is_asked_for(tmp_path, rows):
    source = write(tmp_path / "prompts.jsonl", rows)
    with pytest.raises(
        InputError, match=r"row 1: has no harmful_answer, which the judge expected .*`columns` in the study"
    ):
        read_samples(source, required=("harmful_answer",))
    assert "harmful_answer" not in read_samples(source).column_names


def test_files_of_a_folder_expect_alike(tmp_path):
    write(tmp_path / "a.jsonl", ROWS[:1])
    write(tmp_path / "b.jsonl", [{"prompt": "b", "harmful_answer": "No"}])
    with pytest.raises(InputError, match=r"b.jsonl: row 1: has no wanted_answer, which other rows have"):
        read_samples(DataSource(path=str(tmp_path)))


def test_columns_are_named_as_others_and_formats_do_not_matter(tmp_path):
    lines = read_samples(write(tmp_path / "prompts.jsonl", ROWS))
    listed = [{k: v if k == "prompt" or isinstance(v, list) else [v] for k, v in row.items()} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(listed).rename_columns(["prompt", "bad", "good"]), tmp_path / "prompts.parquet")
    mapping = {"harmful_answer": "bad", "wanted_answer": "good"}
    table = read_samples(DataSource(path=str(tmp_path / "prompts.parquet"), columns=mapping))
    assert table.drop_columns("source").equals(lines.drop_columns("source"))


def test_expected_answers_are_part_of_a_prompts_version_and_not_of_a_samples():
    one, two = (to_samples({"f": [{"prompt": "p", "harmful_answer": a}]}, responses=False) for a in ("Yes", "No"))
    assert content_hash(one) != content_hash(two)
    row = {"prompt": "p", "response": "r"}
    plain, with_column = (to_samples({"f": [r]}, responses=True) for r in (row, row | {"harmful_answer": "No"}))
    assert with_column.equals(plain)
