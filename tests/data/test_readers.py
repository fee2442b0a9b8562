"""Every way in which samples may fail to fit ends early, with the file, the row and the remedy."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lancet_pipeline.config.study import DataSource
from lancet_pipeline.data.presets import apply_preset
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.schema import content_hash, sample_id, to_samples
from lancet_pipeline.errors import InputError

GOOD = [{"prompt": "a", "response": "b", "is_safe": True}, {"prompt": "c", "response": "d", "is_safe": False}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no samples"),
        ([{"response": "b"}], "column 'prompt' is missing"),
        ([*GOOD, {"prompt": None, "response": "b"}], "row 3: prompt is null"),
        ([*GOOD, {"prompt": " \n", "response": "b"}], "row 3: prompt is blank"),
        ([{"prompt": 3, "response": "b"}], "row 1: prompt is int, not text"),
        ([{"prompt": "a", "response": "b", "is_safe": "yes"}], "row 1: is_safe = 'yes'"),
        ([*GOOD, GOOD[0]], "row 3: sample_id .* stands already in row 1"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_samples(write(tmp_path / "data.jsonl", rows), responses=True)


def test_blank_rows_are_left_out_where_the_study_says_so(tmp_path):
    rows = [
        GOOD[0],
        {"prompt": "p", "response": " "},
        {"prompt": None, "response": "b"},
        {"prompt": "", "response": "b"},
    ]
    source = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(InputError, match=r"row 2: response is blank; .*`blank: drop`"):
        read_samples(source, responses=True)
    dropping = source.model_copy(update={"blank": "drop"})
    assert read_samples(dropping, responses=True)["prompt"].to_pylist() == ["a"]
    missing = write(tmp_path / "missing.jsonl", [{"prompt": "a"}]).model_copy(update={"blank": "drop"})
    with pytest.raises(InputError, match="column 'response' is missing"):
        read_samples(missing, responses=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("data.csv", b"a,b", "unknown format"),
        ("data.jsonl", b'{"prompt": "\xff"}\n', "row 1: byte 13 is not UTF-8"),
        ("data.jsonl", b"{broken\n", "row 1: not JSON"),
        ("data.jsonl", b"[1]\n", "row 1: must be a JSON object"),
        ("data.parquet", b"PAR1 no", "not a readable Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_samples(DataSource(path=str(tmp_path / name)))


def test_formats_and_orders_give_the_same_content(tmp_path):
    pq.write_table(pa.Table.from_pylist(GOOD[::-1]), tmp_path / "data.parquet")
    jsonl = read_samples(write(tmp_path / "data.jsonl", GOOD), responses=True)
    parquet = read_samples(DataSource(path=str(tmp_path / "data.parquet")), responses=True)
    unnamed = [table.drop_columns("source") for table in (jsonl, parquet)]
    assert unnamed[0].equals(unnamed[1])


@given(st.permutations(range(6)))
def test_content_hash_ignores_order_and_sees_every_change(order):
    rows = [{"prompt": f"p{i}", "response": "r", "is_safe": None, "source": "s"} for i in range(6)]
    whole = content_hash(to_samples({"x": rows}, responses=True))
    assert content_hash(to_samples({"x": [rows[i] for i in order]}, responses=True)) == whole
    rows[order[0]] = {**rows[order[0]], "response": "q"}
    assert content_hash(to_samples({"x": rows}, responses=True)) != whole


def test_row_ranges_are_disjoint_parts(tmp_path):
    source = write(tmp_path / "data.jsonl", [{"prompt": f"p{i}"} for i in range(10)])
    parts = [read_samples(source.model_copy(update={"rows": r}))["sample_id"].to_pylist() for r in ((0, 4), (4, 10))]
    assert sorted(parts[0] + parts[1]) == sorted(sample_id(f"p{i}", None) for i in range(10))
    with pytest.raises(InputError, match=r"rows \[10, 12\) are empty"):
        read_samples(source.model_copy(update={"rows": (10, 12)}))


def test_prompts_stand_once_and_their_row_ranges_share_none(tmp_path):
    rows = [{"prompt": f"p{i % 6}", "response": f"r{i}"} for i in range(18)]
    source = write(tmp_path / "data.jsonl", rows)
    parts = [read_samples(source.model_copy(update={"rows": r}))["prompt"].to_pylist() for r in ((0, 2), (2, 6))]
    assert sorted(parts[0] + parts[1]) == [f"p{i}" for i in range(6)]
    assert read_samples(source, responses=True).num_rows == 18


def test_hh_rlhf_rows_become_a_safe_and_an_unsafe_sample():
    row = {
        "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: good",
        "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: bad",
    }
    safe, unsafe = apply_preset([row, row], "hh-rlhf", "hh")
    assert (safe["response"], safe["is_safe"], unsafe["response"], unsafe["is_safe"]) == ("good", True, "bad", False)
    assert safe["prompt"] == "hi\n\nAssistant: hello\n\nHuman: and?"


def test_safety_labels_of_the_other_presets():
    beaver = {"prompt": "p", "response": "r", "is_safe": False, "category": {"b": True, "a": False}}
    assert next(apply_preset([beaver], "beavertails", "x"))["category"] == "b"
    pku = {
        "prompt": "p",
        "response_0": "r",
        "response_1": "s",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
    }
    assert [s["is_safe"] for s in apply_preset([pku], "pku-saferlhf", "x")] == [True, False]
    with pytest.raises(InputError, match="column 'chosen' is missing"):
        list(apply_preset([pku], "hh-rlhf", "x"))
