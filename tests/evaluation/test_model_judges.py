"""Judges that are models, against the models' own outputs on one exchange at a time."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lancet_pipeline.config.study import JudgeSettings
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.models.loading import save_model

PROMPTS = [f"prompt {n} " + "asks for more " * (n % 3) for n in range(20)]
RESPONSES = [f"answer {n} says this" for n in range(19)] + ["I cannot help with that."]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*PROMPTS, *RESPONSES], 320)


def saved(folder, tokenizer, kind=LlamaForSequenceClassification, **settings) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, **SIZES, **settings
    )
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data *= 8.0
    save_model(model, tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    labels = {0: "fine", 1: "threat", 2: "insult"}
    return saved(
        tmp_path_factory.mktemp("classifier"), tokenizer, id2label=labels, label2id={v: k for k, v in labels.items()}
    )


@pytest.fixture(scope="module")
def reward(tmp_path_factory, tokenizer):
    return saved(tmp_path_factory.mktemp("reward"), tokenizer, num_labels=1)


@pytest.fixture(scope="module")
def guard(tmp_path_factory, tokenizer):
    return saved(tmp_path_factory.mktemp("guard"), tokenizer, LlamaForCausalLM)


def logits(folder: str, tokenizer, texts: list[str]) -> torch.Tensor:
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits for text in texts]
        )


def exchanges(tokenizer) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], tokenize=False
        )
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]


@pytest.mark.parametrize("text", ["exchange", "response"])
def test_a_classifier_sums_the_probability_of_its_harmful_labels(classifier, tokenizer, text):
    settings = JudgeSettings(name="classifier", model=classifier, harmful_labels=("threat", "insult"), text=text)
    decisions = make_judge(settings).decisions(PROMPTS, RESPONSES)
    texts = exchanges(tokenizer) if text == "exchange" else RESPONSES
    probabilities = logits(classifier, tokenizer, texts).softmax(1)
    assert [d.score for d in decisions] == pytest.approx(probabilities[:, 1:].sum(1).tolist(), abs=1e-4)
    for decision, row in zip(decisions[:-1], probabilities, strict=False):
        harmful = "threat" if row[1] >= row[2] else "insult"
        assert decision.verdict == (harmful if row[1:].sum() >= 0.5 else "fine")


def test_without_a_chat_template_a_classifier_reads_a_pair_of_texts(tmp_path, tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    folder = saved(tmp_path, plain)
    settings = JudgeSettings(name="classifier", model=folder, harmful_labels=("LABEL_1",))
    decisions = make_judge(settings).decisions(PROMPTS, RESPONSES)
    joined = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert [d.score for d in decisions] == pytest.approx(
        logits(folder, plain, joined).softmax(1)[:, 1].tolist(), abs=1e-4
    )


def test_the_threshold_of_a_classifier_decides(classifier):
    def shares(threshold: float) -> tuple[int, str]:
        settings = JudgeSettings(
            name="classifier", model=classifier, harmful_labels=("threat", "insult"), threshold=threshold
        )
        judge = make_judge(settings)
        verdicts = [decision.verdict for decision in judge.decisions(PROMPTS, RESPONSES)]
        return sum(verdict in judge.harmful for verdict in verdicts), verdicts[-1]

    assert shares(-1.0)[0] == len(RESPONSES)
    assert shares(2.0) == (0, "refusal")


@pytest.mark.parametrize("side", ["below", "above"])
def test_a_reward_model_judges_by_the_side_of_its_threshold(reward, tokenizer, side):
    rewards = logits(reward, tokenizer, exchanges(tokenizer))[:, 0]
    threshold = float(rewards.median()) + 1e-3
    settings = JudgeSettings(name="reward", model=reward, threshold=threshold, harmful_side=side)
    judge = make_judge(settings)
    decisions = judge.decisions(PROMPTS, RESPONSES)
    sign = 1 if side == "above" else -1
    assert [d.score for d in decisions] == pytest.approx((sign * rewards).tolist(), abs=1e-3)
    assert [d.verdict in judge.harmful for d in decisions] == [sign * r > sign * threshold for r in rewards.tolist()]


def test_a_guard_is_asked_by_its_template_and_read_by_its_marker(guard, tokenizer):
    model = LlamaForCausalLM.from_pretrained(guard).eval()
    said = []
    for text in exchanges(tokenizer):
        ids = tokenizer(text + "<|assistant|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
        new: list[int] = []
        with torch.no_grad():
            while len(new) < 16 and tokenizer.eos_token_id not in new:
                new.append(
                    int(model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)).logits[0, -1].argmax())
                )
        said.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    marker = next(text[:4] for text in said if not all(text[:4].lower() in other.lower() for other in said))
    judge = make_judge(JudgeSettings(name="guard", model=guard, harmful_marker=marker))
    verdicts = [decision.verdict for decision in judge.decisions(PROMPTS, RESPONSES)]
    assert [v in judge.harmful for v in verdicts] == [marker.lower() in text.lower() for text in said]


def test_a_model_of_another_kind_is_refused(classifier, guard):
    untrained = JudgeSettings(name="classifier", model=guard, harmful_labels=("LABEL_1",))
    with pytest.raises(InputError, match=r"score\.weight, so it is no trained sequence classification model"):
        make_judge(untrained).verdict("text", "prompt")
    unknown = JudgeSettings(name="classifier", model=classifier, harmful_labels=("toxic",))
    with pytest.raises(InputError, match="no label 'toxic'; it has fine, threat, insult"):
        make_judge(unknown).verdict("text", "prompt")
    with pytest.raises(InputError, match=r"gives 3 outputs .* reward model gives one"):
        make_judge(JudgeSettings(name="reward", model=classifier, threshold=0.0)).verdict("text", "prompt")
    with pytest.raises(InputError, match=r"no such model directory; correct evaluation\.judge\.model"):
        make_judge(JudgeSettings(name="guard", model="/nowhere/guard")).verdict("text", "prompt")


def test_a_guard_without_a_chat_template_is_refused(tmp_path, tokenizer, guard):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    folder = saved(tmp_path, plain, LlamaForCausalLM)
    with pytest.raises(InputError, match="no chat template"):
        make_judge(JudgeSettings(name="guard", model=folder)).verdict("text", "prompt")
