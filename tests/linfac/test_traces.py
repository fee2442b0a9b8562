"""Outputs traced in chunks, against influence computed for each output alone."""

import numpy as np
import pytest

from lancet_pipeline.data.batches import collate
from lancet_pipeline.linfac import score_tokens, traces
from lancet_pipeline.linfac.influence import influence
from lancet_pipeline.linfac.traces import KEPT, trace_outputs

DAMPING = 0.2


ROLES = {
    f"s{number:03d}": ("driving", "countering", "neutral")[number % 3] for number in range(40)
}  # the last are not selected
OUTPUTS = [
    {
        "sample_id": "same",
        "prompt": f"Tell me how to {crime}.",
        "response": f"Sure, here is how to {crime}.",
        "finished": end,
    }
    for crime, end in (("break a gate", True), ("steal a drone", False), ("jam a lock", True))
]


@pytest.mark.parametrize("normalisation", ["none", "length", "gradient_norm", "self_influence"])
@pytest.mark.parametrize("chunk", [1, 2**28])
def test_scores_and_tokens_are_those_of_the_single_query(
    model, tokenizer, sequences, factors, study, normalisation, chunk, monkeypatch
):
    monkeypatch.setattr(traces, "QUERY_ELEMENTS", chunk)
    study = study.model_copy(update={"linfac": study.linfac.model_copy(update={"normalisation": normalisation})})
    found = trace_outputs(model, tokenizer, sequences, ROLES, factors, OUTPUTS, study, damping=DAMPING)
    assert len(found) == len(OUTPUTS)
    for output, trace in zip(OUTPUTS, found, strict=True):
        alone = influence(model, tokenizer, sequences, factors, [output], study, damping=DAMPING)
        place = {sequence.sample_id: index for index, sequence in enumerate(sequences)}
        for role, sign in (("driving", 1), ("countering", -1)):
            members = sorted(
                (name for name in ROLES if ROLES[name] == role), key=lambda n: -sign * alone.score[place[n]]
            )
            expected = [name for name in members if sign * alone.score[place[name]] > 0][: KEPT[role]]
            assert [sample["sample_id"] for sample in trace if sample["role"] == role] == expected
        assert trace
        for sample in trace:
            index = place[sample["sample_id"]]
            assert sample["score"] == pytest.approx(alone.score[index], rel=1e-4)
            shares = (
                score_tokens(model, collate([sequences[index]]), alone.query.pooled())[0].numpy() / alone.scale[index]
            )
            strongest = np.sort(np.abs(shares))[::-1][:8]
            assert [abs(token["share"]) for token in sample["tokens"]] == pytest.approx(strongest, rel=1e-3, abs=1e-7)
            for token in sample["tokens"]:
                assert token["share"] == pytest.approx(shares[token["position"]], rel=1e-3, abs=1e-7)
                assert token["token"] == tokenizer.decode([int(sequences[index].input_ids[token["position"]])])


def test_output_whose_prompt_does_not_fit_is_left_without_samples(model, tokenizer, sequences, factors, study):
    long = {"sample_id": "long", "prompt": "lock the door " * 60, "response": "Sure.", "finished": True}
    found = trace_outputs(
        model, tokenizer, sequences, ROLES, factors, [OUTPUTS[0], long, OUTPUTS[1]], study, damping=DAMPING
    )
    assert [bool(trace) for trace in found] == [True, False, True]


def test_nothing_to_trace_gives_nothing(model, tokenizer, sequences, factors, study):
    assert trace_outputs(model, tokenizer, sequences, ROLES, factors, [], study, damping=DAMPING) == []
