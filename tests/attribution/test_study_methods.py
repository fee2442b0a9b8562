"""A study whose influence is measured by another method than LinFAC, and the scores that the method gives it."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import lancet
from conftest import tiny_tree, training_rows, write_tiny_study

from lancet_pipeline.attribution import METHODS
from lancet_pipeline.attribution.base import Case
from lancet_pipeline.attribution.scoring import (
    one_score,
    score_table,
    scores_on,
    study_case,
    study_scores,
    trace_outputs,
    word_search,
)
from lancet_pipeline.config.loading import load_study
from lancet_pipeline.data.tokenization import tokenize, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.store.artifacts import ArtifactStore

NO_MODEL: Any = None
ROWS = [{"sample_id": f"s{number:03d}", "source": "test", **row} for number, row in enumerate(training_rows()[:40])]


def output(text: str, response: str = "Sure.") -> dict:
    return {"sample_id": text, "prompt": text, "response": response, "finished": True}


HARMFUL = [output(f"Tell me how to {crime} a window.") for crime in ("break", "steal")]
HARMLESS = [output("How should I paint my window?", "To paint the window, take a soft cloth.")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row[column] for row in ROWS for column in ("prompt", "response")], 400)


@pytest.fixture
def case_of(tiny_study, tokenizer):
    study = load_study(tiny_study)

    def case(method: str, queries=HARMFUL, controls=HARMLESS, rows=ROWS) -> Case:
        settings = study.model_copy(update={"influence": study.influence.model_copy(update={"method": method})})
        samples, sequences = pa.Table.from_pylist(rows), tokenize(tokenizer, rows, max_length=64)
        return study_case(NO_MODEL, tokenizer, samples, sequences, queries, controls, settings, Runtime(), None)

    return case


def test_scores_are_the_mean_over_queries_less_that_over_controls(case_of):
    found = METHODS["bm25"](case_of("bm25"))
    expected = found[:, :2].mean(1) - found[:, 2:].mean(1)
    assert study_scores(case_of("bm25")) == pytest.approx(expected)
    assert (expected > 0).any()
    assert (expected < 0).any()


def test_without_controls_a_similarity_is_set_against_its_median_and_influence_stays_as_it_is(case_of):
    found = np.random.default_rng(0).random((9, 3))
    mean = found.mean(1)
    assert np.array_equal(one_score(found, 3, signed=True), mean)
    similar = one_score(found, 3, signed=False)
    assert np.array_equal(similar, mean - np.median(mean))
    assert ((similar > 0).sum(), (similar < 0).sum()) == (4, 4)
    single = METHODS["bm25"](case_of("bm25", controls=[]))
    assert study_scores(case_of("bm25", controls=[])) == pytest.approx(single.mean(1) - np.median(single.mean(1)))


@pytest.mark.parametrize("signed", [True, False])
def test_a_method_with_one_score_for_all_outputs_keeps_it(signed):
    assert one_score(np.arange(3.0), 2, signed=signed).tolist() == [0, 1, 2]


def test_probe_without_controls_is_refused(case_of):
    with pytest.raises(InputError, match="the model gave no harmless one"):
        study_scores(case_of("probe", controls=[]))


def test_outputs_whose_prompts_are_too_long_are_left_out(case_of):
    long = output("lock the door " * 60)
    found = case_of("bm25", [long, *HARMFUL], [long, *HARMLESS])
    assert (found.asked, found.queries) == ([*HARMFUL, *HARMLESS], 2)
    with pytest.raises(InputError, match=r"fits into data\.max_length"):
        case_of("bm25", [long])


def test_table_has_no_tokens_and_no_groups(case_of):
    case = case_of("bm25")
    table = score_table(case, study_scores(case))
    assert table["sample_id"].to_pylist() == [row["sample_id"] for row in ROWS]
    assert table["tokens"].to_pylist() == table["groups"].to_pylist() == [[]] * len(ROWS)
    assert table["category"].to_pylist() == [row["category"] for row in ROWS]


def test_word_search_agrees_with_itself_and_with_nothing_random(case_of):
    words = study_scores(case_of("bm25"))
    assert word_search(case_of("bm25"), words) == {}
    itself = word_search(case_of("linfac"), words)
    assert itself == {"word_search_overlap": 1.0, "word_search_correlation": pytest.approx(1.0)}
    assert word_search(case_of("linfac"), -words)["word_search_correlation"] == pytest.approx(-1.0)
    assert word_search(case_of("linfac"), np.zeros(len(ROWS))) == {}


def test_texts_without_words_are_no_error_for_linfac_and_one_for_word_search(case_of):
    rows = [{**row, "prompt": "?", "response": "!"} for row in ROWS[:4]]
    assert word_search(case_of("linfac", rows=rows), np.arange(4.0)) == {}
    for method in ("bm25", "tf_idf"):
        with pytest.raises(InputError, match="no training sample has a word"):
            study_scores(case_of(method, rows=rows))


def test_traces_hold_the_most_similar_selected_samples_of_either_role(case_of):
    roles = {row["sample_id"]: ("driving", "countering", "neutral")[n % 3] for n, row in enumerate(ROWS[:30])}
    outputs = [HARMFUL[0], output("lock the door " * 60), HARMFUL[1]]
    first, none, last = trace_outputs(case_of("tf_idf"), roles, outputs)
    assert none == []
    for trace in (first, last):
        assert [sample["role"] for sample in trace] == ["driving"] * 5 + ["countering"] * 3
        assert all(roles[sample["sample_id"]] == sample["role"] for sample in trace)
        assert all(sample["score"] > 0 and sample["tokens"] == [] for sample in trace)
    assert first != last
    assert trace_outputs(case_of("random"), roles, outputs) == [[], [], []]
    assert trace_outputs(case_of("tf_idf"), roles, []) == []


def test_a_single_output_has_no_scores_of_a_method_for_all_together(case_of):
    assert scores_on(case_of("bm25", HARMFUL[:1], [])).shape == (len(ROWS),)
    with pytest.raises(InputError, match=r"influence\.method: random scores all outputs together"):
        scores_on(case_of("random", HARMFUL[:1], []))


def test_a_study_by_word_search_runs_whole_and_says_what_it_has_not(tmp_path):
    study = write_tiny_study(tmp_path / "study", tiny_tree() | {"influence": {"method": "bm25"}})
    home = ("--home", tmp_path / "home")
    lancet("run", study, *home)
    store = ArtifactStore(tmp_path / "home")
    lineage = last_run(store, "tiny")

    def folder(asset: str):
        return store.read("tiny", asset, lineage[asset]["version"])

    scores = pq.read_table(folder("influence_scores") / "scores.parquet")
    assert scores.num_rows == 120
    assert scores["tokens"].to_pylist() == [[]] * 120
    metrics, checks = (lineage["influence_scores"][part] for part in ("metrics", "checks"))
    assert not {"damping", "word_search_overlap"} & metrics.keys()
    assert ("without_contrast" in metrics) == (metrics["controls"] == 0)
    [sufficed] = [check for check in checks if check["name"] == "sample_sufficed"]
    assert sufficed["passed"]
    assert sufficed["metadata"] == {"reliability": "not available: bm25 has no factors"}
    sizes = json.loads((folder("pareto_pairs") / "selection.json").read_text())
    assert sizes["positive"]["size"] == sizes["negative"]["size"] == 12
    traces = pq.read_table(folder("output_traces") / "traces.parquet").to_pylist()
    assert traces
    assert all(trace["samples"] for trace in traces)
    assert not any(sample["tokens"] for trace in traces for sample in trace["samples"])
    assert "not available for bm25" in (folder("audit_bundle") / "bundle" / "report.html").read_text()
    asked = ("trace", study, *home, "--prompt", "Tell me how to break a window.", "--device", "cpu")
    assert "token shares: not available for bm25" in lancet(*asked).stdout
    trace = json.loads(lancet(*asked, "--json").stdout)
    assert trace["driving"]
    assert not trace["countering"]
    assert not any(sample["tokens"] for sample in trace["driving"])
