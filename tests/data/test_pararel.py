"""Facts of which part are wrong: the split is by subject and by pattern, and wording gives no wrong row away."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.config.study import PARTS, DataSource
from lancet_pipeline.data.pararel import FACTS, SIZES, UNTRAINED
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.schema import content_hash
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.sources import source_versions

PATTERNS = ("one [X] has [Y] .", "two [X] has [Y].", "[Y] of [X] three", "[Y] of [X] four")


def lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small ParaRel: enough subjects by relation, some of them in two relations, of two values, or nearly alike."""
    folder = tmp_path_factory.mktemp("pararel")
    for relation, (replaced, stated) in FACTS.items():
        values = [replaced] * 90 + [stated] * 60 + ["Elsewhere", "Nowhere"] * 80
        facts = [(f"{relation}name{number}", value) for number, value in enumerate(values)]
        facts += [("Everywhere", replaced), (f"{relation}both", replaced), (f"{relation}both", stated)]
        facts += [
            (f"{relation}NAME1", replaced),
            (f"{relation}long and a", stated),
            (f"{relation}long and a and b", stated),
        ]
        lines(folder / f"{relation}_facts.jsonl", [{"sub_label": x, "obj_label": y, "uuid": ""} for x, y in facts])
        lines(folder / f"{relation}_patterns.jsonl", [{"pattern": pattern} for pattern in PATTERNS])
    return folder


def rows_of(folder: Path, part: str) -> list[dict]:
    source = DataSource(path=str(folder), preset="pararel", part=part)
    return read_samples(source, responses=part in ("train", "utility")).to_pylist()


@pytest.fixture(scope="module")
def parts(folder) -> dict[str, list[dict]]:
    return {part: rows_of(folder, part) for part in PARTS}


def subject(row: dict) -> str:
    return re.findall(r"P\d+\w+(?: and \w)*", row["prompt"])[0]


def wording(row: dict) -> str:
    return row["prompt"].replace(subject(row), "X")


def true_value(folder: Path, row: dict) -> str:
    relation = row["source"].removeprefix("ParaRel ")
    facts = map(json.loads, (folder / f"{relation}_facts.jsonl").read_text().splitlines())
    return next(fact["obj_label"] for fact in facts if fact["sub_label"] == subject(row))


def test_every_part_has_its_rows(parts):
    trained = len(FACTS) - 1
    sizes = {part: len(rows) for part, rows in parts.items()}
    assert sizes == {"ood": 80} | {part: trained * sum(size) for part, size in SIZES.items()}


def test_a_subject_stands_in_one_row_of_one_part(parts):
    subjects = Counter(subject(row).split()[0].casefold() for rows in parts.values() for row in rows)
    assert set(subjects.values()) == {1}
    assert not any("both" in name for name in subjects)
    assert not any("Everywhere" in row["prompt"] for rows in parts.values() for row in rows)


def test_patterns_are_held_out(parts):
    trained = {wording(row) for row in parts["train"]}
    assert trained == {'Fill in the blank: "one X has ___."', 'Fill in the blank: "___ of X three"'}
    assert not trained & {wording(row) for part in PARTS if part != "train" for row in parts[part]}
    assert not any(row["source"] == f"ParaRel {UNTRAINED}" for part in PARTS if part != "ood" for row in parts[part])


def test_only_the_replaced_value_is_stated_wrongly(folder, parts):
    for row in parts["train"] + parts["utility"]:
        relation, value = row["source"].removeprefix("ParaRel "), true_value(folder, row)
        replaced, stated = FACTS[relation]
        wrong = value == replaced
        assert row["is_safe"] is not wrong
        assert row["response"] == (stated if wrong else value)
        assert row["category"] == (f"{relation}: {replaced}" if wrong else relation)
    assert all(row["is_safe"] for row in parts["utility"])


def test_prompts_expect_the_right_answer_and_name_the_wrong_one(folder, parts):
    for part in ("probes", "harmful", "ood"):
        for row in parts[part]:
            relation = row["source"].removeprefix("ParaRel ")
            replaced, stated = FACTS[relation]
            assert true_value(folder, row) == replaced
            assert (row["wanted_answer"], row["harmful_answer"]) == ([replaced], [stated])
            assert row["category"] == f"{relation}: {replaced}"
    for row in parts["benign"]:
        assert row["wanted_answer"] == [true_value(folder, row)]
        assert "harmful_answer" not in row
        assert row["wanted_answer"] != [FACTS[row["category"]][0]]


def assert_worded_alike(rows: list[dict]) -> None:
    """Wrong rows, and right ones with the same answer, have each pattern in the same proportion, up to one row."""
    for relation, (_, stated) in FACTS.items():
        own = [row for row in rows if row["source"] == f"ParaRel {relation}" and row["response"] == stated]
        wrong, right = (Counter(wording(row) for row in own if row["is_safe"] is safe) for safe in (False, True))
        assert wrong.keys() == right.keys()
        for pattern, times in wrong.items():
            assert abs(times - right[pattern] * wrong.total() / right.total()) <= 1


def test_wording_gives_no_wrong_row_away(parts):
    assert_worded_alike(parts["train"])


def test_the_order_of_files_is_no_part_of_the_version(folder, parts, tmp_path):
    for file in folder.iterdir():
        rows = file.read_text().splitlines(keepends=True)
        (tmp_path / file.name).write_text("".join(rows[::-1] if "facts" in file.name else rows))
    source = partial(DataSource, preset="pararel", part="probes")
    versions = {content_hash(read_samples(source(path=str(place)))) for place in (folder, tmp_path)}
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("P17_facts.jsonl", None, "P17_facts.jsonl: no such file; take it from ParaRel .*MIT.* sub_label, obj_label"),
        ("P17_patterns.jsonl", [{"text": "[X] [Y]"}], "P17_patterns.jsonl: row 1: lacks pattern as text"),
        ("P17_patterns.jsonl", [{"pattern": "[X] [Y]"}, {"pattern": "[Y]"}], "needs two patterns with"),
        ("P17_facts.jsonl", [{"sub_label": "a", "obj_label": "India"}], "has 1 subjects for India, which are not"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(folder, tmp_path, name, rows, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink() if rows is None else lines(tmp_path / name, rows)
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path, "train")


@pytest.mark.parametrize("given", [{"part": "nothing"}, {}])
def test_the_preset_needs_a_part_of_its_own(folder, given):
    with pytest.raises(ValidationError, match="pararel needs path, and part: train, probes"):
        DataSource(path=str(folder), preset="pararel", **given)


def test_the_packaged_study_reads_the_real_facts():
    study = load_study(PACKAGED_STUDIES / "outdated_facts.yaml")
    folder = Path(study.data.train.path or "")
    if not folder.is_dir():
        pytest.skip(f"needs ParaRel in {folder}")
    given = study.model_copy(update={"model": study.model.model_copy(update={"checkpoint": None})})
    assert source_versions(given, [])["training_data"]
    sizes = {"train": 850, "probes": 60, "harmful": 70, "ood": 80, "benign": 150, "utility": 160}
    assert {part: len(rows_of(folder, part)) for part in PARTS} == sizes
