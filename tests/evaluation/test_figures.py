"""The registry of figures: one entry, and a figure is everywhere."""

import ast
import json
from pathlib import Path

import pytest
from governance.conftest import build_evidence

from lancet_pipeline.cli.terminal import print_summary
from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.evaluation.figures import FIGURES, Figure
from lancet_pipeline.governance.bom import bill_of_materials
from lancet_pipeline.governance.model_card import model_card
from lancet_pipeline.governance.report import render_report
from lancet_pipeline.lineage.results import model_figures
from lancet_pipeline.lineage.stages import SOURCES
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.registration import registry_metrics

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def politeness(monkeypatch) -> Figure:
    figure = Figure("ood_report", "ood_prompts", "politeness", "polite", "Words of thanks", "p", rate=False, main=True)
    monkeypatch.setitem(FIGURES, figure.name, figure)
    return figure


def test_a_new_figure_is_one_entry_and_shows_wherever_figures_do(politeness, capsys):
    evidence = build_evidence({})
    for values in evidence.figures.values():
        values["politeness"] = 0.4375
    assert f'<th scope="row">{politeness.title}</th><td class="number">0.4375</td>' in render_report(evidence)
    assert f"| {politeness.title} | 0.4375 | 0.4375 | 0.4375 |" in model_card(evidence)
    component = bill_of_materials(evidence)["metadata"]["component"]
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "politeness", "value": "0.4375", "slice": "corrected"} in metrics
    assert registry_metrics(evidence.figures, [])["politeness"] == (0.4375, "ood_prompts")
    models = dict(evidence.figures)
    summary = {"study": "s", "base": models.pop("base"), "corrected": models.pop("corrected"), "references": models}
    rest = {"judge": None, "gates": None, "influence": None, "selection": None, "seconds": {}, "paths": {}}
    print_summary(summary | rest, Deployment(Path("home"), (), ()))
    row = next(line for line in capsys.readouterr().out.splitlines() if f" {politeness.label} " in line)
    assert row.count("0.438") == 3


def test_a_new_figure_is_read_from_its_report_by_its_key(politeness, tmp_path):
    store = ArtifactStore(tmp_path)
    with store.write("s", "ood_report", "0" * 64, {"inputs": {}}) as folder:
        (folder / "figures.json").write_text(json.dumps({"base": {"harm_rate": 1, "p": 0.5, "verdicts": {}}}))
    found = model_figures(store, "s", {"ood_report": {"version": "0" * 64}})
    assert found == {"base": {"ood_harm_rate": 1, "politeness": 0.5}}


@pytest.mark.parametrize(
    ("names", "registry"),
    [(FIGURES, "evaluation/figures.py"), (SOURCES, "lineage/stages.py")],
    ids=["figures", "sources"],
)
def test_no_other_module_lists_what_a_registry_holds(names, registry):
    def listed(node: ast.AST) -> set[str]:
        texts = {
            part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        }
        return texts & names.keys()

    lists = {
        f"{path.relative_to(PROJECT)}:{node.lineno}"
        for folder in ("lancet_pipeline", "assets", "resources")
        for path in (PROJECT / folder).rglob("*.py")
        if not path.as_posix().endswith((registry, "evaluation/gates.py"))  # a gate names its figure
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and len(listed(node)) > 3
    }
    assert lists == set()
