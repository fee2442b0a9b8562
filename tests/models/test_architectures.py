"""Every decoder family: sublayers by structure, gradients against autograd, padding on either side, adapters."""

import pytest
import torch
from linfac.small import batch, split
from transformers import AutoConfig, AutoModelForCausalLM

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import LinfacConfig, TokenBatch, find_units, fit_factors, query_gradient, score_sequences
from lancet_pipeline.linfac.units import backward_pass
from lancet_pipeline.models import architectures
from lancet_pipeline.models.architectures import Sublayers, base_layer, is_transposed, register, sublayers_of
from lancet_pipeline.models.likelihood import response_logits, response_logps

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
ARCHITECTURES = {
    "llama": {"intermediate_size": 24},
    "llama grouped, biased, tied": {
        "model_type": "llama",
        **GROUPED,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "phi": {"intermediate_size": 24},
    "phi3": GROUPED,
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "gpt_neox": {"intermediate_size": 24, "rotary_pct": 0.5},
    "smollm3": GROUPED,
}


def make_model(name: str, **changed):
    settings = {**SMALL, **ARCHITECTURES[name], **changed}
    model_type = settings.pop("model_type", name)
    if model_type == "gpt2":
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            settings.pop(key)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
    for parameter in model.parameters():  # biases and norms start at constants that would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def left_padded(data: TokenBatch) -> TokenBatch:
    """The same sequences with their padding moved to the left."""
    shifts = (1 - data.attention_mask).sum(1).tolist()
    tensors = (data.input_ids, data.attention_mask, data.loss_mask)
    rolled = [torch.stack([row.roll(shift) for row, shift in zip(part, shifts, strict=True)]) for part in tensors]
    return TokenBatch(*rolled)


def gradients_by_unit(model, data, kind="sublayer_output") -> dict:
    found = {}
    backward_pass(model, data, find_units(model, kind), lambda unit, a, ds: found.__setitem__(unit, ds.mT @ a))
    return found


def autograd_gradient(model, unit, one: TokenBatch) -> torch.Tensor:
    layer = base_layer(model.get_submodule(unit.output_module))
    layer.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(response_logps(model, one).sum(), layer.weight)
    return gradient.T if is_transposed(layer) else gradient


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["sublayer_output", "linear"])
def test_modular_gradient_is_the_gradient_of_the_projection(name, kind):
    model, data = make_model(name), batch()
    found = gradients_by_unit(model, data, kind)
    for row, one in enumerate(split(data, *[1] * 6)[:3]):
        for unit, gradients in found.items():
            expected = autograd_gradient(model, unit, one)
            torch.testing.assert_close(gradients[row], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_units_a_layer_and_outputs_as_wide_as_the_residual_stream(name):
    model = make_model(name)
    units = find_units(model, "sublayer_output")
    assert [unit.name.rpartition(".")[2] for unit in units] == ["attention", "ffn"] * 2
    for unit in units:
        module = model.get_submodule(unit.output_module)
        assert module(torch.zeros(1, module.weight.shape[0 if is_transposed(module) else 1])).shape[-1] == 16


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_loss_tokens_are_those_of_the_whole_forward_pass(name):
    model, data = make_model(name), batch()
    with torch.no_grad():
        whole = model(input_ids=data.input_ids, attention_mask=data.attention_mask).logits[:, :-1]
        logits, labels = response_logits(model, data)
    mask = data.loss_mask[:, 1:]
    torch.testing.assert_close(logits, whole[mask], rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, data.input_ids[:, 1:][mask])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_side_changes_nothing(name):
    model, data = make_model(name), batch()
    factors = fit_factors(model, [data], LinfacConfig(labels="true"))
    query = query_gradient(model, [data], factors)
    scores = score_sequences(model, [data], query)
    moved = score_sequences(model, [left_padded(data)], query)
    torch.testing.assert_close(moved, scores, rtol=1e-3, atol=1e-4 * scores.abs().max().item())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_are_seen_through(name):
    from peft import LoraConfig, get_peft_model

    plain, data = make_model(name), batch()
    expected = gradients_by_unit(plain, data, "linear")
    adapted = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=name == "gpt2")).eval()
    found = gradients_by_unit(adapted, data, "linear")
    assert len(found) == len(expected)
    for unit, other in zip(found, expected, strict=True):
        assert unit.name.endswith(other.name)
        torch.testing.assert_close(found[unit], expected[other])


def test_a_mixture_of_experts_ends_with_the_remedy():
    config = AutoConfig.for_model("mixtral", **SMALL, num_key_value_heads=2, intermediate_size=24, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"architectures\.register"):
        sublayers_of(model)


def test_a_registered_architecture_is_taken_at_its_word(monkeypatch):
    monkeypatch.setattr(architectures, "_REGISTRY", {})
    model = make_model("llama")
    places = Sublayers("model.layers", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    register("llama", places)
    assert sublayers_of(model) == places
    assert find_units(model, "sublayer_input")[0].input_module == "model.layers.0.self_attn.v_proj"
