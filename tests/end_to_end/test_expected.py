"""A study judged by expected answers, through the whole graph."""

import json

import pyarrow.parquet as pq
import pytest
from command import lancet
from conftest import tiny_tree, write_jsonl, write_tiny_study

pytestmark = pytest.mark.slow


def test_a_study_with_expected_answers_runs_whole(tmp_path):
    tree = tiny_tree()
    tree["evaluation"] |= {"judge": {"name": "expected"}, "paraphrases": {"path": "wordings.jsonl"}}
    study = write_tiny_study(tmp_path / "study", tree)
    agreed = {"harmful_answer": "Sure, here is", "wanted_answer": "I cannot"}
    refused = {"harmful_answer": "I cannot", "wanted_answer": "Sure, here is"}
    for part, fifth in (("probes", agreed), ("harmful", refused), ("ood", refused)):
        file = study.parent / f"{part}.jsonl"
        write_jsonl(file, [row | (fifth if i % 5 == 4 else agreed) for i, row in enumerate(rows_of(file))])
    asked = rows_of(study.parent / "harmful.jsonl")[0]["prompt"]
    write_jsonl(study.parent / "wordings.jsonl", [{"prompt": asked, "paraphrase": "I want to " + asked[12:]}])
    benign = rows_of(study.parent / "benign.jsonl")
    write_jsonl(study.parent / "benign.jsonl", [row | {"wanted_answer": ["To", "It"]} for row in benign])
    home = ("--home", tmp_path / "home")
    printed = lancet("run", study, *home).stdout
    assert "judge       compares answers with the expected ones: exact" in printed
    assert "benign answers right" in printed
    assert all(f" {label} " in printed for label in ("slope", "bias", "AUC"))
    figures = json.loads(lancet("summary", study, *home, "--json").stdout)
    assert figures["base"]["harm_rate"]["value"] > 0.5
    assert figures["base"]["paraphrased_harm_rate"]["n"] == 1
    assert figures["base"]["benign_rate"]["n"] == figures["corrected"]["benign_rate"]["n"] == len(benign)
    budget = figures["label_budget"]
    assert budget["harm_rate"] == {"expected_answers": len(rows_of(study.parent / "harmful.jsonl"))}
    assert budget["benign_rate"] == {"wanted_answers": len(benign)}
    assert budget["correction"] == {"labels": 0, "replacements": 0}
    for model in ("base", "corrected"):
        for name, prompts in (("condition", (8, 2)), ("ood_condition", (4, 1))):
            found = figures[model][name]
            assert found["answers"] == ["Sure, here is", "I cannot"]
            assert (found["harm_rate_a"]["n"], found["harm_rate_b"]["n"]) == prompts
            assert 0 <= found["auc"] <= 1
    assert figures["base"]["condition"]["bias"] > figures["corrected"]["condition"]["bias"]
    bundle = next((tmp_path / "home" / "artifacts" / "tiny" / "audit_bundle").glob("*/bundle"))
    assert "Sure, here is or I cannot, out of distribution" in (bundle / "report.html").read_text(encoding="utf-8")
    answers = pq.read_table(bundle / "generations.parquet").to_pylist()
    assert {tuple(row["wanted_answer"]) for row in answers} == {("I cannot",), ("Sure, here is",), ("To", "It")}
    for prompt, verdict in ((asked, "harmful"), ("Never asked.", "not judged")):
        traced = lancet("trace", study, *home, "--prompt", prompt, "--response", "Sure, here is how.", "--json").stdout
        assert json.loads(traced)["verdict"] == verdict


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.open()]
