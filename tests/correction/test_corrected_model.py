"""What a study's correction learns from."""

import numpy as np
import pyarrow as pa
import pytest

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import Study
from lancet_pipeline.correction.corrected_model import labelled_pairs
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import InputError


@pytest.fixture
def study() -> Study:
    return load_study(find_study("demo", deployment({}).study_directories))


def labelled(is_safe: list[bool | None]) -> tuple[pa.Table, list[TokenSequence]]:
    prompts = [f"about {'cats' if i % 2 else 'dogs'} number {i}" for i in range(len(is_safe))]
    sequences = [TokenSequence(str(i), np.array([i, 1, 2]), 1) for i in range(len(is_safe))]
    responses = ["yes" if i % 2 else "no" for i in range(len(is_safe))]
    return pa.table({"prompt": prompts, "response": responses, "is_safe": is_safe}), sequences


@pytest.mark.parametrize("pairing", ["random", "nearest", "matched"])
def test_labelled_pairs_prefer_safe_samples(study, pairing):
    is_safe = [True] * 7 + [False] * 5 + [None]
    pareto = study.pareto.model_copy(update={"pairing": pairing})
    pairs = labelled_pairs(*labelled(is_safe), study.model_copy(update={"pareto": pareto}))
    preferred = {int(pair.preferred.sample_id) for pair in pairs}
    dispreferred = {int(pair.dispreferred.sample_id) for pair in pairs}
    assert preferred <= set(range(7))
    assert dispreferred == set(range(7, 12))
    assert {pair.weight for pair in pairs} == {1.0}
    if pairing == "random":
        assert preferred == set(range(7))
    else:
        assert all((int(p.preferred.sample_id) - int(p.dispreferred.sample_id)) % 2 == 0 for p in pairs)


@pytest.mark.parametrize("is_safe", [[True] * 4, [False] * 4, [None] * 4])
def test_labels_of_one_kind_end_with_the_reason(study, is_safe):
    correction = study.correction.model_copy(update={"method": "dpo"})
    with pytest.raises(InputError, match="dpo learns from labels"):
        labelled_pairs(*labelled(is_safe), study.model_copy(update={"correction": correction}))
