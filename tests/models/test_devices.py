"""One function says which device a name means, for stages and commands alike."""

import json

import pytest
import torch
from conftest import tiny_tree, write_jsonl, write_tiny_study
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lancet_pipeline.cli import app
from lancet_pipeline.config.loading import load_study
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.loading import resolve_device, save_model
from lancet_pipeline.resources import Compute

WRONG = ("meta", "gpu", "cuda:99")
REMEDY = r"nothing can be computed on it here .*give auto, cpu, cuda or cuda:N as --device, or as compute\.device"


def invoked(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_auto_is_the_gpu_where_there_is_one():
    assert torch.ones(1, device=resolve_device("auto")).is_cuda == torch.cuda.is_available()
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("name", WRONG)
def test_a_device_that_computes_nothing_is_refused_with_the_remedy(name):
    with pytest.raises(InputError, match=rf"^device {name}: {REMEDY}"):
        resolve_device(name)


def test_stages_and_commands_on_a_study_take_the_studys_device_and_refuse_a_wrong_one(tmp_path):
    study = write_tiny_study(tmp_path, tiny_tree() | {"compute": {"device": "gpu"}})
    labels = write_jsonl(tmp_path / "labels.jsonl", [{"response": "Sure.", "is_safe": False}])
    with pytest.raises(InputError, match=r"^device gpu: "):
        Compute().runtime(load_study(study))
    traced = ("trace", study, "--prompt", "a", "--home", tmp_path / "home")
    validated = ("judge", "validate", "--labels", labels, "--study", study)
    for command in (traced, validated):
        for arguments, name in ((command, "gpu"), ((*command, "--device", "meta"), "meta")):
            error = invoked(*arguments).exception
            assert isinstance(error, InputError)
            assert f"device {name}: " in str(error)
    assert invoked(*validated, "--device", "cpu").exit_code == 0
    error = invoked(*traced, "--device", "cpu").exception
    assert "nothing has been run" in str(error)


def test_a_judge_by_words_refuses_a_wrong_device_too(tmp_path):
    labels = write_jsonl(tmp_path / "labels.jsonl", [{"response": "Sure.", "is_safe": False}])
    assert invoked("judge", "validate", "--labels", labels, "--device", "cpu").exit_code == 0
    assert "device meta: " in str(invoked("judge", "validate", "--labels", labels, "--device", "meta").exception)


def test_any_model_is_evaluated_on_the_device_that_is_named(tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "open the door"}, {"prompt": "close the door"}])
    tokenizer = train_tokenizer(["open the door", "close the door"], 300)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_model(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path / "model")
    command = ("evaluate", "--model", tmp_path / "model", "--prompts", prompts, "--kind", "harmful", "--json")
    done = invoked(*command, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rate"]["n"] == 2
    assert "device meta: " in str(invoked(*command, "--device", "meta").exception)
