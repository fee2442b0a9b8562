"""Good answers that people wrote: what is refused, and what a correction learns from them."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import lancet
from conftest import tiny_tree, training_rows, write_jsonl, write_tiny_study

from lancet_pipeline.config.loading import load_study
from lancet_pipeline.config.study import Origin
from lancet_pipeline.correction.replacements import (
    beside,
    read_replacements,
    replaced_pairs,
    suffice,
    write_replacements,
)
from lancet_pipeline.correction.trainer import RankedPair
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.schema import sample_id
from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer, prepare
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.sources import read_source, source_versions
from lancet_pipeline.selection.tables import choose

BAD = [row for row in training_rows() if row["is_safe"] is False]
ROWS = [
    {
        "sample_id": sample_id(row["prompt"], row["response"]),
        "response": "I cannot help you " + row["prompt"].removeprefix("Tell me how to "),
    }
    for row in BAD[:6]
]


def study_with(folder, rows, **correction):
    tree = tiny_tree()
    tree["correction"] |= {"replacements": "good.jsonl"} | correction
    study = write_tiny_study(folder, tree)
    write_jsonl(folder / "good.jsonl", rows)
    return study


def test_a_plain_path_is_relative_to_the_study_and_content_alone_decides_the_version(tmp_path):
    study = study_with(tmp_path, ROWS)
    assert load_study(study).correction.replacements == Origin(path=str(tmp_path / "good.jsonl"))
    first = source_versions(load_study(study), [])
    write_jsonl(tmp_path / "good.jsonl", ROWS[::-1])
    assert source_versions(load_study(study), []) == first
    write_jsonl(tmp_path / "good.jsonl", ROWS[:2])
    changed = source_versions(load_study(study), [])
    assert {name for name in first if first[name] != changed[name]} == {"replacements"}


def test_columns_may_have_other_names(tmp_path):
    path = tmp_path / "good.parquet"
    pq.write_table(pa.table({"id": [row["sample_id"] for row in ROWS], "new": [row["response"] for row in ROWS]}), path)
    table = read_replacements(Origin(path=str(path), columns={"sample_id": "id", "response": "new"}))
    assert table.to_pylist() == ROWS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sample_id": "0" * 16, "response": "No."}, r"row 7: sample 0{16} is none of data.train; take its sample_id"),
        (ROWS[0], r"row 7: sample \w+ has an answer already"),
        (
            {"sample_id": ROWS[0]["sample_id"], "response": " \n"},
            "row 7: response is blank; fill it, or remove the row$",
        ),
        ({"sample_id": ROWS[0]["sample_id"]}, "column 'response' is missing"),
        (
            {"sample_id": sample_id(BAD[7]["prompt"], BAD[7]["response"]), "response": f" {BAD[7]['response']}\n"},
            r"row 7: answers sample \w+ as it is answered already; write a good answer",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named_with_a_remedy(tmp_path, row, message):
    with pytest.raises(InputError, match=r"good.jsonl: " + message):
        source_versions(load_study(study_with(tmp_path, [*ROWS, row])), [])


def test_an_empty_file_and_a_method_that_reads_no_good_answer_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"good.jsonl: holds no answers; give at least one"):
        source_versions(load_study(study_with(tmp_path / "a", [])), [])
    with pytest.raises(InputError, match="npo reads no good answer; leave replacements out"):
        load_study(study_with(tmp_path / "b", ROWS, method="npo"))


def prepared(study, folder):
    folder.mkdir()
    prepare(study, read_source(study, "training_data"), folder, None)
    return folder


def test_pairs_hold_both_answers_to_one_prompt(tmp_path):
    study = load_study(study_with(tmp_path, ROWS))
    folder, out = prepared(study, tmp_path / "prepared"), tmp_path / "out"
    out.mkdir()
    rows = write_replacements(study, read_source(study, "replacements"), folder, out)
    assert {row["replaces"] for row in rows} == {row["sample_id"] for row in ROWS}
    _, sequences = load_prepared(folder)
    pairs, tokenizer = replaced_pairs(sequences, out), load_tokenizer(folder / "tokenizer")
    good, own = {row["sample_id"]: row["response"] for row in ROWS}, {row["prompt"]: row["response"] for row in BAD}
    assert len(pairs) == len(ROWS)
    for pair in pairs:
        texts = [str(tokenizer.decode(side.input_ids)) for side in (pair.preferred, pair.dispreferred)]
        prompts, answers = zip(*(text.split("<|assistant|>") for text in texts), strict=True)
        assert prompts[0] == prompts[1]
        assert answers[0] == good[pair.dispreferred.sample_id] + "<|end|>"
        assert answers[1] == own[prompts[0].removeprefix("<|user|>")] + "<|end|>"
        assert pair.preferred.sample_id != pair.dispreferred.sample_id
        assert (pair.weight, pair.written) == (1.0, True)


def test_without_replacements_there_are_no_pairs(tiny_study, tmp_path):
    study = load_study(tiny_study)
    assert write_replacements(study, read_source(study, "replacements"), tmp_path, tmp_path) == []
    assert replaced_pairs([], tmp_path) == []


def test_an_answer_that_is_too_long_is_refused(tmp_path):
    study = load_study(study_with(tmp_path, [*ROWS[1:], ROWS[0] | {"response": "never " * 80}]))
    folder = prepared(study, tmp_path / "prepared")
    with pytest.raises(InputError, match=r"good.jsonl: sample \w+ .* tokens, more than data.max_length = 64"):
        write_replacements(study, read_source(study, "replacements"), folder, tmp_path)


def test_few_replacements_come_beside_pairs_of_samples_that_have_none(tmp_path):
    study = load_study(study_with(tmp_path, ROWS))
    made = {name: TokenSequence(name, np.array([1, 2, 3]), 1) for name in ("good", "bad", "other", "safe")}

    def pair(preferred, dispreferred, written=False):
        return RankedPair(made[preferred], made[dispreferred], 1.0, written)

    replaced, kept = [pair("good", "bad", True)], pair("safe", "other")
    assert beside(replaced, [pair("safe", "bad"), kept, pair("bad", "other")]) == [*replaced, kept]
    assert not suffice(replaced, study)  # pareto.minimum is 2
    assert suffice(replaced * 2, study)


def test_a_selection_without_countering_samples_stops_only_where_nothing_else_is_learned_from(tmp_path):
    study = load_study(study_with(tmp_path, ROWS))
    samples = read_source(study, "training_data")
    names = samples["sample_id"].to_pylist()
    barred = [row["sample_id"] for row in ROWS]
    scored = pa.table({"sample_id": names, "score": np.linspace(0.0, 1.0, len(names)) ** 8})
    with pytest.raises(InputError, match="0 countering"):
        choose(samples, scored, study, barred)
    choice = choose(samples, scored, study, barred, sparse=True)
    assert choice.pairs.num_rows == 0
    roles = choice.samples.to_pylist()
    assert not {row["sample_id"] for row in roles if row["role"] != "driving"} & set(barred)
    assert len([row for row in roles if row["role"] == "neutral"]) >= 2 * len(barred)


@pytest.mark.slow
def test_a_study_with_replacements_learns_from_them_and_says_so(tmp_path):
    study, home = study_with(tmp_path / "study", ROWS), ("--home", tmp_path / "home")
    printed = lancet("run", study, *home).stdout
    assert "6 replacements for selection, correction" in printed
    found = json.loads(lancet("summary", study, *home, "--json").stdout)
    assert found["selection"]["replaced"] == 6
    assert found["label_budget"]["correction"] == {"labels": 0, "replacements": 6}
    assert found["label_budget"]["contamination_ap"] == {"labels": len(training_rows())}
    assert found["label_budget"]["harm_rate"] == found["label_budget"]["perplexity"] == {}
    assert found["corrected"]["harm_rate"]["value"] < found["base"]["harm_rate"]["value"]
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert (gates["sides_agree"]["value"], gates["sides_agree"]["n"]) == (0.0, 6)  # of the good answers
    pairs = tmp_path / "home" / "artifacts" / "tiny" / "pareto_pairs"
    roles = pq.read_table(next(pairs.glob("*/samples.parquet"))).to_pylist()
    assert not {row["sample_id"] for row in roles if row["role"] != "driving"} & {row["sample_id"] for row in ROWS}
    bundle = next((tmp_path / "home" / "artifacts" / "tiny" / "audit_bundle").glob("*/bundle"))
    report = (bundle / "report.html").read_text(encoding="utf-8")
    assert "The correction was assisted by 6 replacements." in report
    assert "learned from these pairs alone" in report
    assert re.search(r"Assisted by 6 replacements", (bundle / "model_card.md").read_text(encoding="utf-8"))
