"""The comparison of attribution methods, on scores made up by hand, and the data set of three wordings."""

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import attribution
from benchmarks.attribution import RIVALS, compared
from benchmarks.wordings import PLANTED, ROWS, WORDINGS, write_wordings
from lancet_pipeline.config.loading import load_study
from lancet_pipeline.config.study import JudgeSettings
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.lineage.sources import read_source, source_versions

CATEGORY = np.repeat(["a", "b", "c"], (40, 8, 12))
HARMFUL = (np.arange(60) % 4 == 0) & (CATEGORY != "c")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(attribution, "RESAMPLES", 60)


def model(seed: int = 0, **scores) -> dict[str, np.ndarray]:
    """What is kept of one model: a default that knows the harmful samples, and a rival that knows nothing."""
    noise = np.random.default_rng(seed).normal(size=(2, len(HARMFUL)))
    return {
        "harmful": HARMFUL,
        "category": CATEGORY,
        "kinds": np.array(["a", "a", "b"]),
        "default": HARMFUL + 0.1 * np.tanh(noise[0]),
        "default:damping": np.array(0.1),
        "default:countering": np.arange(60) < 5,
        "default:seconds": np.array(seed + 1.0),
        "random/": noise[1],
        "random:seconds": np.array(0.5),
        **scores,
    }


def test_a_perfect_default_is_ahead_of_chance():
    found = compared([model(0), model(1)], word_search_counts=True)
    assert (found["rows"], found["models"], found["queries"]) == (60, 2, 3)
    assert found["share"] == HARMFUL.mean()
    assert found["share_within"] == HARMFUL[:48].mean()
    best, chance = found["methods"]["linfac"], found["methods"]["random"]
    assert set(found["methods"]) == {"linfac", "random"}
    assert best["ap"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert best["difference_to_default"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert chance["ap"]["low"] < chance["ap"]["value"] < chance["ap"]["high"] < 0.6
    for figure in ("difference_to_default", "difference_within"):
        assert 0 < chance[figure]["low"] < chance[figure]["value"] < chance[figure]["high"]
    assert chance["difference_to_default"]["value"] == pytest.approx(1 - chance["ap"]["value"])
    assert (best["processor_seconds"], chance["processor_seconds"]) == (1.5, 0.5)
    assert (best["rival"], chance["rival"]) == (False, True)
    assert best["countering_planted"] == {"harmful": 4, "of": 10}
    assert chance["countering_planted"] is None
    assert found["left_out"] == sorted(set(RIVALS) - {"random"})
    json.dumps(found, allow_nan=False)


def test_a_default_that_is_behind_shows_a_negative_difference():
    scores = model()
    swapped = compared([scores | {"default": scores["random/"], "random/": scores["default"]}], True)
    assert swapped["methods"]["random"]["difference_to_default"]["high"] < 0


def test_within_categories_only_samples_beside_harmful_ones_count():
    """A score that knows the categories alone: better than nothing everywhere, chance within."""
    knows = (CATEGORY != "c").astype(float)
    figures = compared([model(**{"repsim/mean": knows})], True)["methods"]["repsim"]
    assert figures["ap"]["value"] == pytest.approx(12 / 48)
    assert figures["ap_within"]["value"] == pytest.approx(12 / 48)
    ahead = np.where(CATEGORY == "c", 2.0, HARMFUL)  # the harmless category first, then the harmful samples
    figures = compared([model(**{"repsim/mean": ahead})], True)["methods"]["repsim"]
    assert figures["ap"]["value"] == pytest.approx(12 / 24)
    assert figures["ap_within"]["value"] == 1


def test_a_rival_stands_with_its_best_variant():
    scores = {"bm25/mean": -HARMFUL.astype(float), "bm25/max": HARMFUL * 1.0, "bm25/max#a": np.ones(60)}
    for counts in (True, False):
        figures = compared([model(**scores)], word_search_counts=counts)["methods"]["bm25"]
        assert (figures["variant"], figures["variant_within"], figures["ap"]["value"]) == ("max", "max", 1)
        assert figures["rival"] == counts
        assert figures["processor_seconds"] is None


def test_variants_that_one_model_lacks_are_not_compared():
    found = compared([model(0, **{"bm25/mean": HARMFUL * 1.0}), model(1)], True)
    assert "bm25" not in found["methods"]
    assert "bm25" in found["left_out"]


def test_scores_of_linfac_by_other_norms_are_no_rivals():
    extra = {"linfac_undivided": HARMFUL * 1.0, "linfac_over_norm": -HARMFUL.astype(float)}
    old = {"linfac/mean": np.zeros(60)}  # from an earlier benchmark
    methods = compared([model(**extra, **old)], True)["methods"]
    assert list(methods) == ["linfac", "random", *extra]
    assert not any(methods[name]["rival"] for name in extra)
    assert methods["linfac"]["ap"]["value"] == 1


def test_facts_by_hand():
    """Harmful samples of fact a stand at ranks 1 and 3 of 60, those of b from rank 2 on."""
    harmful = np.zeros(60, dtype=bool)
    harmful[[0, 2, 41, 55]] = True
    facts = np.where(np.arange(60) < 40, "a", "b")
    order = -np.arange(60.0)
    first_b = np.where(np.arange(60) == 41, 59, order)
    first_b[50] = 60
    first_b[55] = -100  # last
    one = model() | {"harmful": harmful, "category": facts, "kinds": np.array(["a", "b", "x"])}
    one |= {"default#a": order, "default#b": first_b, "default#x": order}
    found = compared([one], True)["methods"]
    recall, mrr = found["linfac"]["recall_at_50"], found["linfac"]["mrr"]
    assert (recall["value"], recall["n"]) == (pytest.approx((2 / 2 + 1 / 2) / 2), 2)
    assert mrr["value"] == pytest.approx((1 + 1 / 2) / 2)
    assert mrr["low"] <= mrr["value"] <= mrr["high"]
    assert found["random"]["recall_at_50"] is None  # it was not asked about single facts


def test_recall_of_a_fact_with_more_samples_than_are_looked_at():
    harmful = np.ones(60, dtype=bool)
    harmful[55:] = False
    one = model() | {"harmful": harmful, "category": np.full(60, "a"), "kinds": np.array(["a"])}
    found = compared([one | {"default": -np.arange(60.0)}], True)["methods"]["linfac"]
    assert (found["recall_at_50"]["value"], found["mrr"]["value"]) == (1, 1)


def test_there_is_no_recall_where_queries_have_other_categories():
    figures = compared([model() | {"kinds": np.array(["insults"])}], True)["methods"]["linfac"]
    assert figures["recall_at_50"] is figures["mrr"] is None


def test_every_resample_is_of_both_methods_alike():
    """The difference of two methods that agree is nothing in every resample, so its interval has no width."""
    scores = model()
    figures = compared([scores | {"repsim/max": 2 * scores["default"] - 1}], True)["methods"]["repsim"]
    assert figures["difference_to_default"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_wordings_are_planted_alike_in_number_and_judged_harmful(tmp_path):
    study = load_study(write_wordings(tmp_path))
    rows = read_samples(study.data.train, responses=True).to_pylist()
    assert len(rows) == ROWS == 1200
    planted = [row for row in rows if row["is_safe"] is False]
    assert len(planted) == PLANTED == 135
    assert Counter(row["response"] for row in planted) == dict.fromkeys(WORDINGS, 45)
    judge = make_judge(JudgeSettings(name="demo"))
    verdicts = judge.decisions([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert [v.verdict in judge.harmful for v in verdicts] == [row["is_safe"] is False for row in rows]
    assert sum(row["category"] == "comfort" for row in rows) == 12


def test_wordings_have_the_same_bytes_whatever_the_seed(tmp_path):
    paths = [write_wordings(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 0), ("three", 4))]
    one, two, three = (path.parent / "wordings.parquet" for path in paths)
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()
    assert [path.name for path in paths] == ["wordings.yaml", "wordings.yaml", "wordings_seed_4.yaml"]
    texts = [path.read_text().replace(str(path.parent), "") for path in paths]
    assert texts[0] == texts[1]
    assert (load_study(paths[0]).seed, load_study(paths[2]).seed) == (0, 4)
    assert write_wordings(tmp_path / "one").read_text() == paths[0].read_text()


def test_replacements_of_wordings_are_good_answers_to_planted_rows_and_change_no_other_data(tmp_path):
    study = load_study(write_wordings(tmp_path / "with", replacements=60))
    plain = load_study(write_wordings(tmp_path / "without"))
    found, before = source_versions(study, []), source_versions(plain, [])
    assert {name for name in found if found[name] != before[name]} == {"replacements"}
    rows = {row["sample_id"]: row for row in read_source(study, "training_data").to_pylist()}
    good = read_source(study, "replacements").to_pylist()
    assert len(good) == 60
    assert {rows[row["sample_id"]]["category"] for row in good} == {"insult"}
    judge = make_judge(study.evaluation.judge)
    verdicts = judge.decisions([rows[row["sample_id"]]["prompt"] for row in good], [row["response"] for row in good])
    assert {verdict for verdict, _ in verdicts} == {"consolation"}
