"""Corrections of a tiny model, by every method."""

import copy

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import CorrectionSettings, LoraSettings, Training
from lancet_pipeline.correction import METHODS, RankedPair, correct
from lancet_pipeline.correction.precision import trainable
from lancet_pipeline.correction.trainer import hold_apart
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.models.likelihood import response_logps
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.models.training import train


@pytest.fixture
def setting():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    draw = np.random.default_rng(0)
    sequences = [TokenSequence(str(i), draw.integers(0, 40, 10), 5) for i in range(40)]
    pairs = [RankedPair(sequences[i], sequences[i + 4], 1.0) for i in range(4)]
    return LlamaForCausalLM(config).eval(), pairs, sequences[8:]


SETTINGS = CorrectionSettings(
    beta=0.1,
    mu=1.0,
    retain_per_step=8,
    steps=20,
    learning_rate=2e-3,
    check_every=5,
    retain_budget=1.2,
    retain_validation=8,
    pairs_per_step=4,
)


def fitted(model, sequences):
    """So well trained on `sequences` that to damage it is to raise its perplexity on them."""
    train(model, sequences, Training(epochs=40, learning_rate=1e-2), seed=0)
    return model


def gain(model, before, pairs, side: str) -> float:
    """Mean gain in log-probability of one side of the pairs."""
    batch = collate([getattr(pair, side) for pair in pairs])
    with torch.no_grad():
        return (response_logps(model, batch) - response_logps(before, batch)).mean().item()


def changed(settings: CorrectionSettings, **values) -> CorrectionSettings:
    return CorrectionSettings.model_validate(settings.model_dump() | values)


def same_parameters(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_its_sides_and_keeps_the_budget(setting, method):
    model, pairs, neutral = setting
    before = copy.deepcopy(model)
    result = correct(model, pairs, neutral, changed(SETTINGS, method=method), seed=0)
    sides = METHODS[method].sides
    if "dispreferred" in sides:
        others = gain(model, before, pairs, "preferred") if "preferred" in sides else 0.0
        assert gain(model, before, pairs, "dispreferred") < others - 0.5
    else:
        assert gain(model, before, pairs, "preferred") > 0.5
    assert result.kept["perplexity_ratio"] <= SETTINGS.retain_budget
    assert result.kept["margin"] == max(
        row["margin"] for row in result.curve if row["perplexity_ratio"] <= SETTINGS.retain_budget
    )


@pytest.mark.parametrize("generator", ["logsumexp", "euclidean"])
def test_the_divergence_holds_the_model_still(setting, generator):
    model, pairs, neutral = setting
    free, held = copy.deepcopy(model), copy.deepcopy(model)
    loose = correct(free, pairs, neutral, changed(SETTINGS, mu=0.0, retain_budget=9.0), seed=0)
    tight = correct(held, pairs, neutral, changed(SETTINGS, mu=20.0, retain_budget=9.0, generator=generator), seed=0)
    assert abs(tight.curve[-1]["perplexity_ratio"] - 1) < abs(loose.curve[-1]["perplexity_ratio"] - 1)


def test_proximity_and_truncated_responses_are_read(setting):
    model, pairs, neutral = setting
    near, far = copy.deepcopy(model), copy.deepcopy(model)
    correct(near, pairs, neutral, changed(SETTINGS, gamma=10.0, retain_tokens=2), seed=0)
    correct(far, pairs, neutral, changed(SETTINGS, retain_tokens=2), seed=0)

    def distance(other) -> float:
        pairs = zip(other.parameters(), model.parameters(), strict=True)
        return sum((p - q).square().sum().item() for p, q in pairs)

    assert 0 < distance(near) < distance(far)


def test_same_seed_gives_the_same_parameters(setting):
    model, pairs, neutral = setting
    twin = copy.deepcopy(model)
    correct(model, pairs, neutral, SETTINGS, seed=7)
    correct(twin, pairs, neutral, SETTINGS, seed=7)
    assert same_parameters(model, twin)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("lora", "states"), [(None, "32bit"), (LoraSettings(rank=2, alpha=4.0), "32bit"), (None, "8bit")]
)
def test_a_killed_correction_goes_on_to_the_same_parameters(setting, tmp_path, lora, states):
    if states == "8bit":
        pytest.importorskip("bitsandbytes")
    model, pairs, neutral = setting
    model.resize_token_embeddings(400, mean_resizing=False)  # large enough for states in 8 bits
    whole, killed = copy.deepcopy(model), copy.deepcopy(model)
    settings = changed(SETTINGS, lora=lora and lora.model_dump(), optimizer_states=states)
    expected = correct(whole, pairs, neutral, settings, seed=0)

    def kill(items, total, label):
        for step, item in enumerate(items):
            if step == 12:
                raise Killed
            yield item

    file = tmp_path / "checkpoint.safetensors"
    arguments = {"seed": 0, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        correct(killed, pairs, neutral, settings, **arguments, runtime=Runtime(checkpoint=file, track=kill))
    with safe_open(file, framework="pt") as held:
        moments = {held.get_tensor(name).dtype for name in held.keys() if name.startswith("moments:")}  # noqa: SIM118
    assert (torch.uint8 in moments) == (states == "8bit")
    steps = []

    def watch(items, total, label):
        steps.append(total)
        yield from items

    fresh = copy.deepcopy(model)
    assert (
        correct(fresh, pairs, neutral, settings, **arguments, runtime=Runtime(checkpoint=file, track=watch)) == expected
    )
    assert steps == [8]
    assert same_parameters(fresh, whole)
    assert not file.exists()


def test_a_checkpoint_of_another_correction_is_not_used(setting, tmp_path):
    model, pairs, neutral = setting
    file = tmp_path / "checkpoint.safetensors"

    def kill(items, total, label):
        yield next(iter(items))
        raise Killed

    arguments = {"seed": 0, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        correct(
            copy.deepcopy(model), pairs, neutral, SETTINGS, **arguments, runtime=Runtime(checkpoint=file, track=kill)
        )
    fresh, other = copy.deepcopy(model), copy.deepcopy(model)
    correct(fresh, pairs, neutral, SETTINGS, seed=1, runtime=Runtime(checkpoint=file))
    correct(other, pairs, neutral, SETTINGS, seed=1)
    assert same_parameters(fresh, other)


def test_adapters_are_merged_and_change_no_more_than_their_rank(setting):
    model, pairs, neutral = setting
    before = copy.deepcopy(model)
    correct(model, pairs, neutral, changed(SETTINGS, lora={"rank": 2, "alpha": 4.0}, learning_rate=1e-2), seed=0)
    assert type(model) is type(before)
    assert gain(model, before, pairs, "preferred") - gain(model, before, pairs, "dispreferred") > 0.5
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert new.requires_grad
        if "proj" in name:
            assert torch.linalg.matrix_rank(new.detach() - old.detach(), atol=1e-5) <= 2
        else:
            assert torch.equal(new, old)


def test_bfloat16_models_are_corrected_and_stay_bfloat16(setting):
    model, pairs, neutral = setting
    model.to(torch.bfloat16)
    before = copy.deepcopy(model)
    rotary = model.model.rotary_emb.inv_freq.clone()
    result = correct(model, pairs, neutral, changed(SETTINGS, learning_rate=1e-3, retain_budget=9.0), seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, rotary)
    margin = gain(model, before, pairs, "preferred") - gain(model, before, pairs, "dispreferred")
    assert margin > 0.5
    # The trainer saw its own steps: what it measured last is what the model does.
    assert result.curve[-1]["correction"] < result.curve[0]["correction"]
    assert result.kept["margin"] == pytest.approx(margin, rel=0.35)


def test_adapters_on_bfloat16_weights_do_what_adapters_on_float32_weights_do(setting):
    model, pairs, neutral = setting
    wide = copy.deepcopy(model)
    model.to(torch.bfloat16)
    lora = LoraSettings(rank=2, alpha=4.0)
    with trainable(model, lora, 0):
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert (frozen, trained) == ({torch.bfloat16}, {torch.float32})
    settings = changed(SETTINGS, lora=lora.model_dump(), learning_rate=1e-2, retain_budget=9.0)
    before = copy.deepcopy(model)
    found, expected = (correct(m, pairs, neutral, settings, seed=0) for m in (model, wide))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert found.kept["margin"] == pytest.approx(expected.kept["margin"], rel=0.1)
    merged = gain(model, before, pairs, "preferred") - gain(model, before, pairs, "dispreferred")
    assert merged == pytest.approx(found.kept["margin"], rel=0.35)


def test_eight_bit_states_without_their_package_end_with_the_remedy(setting, monkeypatch):
    monkeypatch.setattr("lancet_pipeline.models.memory.find_spec", lambda name: None)
    model, pairs, neutral = setting
    with pytest.raises(InputError, match=r"lancet-pipeline\[memory\]"):
        correct(model, pairs, neutral, changed(SETTINGS, optimizer_states="8bit"), seed=0)


def test_what_was_frozen_is_frozen_again(setting):
    model, pairs, neutral = setting
    model.lm_head.requires_grad_(False)
    correct(model, pairs, neutral, changed(SETTINGS, steps=2), seed=0)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_a_budget_broken_at_the_first_look_is_an_error_and_adapters_are_taken_out(setting):
    model, pairs, neutral = setting
    before = copy.deepcopy(fitted(model, neutral))
    wild = changed(SETTINGS, learning_rate=1.0, retain_budget=1.0001, mu=0.0, lora={"rank": 2})
    with pytest.raises(LancetError, match=r"lower correction\.learning_rate|diverged"):
        correct(model, pairs, neutral, wild, seed=0)
    assert same_parameters(model, before)


def test_the_budget_is_that_of_the_category_that_lost_most(setting):
    model, pairs, neutral = setting
    fitted(model, neutral)
    calm, other = copy.deepcopy(model), copy.deepcopy(model)
    settings = changed(SETTINGS, retain_validation=16, retain_budget=9.0, mu=0.0)
    rows = correct(calm, pairs, neutral, settings, seed=0).curve
    halves = {sequence.sample_id: str(i % 2) for i, sequence in enumerate(hold_apart(neutral, settings, 0)[1])}
    apart = correct(other, pairs, neutral, settings, seed=0, categories=halves).curve
    assert same_parameters(calm, other)
    assert [row["margin"] for row in apart] == [row["margin"] for row in rows]
    assert all(both["perplexity_ratio"] < half["perplexity_ratio"] for both, half in zip(rows, apart, strict=True))


def test_mu_doubles_after_a_look_past_the_budget(setting):
    model, pairs, neutral = setting
    fitted(model, neutral)
    settings = changed(
        SETTINGS, steps=24, check_every=8, learning_rate=2e-3, mu=1.0, warmup_fraction=0.5, retain_budget=9.0
    )
    free, held = model, copy.deepcopy(model)
    rows = correct(free, pairs, neutral, settings, seed=0).curve
    first, second, _ = (row["perplexity_ratio"] for row in rows)
    assert first < second
    found = correct(held, pairs, neutral, changed(settings, retain_budget=(first + second) / 2), seed=0).curve
    assert found[:2] == rows[:2]
    assert found[2]["retain"] < rows[2]["retain"]


def test_a_look_past_the_budget_does_not_count_and_three_in_a_row_end_the_correction(setting):
    model, pairs, neutral = setting
    fitted(model, neutral)
    settings = changed(SETTINGS, steps=60, check_every=1, learning_rate=1e-2, mu=0.0, retain_budget=1.05)
    found = correct(model, pairs, neutral, settings, seed=0)
    within = [row["perplexity_ratio"] <= 1.05 for row in found.curve]
    assert found.ended.startswith("retain budget broken up to step")
    assert len(found.curve) < 60
    assert within[0]
    assert within[-3:] == [False] * 3
    assert all(any(within[i : i + 3]) for i in range(len(within) - 3))
    assert found.kept["margin"] == max(row["margin"] for row, fine in zip(found.curve, within, strict=True) if fine)


def test_a_first_look_past_the_budget_ends_no_correction(setting):
    model, pairs, neutral = setting
    quick = {
        "steps": 6,
        "check_every": 1,
        "learning_rate": 1e-2,
        "warmup_fraction": 0.0,
        "mu": 4.0,
        "retain_budget": 1.005,
    }
    found = correct(model, pairs, neutral, changed(SETTINGS, **quick), seed=0)
    first, second = (row["perplexity_ratio"] for row in found.curve[:2])
    assert first > quick["retain_budget"] > second
    assert (len(found.curve), found.ended) == (6, "all steps done")
    assert found.best_step > 1


def test_no_multiple_of_a_task_vector_within_the_budget_is_an_error(setting):
    model, pairs, neutral = setting
    wild = changed(SETTINGS, method="task_vector", negation=1e3, retain_budget=1.0001)
    with pytest.raises(LancetError, match="no multiple of the task vector"):
        correct(fitted(model, neutral), pairs, neutral, wild, seed=0)


def test_unusable_pairs_end_with_the_reason(setting):
    model, pairs, neutral = setting
    with pytest.raises(InputError, match="no pair"):
        correct(model, [], neutral, SETTINGS, seed=0)
    same = RankedPair(pairs[0].preferred, pairs[0].preferred, 1.0)
    with pytest.raises(InputError, match="the same tokens"):
        correct(model, [same], neutral, SETTINGS, seed=0)
    with pytest.raises(InputError, match="1 indifferent samples"):
        correct(model, pairs, neutral[:1], SETTINGS, seed=0)
