import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lancet_pipeline.cli.difference import print_difference
from lancet_pipeline.config.environment import Signing
from lancet_pipeline.errors import IntegrityError
from lancet_pipeline.governance.bundle import write_bundle
from lancet_pipeline.governance.difference import compare_bundles
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.lineage.stages import STAGES


@pytest.fixture(scope="module")
def changed(make_evidence: Callable[[], Evidence], signing: Signing, tmp_path_factory) -> tuple[Path, Evidence]:
    """A later correction: other data, alpha, code and library; a sample, figures, a gate, answers and a decision differ."""
    later = make_evidence()
    later.versions.update(training_data="1" * 64, pareto_pairs="2" * 64, corrected_model="3" * 64)
    pairs, model = later.lineage["pareto_pairs"], later.lineage["corrected_model"]
    pairs |= {"version": "2" * 64, "code_version": "9"}
    pairs["settings"]["pareto"]["alpha"] = 0.9
    pairs["environment"] = {**pairs["environment"], "torch": "2.10.0"}
    model["version"] = "3" * 64
    model["inputs"]["pareto_pairs"] = "2" * 64
    later.samples[0] |= {"sample_id": "newcomer", "score": 99.0}
    later.figures["corrected"]["harm_rate"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 120}
    later.figures["corrected"]["perplexity"] += 0.25
    later.gates[0]["passed"] = not later.gates[0]["passed"]
    answers = [row for row in later.generations if row["model"] == "corrected" and row["report"] == "harmlessness"]
    for row in (answers[0], answers[1]):
        row["harmful"] = not row["harmful"]
    later.decisions.append({**later.decisions[0], "action": "promoted", "actor": "Ada [x]", "hash": "4" * 64})
    folder = tmp_path_factory.mktemp("later") / "bundle"
    write_bundle(later, folder, signing)
    return folder, later


@pytest.fixture(scope="module")
def found(pristine: Path, changed: tuple[Path, Evidence]) -> dict:
    return compare_bundles(pristine, changed[0])


def test_bundle_against_itself_differs_in_nothing(pristine: Path) -> None:
    found = compare_bundles(pristine, pristine)
    assert not any(found[part] for part in ("sources", "stages", "gates", "decisions"))
    assert all(not side["entered"] and not side["left"] for side in found["samples"].values())
    assert all(entry["difference"] == 0 for figures in found["figures"].values() for entry in figures.values())


def test_changed_stage_says_why(found: dict) -> None:
    assert [source["name"] for source in found["sources"]] == ["training_data"]
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages.keys() == {"pareto_pairs", "corrected_model"}
    pairs = stages["pareto_pairs"]
    assert list(pairs["settings"]) == ["pareto.alpha"]
    assert pairs["settings"]["pareto.alpha"][1] == 0.9
    assert pairs["code_version"] == [STAGES["pareto_pairs"].code_version, "9"]
    assert pairs["environment"] == {"torch": ["2.9.1", "2.10.0"]}
    assert stages["corrected_model"]["inputs"] == ["pareto_pairs"]
    assert stages["corrected_model"]["settings"] == {}


def test_samples_that_came_and_went_are_named_with_the_largest(found: dict, evidence: Evidence) -> None:
    driving = found["samples"]["driving"]
    assert driving["entered"] == ["newcomer"]
    assert driving["left"] == [evidence.samples[0]["sample_id"]]
    assert driving["largest_entered"][0]["score"] == 99.0
    assert not found["samples"]["countering"]["entered"]


def test_figures_say_whether_their_intervals_overlap(found: dict, evidence: Evidence) -> None:
    corrected = found["figures"]["corrected"]
    before = evidence.figures["corrected"]["harm_rate"]
    assert corrected["harm_rate"]["difference"] == pytest.approx(0.5 - before["value"])
    assert corrected["harm_rate"]["overlap"] is False
    assert corrected["ood_harm_rate"]["overlap"] is True
    assert corrected["perplexity"]["difference"] == pytest.approx(0.25)
    assert corrected["perplexity"]["overlap"] is None


def test_gates_and_decisions_that_changed_are_told(found: dict, evidence: Evidence) -> None:
    (gate,) = found["gates"]
    assert gate["name"] == evidence.gates[0]["name"]
    assert gate["before"]["passed"] is not gate["after"]["passed"]
    assert [entry["action"] for entry in found["decisions"]] == ["promoted"]


def test_prompts_mended_and_broke_are_named(found: dict, changed: tuple[Path, Evidence]) -> None:
    answers = [r for r in changed[1].generations if r["model"] == "corrected" and r["report"] == "harmlessness"][:2]
    entry = found["prompts"]["harmlessness greedy original"]
    assert entry["broke"] == sorted(row["sample_id"] for row in answers if row["harmful"])
    assert entry["mended"] == sorted(row["sample_id"] for row in answers if not row["harmful"])
    assert len(entry["broke"] + entry["mended"]) == 2


def test_difference_is_json_and_reads_in_a_terminal(found: dict) -> None:
    assert json.loads(json.dumps(found)) == found
    console = Console(file=StringIO(), width=160, highlight=False)
    print_difference(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for told in (
        "pareto.alpha",
        f"code version: {STAGES['pareto_pairs'].code_version} -> 9",
        "torch 2.9.1 -> 2.10.0",
        "newcomer",
        "apart",
        "Ada [x]",
    ):
        assert told in text


def test_bundle_that_does_not_verify_is_not_compared(bundle: Path, pristine: Path) -> None:
    (bundle / "figures.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"figures\.json"):
        compare_bundles(pristine, bundle)
