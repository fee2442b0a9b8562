"""`lancet plan`: what a run is expected to cost, from shapes and counts alone."""

import copy
import itertools
import json
import subprocess
import sys

import pytest
import torch
from conftest import tiny_tree, write_tiny_study
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.studies import run_study
from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.scale.costs import Costs
from lancet_pipeline.scale.decoder import CONFIGS, Decoder, decoder_of
from lancet_pipeline.scale.hardware import HARDWARE, hardware_of
from lancet_pipeline.scale.planning import plan
from lancet_pipeline.scale.workload import workload_of

PAPER = ("hh_opt27b", "beavertails_llama2_7b", "saferlhf_llama31_8b")


TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "tie_word_embeddings": False,
}


def decoder(model_type, **settings):
    return Decoder(AutoConfig.for_model(model_type, **settings))


def packaged(name):
    return load_study(PACKAGED_STUDIES / f"{name}.yaml")


@pytest.fixture(scope="module")
def paper():
    return packaged("saferlhf_llama31_8b")


@pytest.fixture(scope="module")
def demo():
    return plan(packaged("demo"), hardware_of("cpu"), [])


def row(expected, asset):
    return next(row for row in expected["assets"] if row["asset"] == asset)


def test_demo_is_expected_to_take_what_it_took_on_one_thread(demo):
    """Seconds of `python -m benchmarks.plan --held-out demo`, and of loading libraries; the constants are not fitted on it."""
    took = {
        "prepared_data": 3.6,
        "base_model": 46.9,
        "reference_models": 34.9,
        "undesirable_outputs": 0.3,
        "linfac_factors": 1.8,
        "influence_scores": 7.8,
        "pareto_pairs": 0.5,
        "corrected_model": 6.2,
        "harmlessness_report": 5.5,
        "ood_report": 4.0,
        "utility_report": 11.8,
        "output_traces": 9.5,
        "audit_bundle": 1.4,
        "registered_model": 2.1,
    }
    expected = sum(row(demo, asset)["seconds"] for asset in took)
    assert expected == pytest.approx(sum(took.values()), rel=0.25)
    assert demo["largest"] == "base_model"


def test_demo_is_expected_to_need_the_disk_and_memory_it_needed(demo):
    assert demo["total"]["disk_bytes"] == pytest.approx(18e6, rel=0.4)
    assert max(row["host_bytes"] for row in demo["assets"]) == pytest.approx(1.47e9, rel=0.4)


def test_parameters_are_counted_as_the_trained_model_has_them(demo):
    assert demo["model"]["parameters"] == pytest.approx(1_049_728, rel=0.01)


@pytest.mark.parametrize(
    ("checkpoint", "billions"),
    [("facebook/opt-2.7b", 2.65), ("meta-llama/Llama-2-7b-hf", 6.74), ("meta-llama/Llama-3.1-8B", 8.03)],
)
def test_configurations_kept_here_have_the_published_number_of_parameters(checkpoint, billions):
    assert decoder(**CONFIGS[checkpoint]).parameters == pytest.approx(billions * 1e9, rel=0.002)


@pytest.mark.parametrize("hardware", HARDWARE)
def test_more_samples_take_longer_and_more_disk(paper, hardware):
    few, many = (plan(paper, hardware_of(hardware), [], samples=n) for n in (10_000, 10**6))
    for asset in ("prepared_data", "base_model", "influence_scores", "output_traces"):
        assert row(many, asset)["seconds"] > row(few, asset)["seconds"], asset
    assert many["total"]["disk_bytes"] > few["total"]["disk_bytes"]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_larger_models_take_longer_more_memory_and_more_disk(paper, hardware):
    sizes = [plan(paper, hardware_of(hardware), [], parameters=n) for n in (10**8, 10**9, 7 * 10**9, 7 * 10**10)]
    for small, large in itertools.pairwise(sizes):
        assert large["total"]["seconds"] > small["total"]["seconds"]
        assert large["total"]["disk_bytes"] > small["total"]["disk_bytes"]
        for asset in ("base_model", "linfac_factors", "influence_scores", "corrected_model"):
            assert row(large, asset)["host_bytes"] > row(small, asset)["host_bytes"], asset


@pytest.mark.parametrize("parameters", [10**8, 10**9, 7 * 10**9, 7 * 10**10])
def test_a_resized_model_has_about_the_parameters_asked_for(paper, parameters):
    assert decoder_of(paper, [], parameters).parameters == pytest.approx(parameters, rel=0.1)


def test_a_faster_device_is_expected_to_be_faster(paper):
    cpu, a100, h100, eight = (plan(paper, hardware_of(name), [])["total"]["seconds"] for name in HARDWARE)
    assert cpu > a100 > h100 > eight


def test_a_billion_samples_on_seventy_billion_parameters_name_what_stops_scaling(paper):
    found = plan(paper, hardware_of("8xh100"), [], samples=10**9, parameters=7 * 10**10)
    stopped = {asset for limit in found["limits"] for asset in limit["assets"]}
    assert {"prepared_data", "base_model", "linfac_factors", "influence_scores", "pareto_pairs"} <= stopped
    [slow] = [limit for limit in found["limits"] if limit["assets"] == ["influence_scores"] and "days" in limit["why"]]
    assert slow["then"].startswith("compute.engine: ray on more devices")
    assert any("sketched" in limit["then"] for limit in found["limits"])


def test_memory_beyond_the_device_is_a_limit_with_a_remedy(paper):
    found = plan(paper, hardware_of("a100-80gb"), [], parameters=2 * 10**10)
    limit = next(limit for limit in found["limits"] if "base_model" in limit["assets"])
    assert "80.0 GB" in limit["why"]
    assert limit["then"]


def test_the_demo_passes_no_limit(demo):
    assert demo["limits"] == []


def test_figures_of_gpus_are_called_assumptions(paper):
    found = plan(paper, hardware_of("h100-80gb"), [])
    assert found["hardware"]["measured"] is False
    assert "assumption" in found["hardware"]["basis"]
    assert found["median_error"] is None


def test_several_devices_are_said_to_take_the_engine_that_uses_them():
    assert hardware_of("8xh100").basis.endswith("compute.engine: ray")
    assert "ray" not in hardware_of("h100-80gb").basis


@pytest.mark.parametrize("asset", ["base_model", "corrected_model"])
def test_training_beyond_one_device_is_sharded_by_ray(paper, asset):
    for name in ("a100-80gb", "8xh100"):
        found = plan(paper, hardware_of(name), [], parameters=7 * 10**10)
        remedies = [
            limit["then"] for limit in found["limits"] if asset in limit["assets"] and "of memory" in limit["why"]
        ]
        assert any("compute.engine: ray" in remedy and "(FSDP)" in remedy for remedy in remedies), remedies


def test_json_keys_are_stable(demo):
    found = json.loads(json.dumps(demo))
    assert set(found) == {
        *("study", "hardware", "model", "data", "assets", "total", "largest", "limits", "assumed", "median_error"),
    }
    assert [row["asset"] for row in found["assets"]] == list(STAGES)
    assert {key for row in found["assets"] for key in row} == {
        *("asset", "seconds", "device_bytes", "host_bytes", "disk_bytes"),
    }
    assert set(found["total"]) == {"seconds", "device_bytes", "host_bytes", "disk_bytes"}
    assert found["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in found["assets"]))


def test_unknown_hardware_names_those_known():
    with pytest.raises(InputError, match="--hardware tpu: not known; take one of cpu, a100-80gb"):
        hardware_of("tpu")


def test_an_unknown_checkpoint_names_the_remedy(paper):
    model = paper.model.model_copy(update={"checkpoint": "somebody/something"})
    study = paper.model_copy(update={"model": model})
    with pytest.raises(InputError, match=r"somebody/something: no config.json of it is here.*give --parameters"):
        plan(study, hardware_of("cpu"), [])
    assert plan(study, hardware_of("cpu"), [], parameters=10**9)["total"]["seconds"] > 0


def test_a_config_here_goes_before_the_table(paper, tmp_path):
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    widths = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
    }
    (folder / "config.json").write_text(json.dumps({**widths, "vocab_size": 500}))
    assert plan(paper, hardware_of("cpu"), [tmp_path])["model"]["width"] == 64
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"does not give the shape of a decoder.*give --parameters"):
        plan(paper, hardware_of("cpu"), [tmp_path])


@pytest.mark.parametrize(("option", "value"), [("samples", 0), ("parameters", 10)])
def test_counts_that_are_too_small_are_refused(paper, option, value):
    with pytest.raises(InputError, match=f"--{option} {value}: give at least"):
        plan(paper, hardware_of("cpu"), [], **{option: value})


@pytest.mark.parametrize("gradients", ["none", "activations", "parameters"])
@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_operations_are_those_of_the_whole_model(model_type, gradients):
    """A model with values, all layers in one pass, against one and two layers without values."""
    found = decoder(model_type, **TINY)
    config = copy.deepcopy(found.config)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(gradients == "parameters")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients != "none"):
        embedded = model.get_input_embeddings()(torch.ones(1, 20, dtype=torch.long))
        if gradients == "activations":
            embedded.requires_grad_()
        logits = model(inputs_embeds=embedded).logits
        if gradients != "none":
            logits.sum().backward()
    assert found.flops(20, 20, gradients) == counter.get_total_flops()
    assert found.parameters == model.num_parameters()


def test_operations_of_a_forward_pass_follow_from_the_parameters():
    found = decoder("llama", **TINY)
    body, head = found.parameters - 2 * 96 * 16, 96 * 16
    norms, attention = 16 * 7, 4 * 3 * 16 * 20**2
    assert found.flops(20, 5, "none") == pytest.approx(2 * (body - norms) * 20 + 2 * head * 5 + attention, rel=0.01)


def test_activations_grow_with_the_width_and_the_bytes_of_a_number():
    narrow, wide = (
        decoder("llama", **TINY | {"hidden_size": size, "intermediate_size": 2 * size}) for size in (64, 256)
    )
    assert wide.activations == pytest.approx(4 * narrow.activations, rel=0.25)
    assert Decoder(wide.config, "bfloat16").activations < 0.8 * wide.activations


def test_factors_are_as_large_as_those_written(tmp_path):
    path = write_tiny_study(tmp_path, tiny_tree())
    study, run = load_study(path), run_study(str(path), tmp_path, "base_model", "linfac_factors")
    written = sum(path.stat().st_size for path in run.folder("linfac_factors").glob("*.safetensors"))
    costs = Costs(study, workload_of(study, []), Decoder(AutoConfig.from_pretrained(run.folder("base_model"))))
    assert costs.factor_bytes == pytest.approx(written, rel=0.2)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_studies_run_by_hand_only_and_hold_out_other_parts_of_the_data(name):
    study = packaged(name)
    assert study.recorrect == "manual"
    assert study.schedule is None
    assert study.correction.lora is not None
    assert study.model.dtype == "bfloat16"
    sources = (study.data.train, study.data.probes, study.data.harmful, study.data.ood)
    for one, other in itertools.combinations(sources, 2):
        if (one.hub, one.part) == (other.hub, other.part):
            assert one.rows[1] <= other.rows[0]


def test_planning_and_loading_the_code_location_ask_nothing_of_the_network(tmp_path):
    """A process in which every connection fails plans the paper's studies and builds the definitions."""
    program = f"""
import socket
def refused(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refused
from pathlib import Path
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.orchestration.code_location import build_definitions
from lancet_pipeline.scale.hardware import hardware_of
from lancet_pipeline.scale.planning import plan
from lancet_pipeline.config.loading import find_study, load_study
where = deployment({{}}, Path({str(tmp_path)!r}))
definitions = build_definitions(where)
names = [schedule.name for schedule in definitions.schedules]
assert names == ["recorrect_demo"], names
for name in {PAPER!r}:
    study = load_study(find_study(name, where.study_directories))
    print(plan(study, hardware_of("h100-80gb"), where.model_directories)["largest"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(PAPER)


def test_a_study_of_local_files_is_counted(tmp_path):
    study = load_study(write_tiny_study(tmp_path, tiny_tree()))
    found = plan(study, hardware_of("cpu"), [])
    assert found["data"]["samples"] == 120
    assert found["data"]["harmful"] == 10
    assert 0 < found["data"]["response"] < found["data"]["tokens"] <= study.data.max_length
    assert row(found, "reference_models")["disk_bytes"] == 0


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_studies_are_expected_to_fit_into_one_device_of_80_gb(name):
    found = plan(packaged(name), hardware_of("h100-80gb"), [])
    assert max(row["device_bytes"] for row in found["assets"]) < 80e9
