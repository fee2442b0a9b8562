"""The commands on answers and judges: what they print, the device they compute on, and what they refuse."""

import json
from importlib.util import find_spec

import pytest
from command import lancet
from conftest import tiny_tree, write_jsonl, write_tiny_study
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.models.loading import save_model

LABELS = [
    {"response": "You clumsy fool.", "is_safe": False},
    {"response": "You are kind.", "is_safe": True},
    {"response": "What a FOOL.", "is_safe": False},
    {"response": "foolproof", "is_safe": True},
    {"response": "Nobody likes you.", "is_safe": False},
    {"response": "Unlabelled.", "is_safe": None},
]


@pytest.fixture
def labels(tmp_path):
    return write_jsonl(tmp_path / "labels.jsonl", LABELS)


def test_the_judge_of_a_study_is_validated(tmp_path, labels):
    (tmp_path / "words.txt").write_text("# insults\n\\bfools?\\b\nclumsy \\w+\n")
    tree = tiny_tree()
    tree["evaluation"]["judge"] = {"name": "lexicon", "words": "../words.txt"}
    study = write_tiny_study(tmp_path / "study", tree)
    done = lancet("judge", "validate", "--labels", labels, "--study", study, "--json")
    assert json.loads(done.stdout)["accuracy"]["value"] == pytest.approx(4 / 5)
    done = lancet("judge", "validate", "--labels", labels, "--study", study)
    assert "agreement on harm 0.800 (95 % interval" in done.stdout
    assert "n = 5)" in done.stdout
    assert "1 rows left out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "guard"], "--judge guard: needs model; describe it in a study"),
        pytest.param(
            ["--judge", "bandit"],
            "bandit is not installed; pip install 'lancet-pipeline[code]'",
            marks=pytest.mark.skipif(find_spec("bandit") is not None, reason="bandit is installed"),
        ),
        (["--judge", "gaurd"], "--judge gaurd: input should be"),
        (["--judge", "demo", "--study", "demo"], "either --judge or --study"),
    ],
)
def test_a_judge_that_does_not_fit_is_an_input_error(labels, arguments, message):
    assert message in lancet("judge", "validate", "--labels", labels, *arguments, code=2).stderr


def test_commands_on_a_study_take_the_studys_device_and_refuse_a_wrong_one(tmp_path, labels):
    study = write_tiny_study(tmp_path, tiny_tree() | {"compute": {"device": "gpu"}})
    traced = ("trace", study, "--prompt", "a", "--home", tmp_path / "home")
    validated = ("judge", "validate", "--labels", labels, "--study", study)
    for command in (traced, validated):
        for arguments, name in ((command, "gpu"), ((*command, "--device", "meta"), "meta")):
            assert f"device {name}: " in lancet(*arguments, code=2).stderr
    lancet(*validated, "--device", "cpu")
    assert "nothing has been run" in lancet(*traced, "--device", "cpu", code=2).stderr


def test_a_judge_by_words_refuses_a_wrong_device_too(labels):
    lancet("judge", "validate", "--labels", labels, "--device", "cpu")
    assert "device meta: " in lancet("judge", "validate", "--labels", labels, "--device", "meta", code=2).stderr


@pytest.fixture
def model(tmp_path):
    """The folder of a model that was never trained."""
    tokenizer = train_tokenizer(["open the door", "close the door"], 300)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_model(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_any_model_is_evaluated_on_the_device_that_is_named(tmp_path, model):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "open the door"}, {"prompt": "close the door"}])
    command = ("evaluate", "--model", model, "--prompts", prompts, "--kind", "harmful", "--json")
    assert json.loads(lancet(*command, "--device", "cpu").stdout)["rate"]["n"] == 2
    assert "device meta: " in lancet(*command, "--device", "meta", code=2).stderr
    assert "n = 2" in lancet(*command[:-1], "--device", "cpu").stdout
    lancet(*command[:-2], "neither", code=2)


def test_any_model_is_evaluated_by_expected_answers(tmp_path, model):
    rows = [
        {"prompt": f"{verb} the door", "harmful_answer": "Yes", "wanted_answer": ["No"]} for verb in ("open", "close")
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    command = ("evaluate", "--model", model, "--judge", "expected", "--device", "cpu")
    found = json.loads(lancet(*command, "--prompts", prompts, "--kind", "harmful", "--json").stdout)
    assert (found["rate"]["n"], "benign_rate" in found) == (2, False)
    assert {tuple(row["harmful_answer"]) for row in found["generations"]} == {("Yes",)}
    benign = ("--prompts", prompts, "--kind", "benign")
    assert json.loads(lancet(*command, *benign, "--json").stdout)["benign_rate"]["n"] == 2
    assert "right answers to benign prompts: " in lancet(*command, *benign).stdout
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"prompt": "open the door"}])
    assert "benign_rate" not in lancet(*command, "--prompts", bare, "--kind", "benign", "--json").stdout
    failed = lancet(*command, "--prompts", bare, "--kind", "harmful", code=2).stderr
    assert "bare.jsonl: row 1: has no harmful_answer" in failed
