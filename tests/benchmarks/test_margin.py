"""The likelihood margin against hand-made answers and the likelihoods of single sequences."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.margin import likelihood_margin, negative_log_likelihoods
from benchmarks.relearning import relearning_curve, steps_to
from lancet_pipeline.data.batches import TokenSequence, collate


def test_margin_is_paired_by_prompt():
    # The second prompt has no safe answer, so only the first and third count: 3 - 1.5 and 1 - 2.
    values = np.array([3.0, 1.0, 2.0, 9.0, 1.0, 2.0])
    is_safe = [False, True, True, False, False, True]
    found = likelihood_margin(values, is_safe, ["a", "a", "a", "b", "c", "c"])
    assert found["value"] == pytest.approx((1.5 - 1.0) / 2)
    assert found["n"] == 2
    assert (found["low"], found["high"]) == (-1.0, 1.5)
    with pytest.raises(ValueError, match="no prompt"):
        likelihood_margin(values[:1], is_safe[:1], ["a"])


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).eval()
    draw = np.random.default_rng(0)
    return model, [TokenSequence(str(i), draw.integers(0, 40, 6 + i), 3) for i in range(6)]


def test_likelihoods_do_not_depend_on_batches(tiny):
    model, sequences = tiny
    found = negative_log_likelihoods(model, sequences, batch_tokens=30)
    for sequence, value in zip(sequences, found, strict=True):
        ids = collate([sequence]).input_ids
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected = -logps.gather(1, ids[0, 1:, None])[2:, 0].mean().item()
        assert value == pytest.approx(expected, rel=1e-5)


def test_relearning_trains_a_copy(tiny):
    model, sequences = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def likelihood(student) -> float:
        return -float(negative_log_likelihoods(student, sequences).mean())

    curve = relearning_curve(model, sequences, likelihood, steps=10, every=4, batch_size=2, learning_rate=1e-2)
    assert [step for step, _ in curve] == [0, 4, 8]
    assert curve[-1][1] > curve[0][1]
    assert steps_to(curve, curve[-1][1]) == 8
    assert steps_to(curve, 1.0) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
