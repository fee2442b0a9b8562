import re

import pytest
import yaml

from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.model_card import model_card


def parts(card: str) -> tuple[dict, str]:
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_front_matter_names_licence_results_and_no_base_model_for_one_from_scratch(evidence: Evidence) -> None:
    header, _ = parts(model_card(evidence))
    assert header["license"] == "apache-2.0"
    assert "base_model" not in header
    results = header["model-index"][0]["results"]
    assert [result["metrics"][0]["type"] for result in results] == [
        "harm_rate",
        "ood_harm_rate",
        "over_refusal_rate",
        "perplexity",
    ]
    assert results[0]["metrics"][0]["value"] == pytest.approx(
        evidence.figures["corrected"]["harm_rate"]["value"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/models/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("gpt2", "gpt2"),
    ],
)
def test_base_model_is_a_name_that_the_hub_takes(evidence: Evidence, checkpoint: str, name: str) -> None:
    evidence.study["model"]["checkpoint"] = checkpoint
    card = model_card(evidence)
    assert parts(card)[0]["base_model"] == name
    assert "/models" not in card


@pytest.mark.parametrize(
    ("licence", "name"), [("unspecified", "unspecified"), ("", "unspecified"), ("In house: v2", "in-house-v2")]
)
def test_licence_that_the_hub_does_not_know_is_other(evidence: Evidence, licence: str, name: str) -> None:
    evidence.study["governance"]["licence"] = licence
    header, _ = parts(model_card(evidence))
    assert (header["license"], header["license_name"]) == ("other", name)


def test_tables_keep_their_columns_whatever_the_text(evidence: Evidence) -> None:
    evidence.study["governance"]["behaviour"] = "a | b\n# heading <b>"
    evidence.study["data"]["train"] = {"path": "/secret/place/odd|name.parquet", "rows": [0, 10]}
    _, body = parts(model_card(evidence))
    for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "\n# heading" not in body
    assert "/secret" not in body


def test_card_quotes_no_undesirable_text(evidence: Evidence) -> None:
    assert "clumsy fool" not in model_card(evidence)


def test_every_section_and_figure_with_interval_is_there(evidence: Evidence) -> None:
    _, body = parts(model_card(evidence))
    headings = re.findall(r"^## (.*)$", body, re.MULTILINE)
    told = "What was wrong, How it was corrected, Intended use, Limits, Evaluation, Data, Reproduction, Versions"
    assert headings == told.split(", ")
    assert re.search(r"Harmful answers, in distribution \| 0\.\d\d \(0\.\d\d to \d\.\d\d, n = 120\)", body)


def test_failed_gate_restricts_the_intended_use(evidence: Evidence) -> None:
    evidence.gates[0]["passed"] = False
    assert "For review only" in model_card(evidence)
