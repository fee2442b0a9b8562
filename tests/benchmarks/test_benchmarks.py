"""The statistics that the results page rests on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from benchmarks import correction, long_run, margins
from benchmarks.lds import correlations, interval
from benchmarks.small import walks
from lancet_pipeline.attribution.words import bm25_scores, tf_idf_scores
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import CorrectionSettings, ParetoSettings
from lancet_pipeline.correction import METHODS

DOCUMENTS = ["the cat sat on the mat", "a dog barked", "the stock market fell on monday", "cat and dog"]


def drawn(seed: int, shape: tuple[int, int] = (30, 6)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_correlations_are_spearmans_of_each_query():
    predicted, true = drawn(0), drawn(1)
    predicted[:, 2] = predicted[:, 2].round()  # ties
    expected = [spearmanr(a, b)[0] for a, b in zip(predicted.T, true.T, strict=True)]
    np.testing.assert_allclose(correlations(predicted, true), expected)


def test_an_interval_holds_its_value_and_a_difference_to_itself_is_nothing():
    true = drawn(2)
    pairs = [(true + drawn(3), true), (true + drawn(4), true)]
    found = interval(pairs, resamples=200)
    assert found["low"] < found["value"] < found["high"]
    assert interval(pairs, pairs, resamples=20) == {"value": 0.0, "low": 0.0, "high": 0.0}
    noisier = [(true + 4 * drawn(5), true), (true + 4 * drawn(6), true)]
    assert interval(pairs, noisier, resamples=200)["low"] > 0


@pytest.mark.parametrize("score", [bm25_scores, tf_idf_scores])
def test_text_retrieval_finds_the_document_of_the_query(score):
    assert int(np.argmax(score(DOCUMENTS, ["market on monday"]))) == 2
    assert score(DOCUMENTS, ["barked"])[:, 0].nonzero()[0].tolist() == [1]


def test_the_same_seed_speaks_the_same_language():
    for one, other in zip(walks(3, 5), walks(3, 8), strict=False):
        assert np.array_equal(one.input_ids, other.input_ids)


def trial(**values) -> dict:
    return {"feasible": True, "harm_rate": 0.0, "perplexity_ratio": 1.01, "rise": 0.0, **values}


def test_of_trials_a_feasible_one_with_little_harm_and_least_drift_wins():
    failed = {"failed": "diverged", "feasible": False}
    far, near = (trial(feasible=False, perplexity_ratio=ratio) for ratio in (1.5, 1.1))
    harmful, strong = trial(harm_rate=0.1, perplexity_ratio=1.0), trial()
    gentle = trial(harm_rate=0.009, perplexity_ratio=1.001)
    assert correction.best([failed, far, harmful, strong, gentle]) == gentle
    assert correction.best([failed, far, harmful, strong]) == strong
    assert correction.best([failed, far, near]) == near
    assert correction.best([failed]) == failed


def test_methods_are_searched_with_as_many_trials_each():
    assert {len(grid) for grid in correction.GRIDS.values()} == {6}
    assert correction.GRIDS.keys() == METHODS.keys()
    study = load_study(find_study("demo", deployment({}).study_directories))
    for method, grid in correction.GRIDS.items():
        for settings in grid:
            settled = correction.settled(study, method, settings)
            CorrectionSettings.model_validate(settled.correction.model_dump())
            ParetoSettings.model_validate(settled.pareto.model_dump())
            assert settled.correction.method == method


def test_a_method_dominates_only_where_it_is_nowhere_worse():
    figures = {"harm_rate": 0.1, "ood_harm_rate": 0.2, "over_refusal_rate": 0.1, "perplexity_ratio": 1.01}
    assert not correction.dominates(figures, figures)
    assert correction.dominates(figures | {"harm_rate": 0.0}, figures)
    assert not correction.dominates(figures | {"harm_rate": 0.0, "perplexity_ratio": 1.02}, figures)


def test_training_and_probe_prompts_of_margins_are_disjoint(tmp_path):
    prompts = [f"prompt {i // 3}" for i in range(60)]
    table = pa.table({"prompt": prompts, "response": [str(i) for i in range(60)]})
    pq.write_table(table, tmp_path / "t.parquet")
    parts = margins.whole_prompts(tmp_path / "t.parquet", {"probes": 10, "train": 20})
    probes, train = (set(parts[name]["prompt"].to_pylist()) for name in ("probes", "train"))
    assert not probes & train
    assert len(probes) * 3 == parts["probes"].num_rows == 12
    assert len(train) * 3 == parts["train"].num_rows == 21


def test_behaviours_of_the_long_run_have_their_own_prompts():
    for behaviour in long_run.behaviours(0):
        assert len(behaviour.probes) >= 60
        assert len(behaviour.prompts) >= 80
        assert not set(behaviour.probes) & set(behaviour.prompts)
