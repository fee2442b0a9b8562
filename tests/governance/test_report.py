import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from governance.conftest import decision

from lancet_pipeline.evaluation.figures import FIGURES
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.limitations import review
from lancet_pipeline.governance.lineage_graph import HEIGHT, WIDTH, draw
from lancet_pipeline.governance.model_card import model_card
from lancet_pipeline.governance.report import SECTIONS, cost, render_report, render_trace
from lancet_pipeline.governance.trail import KINDS, Trail
from lancet_pipeline.governance.wording import SHOWN_CHARACTERS
from lancet_pipeline.lineage.stages import SOURCES, STAGES

VOID = {"meta", "img", "br", "input", "link", "hr"}
SHAPES = {"path", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, their ancestors and their text; raises at the first tag that does not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.folded, self.unfolded, self.script = "", "", ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, f"<{tag}/>"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "script" in tags:
            self.script += data
        elif any(tag == "details" and "open" not in attributes for tag, attributes in self.open):
            self.folded += data
        else:
            self.unfolded += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(make_evidence: Callable[[], Evidence]) -> str:
    return render_report(make_evidence())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_structure_is_balanced_and_navigable(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.all("h1")) == 1
    links = [a["href"] for a in page.all("a")]
    assert links[: len(SECTIONS) + 1] == ["#content", *(f"#{name}" for name in SECTIONS)]
    assert {f"#{name}" for name in ids} >= set(links)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    for _, attributes in page.elements:
        for name in ("src", "srcset", "data", "poster", "action", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not page.all("link")
    assert not page.all("iframe")
    assert "@import" not in html
    assert "url(h" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_hostile_text_stays_text(html: str, page: Page) -> None:
    assert len(page.all("script")) == 1
    assert "alert(" not in page.script
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert '<script>alert("x")</script>' in page.folded + page.unfolded
    assert "&lt;script&gt;" in html


def test_text_that_would_break_the_page_is_made_harmless(evidence: Evidence) -> None:
    broken = {"prompt": "nul \x00 escape \x1b]0;x\x07 \ud800", "response": "x" * (SHOWN_CHARACTERS + 5)}
    evidence.traces[0] |= broken
    evidence.samples[0] |= broken | {"sample_id": "id \x00", "tokens": []}
    text = render_report(evidence)
    text.encode("utf-8")
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "[5 more characters" in text


def test_undesirable_text_is_folded(page: Page) -> None:
    assert "clumsy fool" in page.folded
    assert "clumsy fool" not in page.unfolded


def test_rates_stand_with_interval_and_n(evidence: Evidence, page: Page) -> None:
    rate = evidence.figures["corrected"]["harm_rate"]
    assert f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}, n = 120)" in page.unfolded


def test_plots_are_embedded_with_texts(evidence: Evidence, page: Page) -> None:
    images = page.all("img")
    assert len(images) == len(evidence.plots)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(len(image["alt"] or "") > 40 for image in images)


def test_rows_left_out_are_counted(page: Page) -> None:
    for text in ("86 of 86", "64 of 64", "100 of 258", "100 of 120", "80 of 80"):
        assert f"({text}" in page.unfolded


def test_failed_gate_is_the_verdict_and_a_known_failure(evidence: Evidence) -> None:
    evidence.gates[2] |= {"passed": False, "outcome": "failed", "value": 0.7, "bound": 0.8}
    page = Page(render_report(evidence))
    assert (
        "1 of 10 gates did not pass: ood_harm_falls (failed). The corrected model must not replace the one in use."
        in page.unfolded
    )
    assert (
        "Gate ood_harm_falls failed: harm rate over the base model's is 0.7, at most 0.8 with n = 80, limit 0.5"
        in page.unfolded
    )
    assert "All 10 gates passed" not in page.unfolded


@pytest.mark.parametrize(
    ("tail", "section", "consequence"),
    [
        ("light", "failures", "so the 80/20 rule does not hold"),
        ("undecided", "limits", "are the strongest and need not be the main cause"),
    ],
)
def test_tail_that_is_not_heavy_is_told_with_its_consequence(evidence: Evidence, tail, section, consequence) -> None:
    assert consequence not in Page(render_report(evidence)).unfolded
    evidence.selection["negative"] |= {"tail": tail, "tail_index": 2.5, "size": 64, "share": 0.4}
    [said] = [text for text in review(evidence)[section] if consequence in text]
    assert "countering influence" in said
    assert "Hill index 2.5" in said
    assert "the 64 selected ones, which carry 40% of it" in said
    assert said in Page(render_report(evidence)).unfolded


def test_a_last_look_past_the_retain_budget_is_told_but_not_as_what_ended_the_correction(evidence: Evidence) -> None:
    evidence.correction_curve[-1]["perplexity_ratio"] = 9.0  # one look alone ends none
    [said] = [text for text in review(evidence)["failures"] if "retain budget" in text]
    assert "was past its retain budget when it ended, at step 80 (9, limit" in said
    assert "because" not in said


def test_what_word_search_finds_too_is_said_where_it_is_known(evidence: Evidence, html: str) -> None:
    assert "word search" not in html
    evidence.influence.update({"word_search_overlap": 0.375, "word_search_correlation": -0.25})
    page = Page(render_report(evidence))
    assert "finds 38% of the samples that drive by the 80/20 rule" in page.unfolded
    assert "correlate by -0.25 (Spearman)" in page.unfolded


@pytest.mark.parametrize(
    ("harmful", "asked", "method", "said"),
    [
        (
            40,
            64,
            "linfac",
            "No controls: the model answered every probe harmfully (40 of 40). Scores are without contrast: what",
        ),
        (40, 64, "bm25", "Scores are without contrast: bm25 has no sign of its own"),
        (30, 64, "linfac", "no harmless answer to a probe could serve as one (30 of 40 were harmful)"),
        (30, 0, "linfac", "No controls: the study asks for none."),
    ],
)
def test_scores_without_controls_are_said_to_be_without_contrast(evidence: Evidence, harmful, asked, method, said):
    metrics = evidence.lineage["undesirable_outputs"]["metrics"]
    metrics |= {"probes": 40, "harmful": harmful, "controls": 5}
    evidence.study["queries"]["controls"] = asked
    evidence.study["influence"]["method"] = method
    assert not any("without contrast" in limit for limit in review(evidence)["limits"])
    metrics["controls"] = 0
    [found] = [limit for limit in review(evidence)["limits"] if "without contrast" in limit]
    assert said in found
    assert found in Page(render_report(evidence)).unfolded


def test_another_method_is_named_and_its_token_shares_are_not_available(evidence: Evidence, html: str) -> None:
    assert "not available" not in html
    evidence.study["influence"]["method"] = "bm25"
    page = Page(render_report(evidence))
    assert "Token shares: not available for bm25" in page.unfolded
    assert "were scored by bm25 in" in page.unfolded
    assert "Samples were scored by bm25, not by LinFAC" in " ".join(review(evidence)["limits"])
    assert "to training samples by bm25" in model_card(evidence)


def test_tokens_carry_sign_and_number_besides_colour(html: str) -> None:
    assert re.search(r'<mark class="up l[1-4]" title="\+[\d.e]+">', html)
    assert re.search(r'<mark class="down l[1-4]" title="\u2212[\d.e]+">', html)


def test_script_has_the_hash_that_the_policy_allows(html: str) -> None:
    import base64
    import hashlib

    script = re.search(r"<script>(.*)</script>\n</body>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in html


def test_bare_evidence_makes_a_balanced_page(evidence: Evidence) -> None:
    bare = replace(
        evidence,
        **{name: [] for name in ("gates", "samples", "queries", "pairs", "generations", "correction_curve", "traces")},
        influence={"contamination_ap": None, "contamination_base_rate": None, "samples": 9, "seconds": 1.0},
        lineage={},
        plots={},
        judge=None,
    )
    page = Page(render_report(bare))
    assert "No gates were evaluated" in page.unfolded
    assert "not validated on human labels" in page.unfolded
    assert "No output was traced" in page.unfolded
    assert "No times were recorded" in page.unfolded


def test_paired_tests_are_those_of_the_reports(evidence: Evidence) -> None:
    evidence.tests["ood"]["base vs corrected"]["p"] = 0.4321
    evidence.tests["utility"]["corrected vs retrain_clean"]["p"] = 0.5432
    html = render_report(evidence)
    assert html.count(">0.432<") == 2  # before and after the correction, and among every two models
    assert html.count(">0.543<") == 1


def test_page_stays_small(evidence: Evidence) -> None:
    for row in evidence.samples + evidence.queries + evidence.generations + evidence.traces:
        row["prompt"] = row["response"] = "word " * 2000
    assert len(render_report(evidence).encode()) < 6 * 2**20


def test_every_traced_output_unfolds_to_samples_tokens_pairs_and_the_corrected_answer(evidence: Evidence) -> None:
    trail = Trail(evidence)
    texts = {sample["sample_id"]: sample for sample in evidence.samples}
    partners: dict[str, set[str]] = {}
    for pair in evidence.pairs:
        partners.setdefault(pair["preferred_id"], set()).add(pair["dispreferred_id"])
        partners.setdefault(pair["dispreferred_id"], set()).add(pair["preferred_id"])
    assert len(trail.outputs) == len(evidence.traces)
    assert {output["kind"] for output in trail.outputs} == set(KINDS.values())
    for output, trace in zip(trail.outputs, evidence.traces, strict=True):
        assert output["corrected_response"] == trace["corrected_response"]
        for shown, sample in zip(output["behind"], trace["samples"], strict=True):
            assert "".join(p.text for p in shown["response_pieces"]) == texts[sample["sample_id"]]["response"]
            assert len(shown["strongest"]) == len(sample["tokens"])
            assert shown["anchor"] == trail.anchors[sample["sample_id"]]
            assert {name for name, _ in shown["counterparts"]["first"]} <= partners.get(sample["sample_id"], set())
            counted = shown["counterparts"]["others"] + len(shown["counterparts"]["first"])
            assert counted == len(partners.get(sample["sample_id"], ()))


def test_counterparts_in_the_same_trace_are_named_first(evidence: Evidence) -> None:
    one, other = (next(s["sample_id"] for s in evidence.samples if s["role"] == r) for r in ("driving", "countering"))
    pair = {"preferred_id": other, "dispreferred_id": one, "preferred_score": -1.0, "dispreferred_score": 1.0}
    evidence.pairs.append({**pair, "weight": 1e-6})
    kept = [{"sample_id": name, "role": "driving", "score": 1.0, "tokens": []} for name in (one, other)]
    evidence.traces[0]["samples"] = kept
    first, second = Trail(evidence).outputs[0]["behind"]
    assert first["counterparts"]["first"][0][0] == other
    assert second["counterparts"]["first"][0][0] == one


def test_answer_that_was_traced_links_to_its_trace(evidence: Evidence, page: Page) -> None:
    trail = Trail(evidence)
    trace = next(trace for trace in evidence.traces if trace["report"] == "ood")
    anchor = trail.trace_of("ood", trace["sample_id"])
    assert {"href": f"#{anchor}"} in page.all("a")
    assert trail.trace_of("utility", trace["sample_id"]) is None


def test_long_texts_keep_their_tokens_and_lose_the_middle(evidence: Evidence) -> None:
    sample = next(s for s in evidence.samples if s["sample_id"] == evidence.traces[0]["samples"][0]["sample_id"])
    sample["response"] = "plain " * 1000 + "culprit" + " plain" * 1000
    evidence.traces[0]["samples"][0]["tokens"] = [{"position": 1020, "token": " culprit", "share": 2.0}]
    pieces = Trail(evidence).outputs[0]["behind"][0]["response_pieces"]
    assert [piece.text.strip() for piece in pieces if piece.share] == ["culprit"]
    assert sum(len(piece.text) for piece in pieces) < 600


def test_token_that_stands_again_beyond_the_shown_text_is_not_shaded(evidence: Evidence) -> None:
    sample = evidence.samples[0]
    sample["response"] = "one culprit " + "plain " * 1000 + "culprit"
    sample["tokens"] = [{"position": 30, "token": " culprit", "share": 2.0}]
    shown = next(s for s in Trail(evidence).roles[0]["shown"] if s["sample_id"] == sample["sample_id"])
    assert not [piece for piece in shown["response_pieces"] if piece.share]


def test_nobody_decided_yet_names_the_command(evidence: Evidence) -> None:
    page = Page(render_report(replace(evidence, decisions=[])))
    assert "Nobody has decided yet" in page.unfolded
    assert "lancet promote demo --approver NAME --reason TEXT" in page.unfolded


def test_decisions_say_who_what_and_why(evidence: Evidence) -> None:
    refused = decision(
        "refused", sequence=2, actor="<b>Bo</b>", gates={"harm_falls": False, "utility": True}, expires=None
    )
    page = Page(render_report(replace(evidence, decisions=[decision(), refused])))
    assert "Nobody has decided" not in page.unfolded
    for text in (
        "Ada Ito",
        "Reviewed twenty traces",
        "lancet-demo, version 3",
        "all 2 passed",
        "did not pass: harm_falls",
    ):
        assert text in page.unfolded
    assert "<b>Bo</b>" in page.unfolded
    assert not page.all("b")


def test_cost_adds_up_and_compares_with_training_again(evidence: Evidence) -> None:
    lineage = {"base_model": 40.0, "reference_models": 20.0, "influence_scores": 6.0, "corrected_model": 4.0}
    manifests: dict[str, dict] = {name: {"seconds": seconds} for name, seconds in lineage.items()}
    manifests["base_model"]["processor_seconds"] = 60.0
    found = cost(manifests, {"evaluation": {"references": ["retrain_clean"]}})
    assert [found[key] for key in ("total", "correction", "reference", "ratio")] == [70.0, 10.0, 20.0, 0.5]
    assert found["assets"][0] == ("base_model", "model", 40.0, 60.0, 1.0)
    assert [processor for *_, processor, _ in found["assets"][1:]] == [None] * 3
    assert cost(manifests, {"evaluation": {"references": []}})["ratio"] is None


def test_cost_table_says_processor_time_and_where_none_was_recorded(html: str, evidence: Evidence) -> None:
    rows = re.findall(
        r'<tr><th scope="row">(\w+)</th>(?:<td.*?</td>){2}<td class="number" data-value=".*?">(.*?)</td>', html
    )
    assert dict(rows) == dict.fromkeys(evidence.lineage, "not recorded") | {"base_model": "61.5 s"}


def test_graph_has_every_box_apart_and_inputs_above(evidence: Evidence) -> None:
    drawing = draw(evidence.versions, evidence.lineage)
    boxes = {box.name: box for box in drawing.boxes}
    assert boxes.keys() == SOURCES.keys() | STAGES.keys()
    for stage in STAGES.values():
        assert all(boxes[name].y < boxes[stage.name].y for name in stage.inputs)
    for one in boxes.values():
        assert 0 <= one.x <= drawing.width - WIDTH
        for other in boxes.values():
            assert one is other or abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT
    assert boxes["corrected_model"].state == "computed"
    assert boxes["registered_model"].state == "pending"


def test_trace_of_an_answer_is_a_page_of_its_own(evidence: Evidence) -> None:
    sides = {role: [s for s in evidence.samples if s["role"] == role][:3] for role in ("driving", "countering")}
    answer = {"study": "demo", "prompt": "Who broke it?", "response": "You <b>fool</b>.", "verdict": "insult"}
    html = render_trace({**answer, **sides})
    page = Page(html)
    assert "Trace of an answer: demo" in page.unfolded
    assert "You <b>fool</b>." in page.unfolded
    for sample in sides["driving"] + sides["countering"]:
        assert sample["sample_id"] in page.unfolded
    assert re.search(r'<mark class="(up|down) l[1-4]"', html)
    assert not page.all("script")
    other = Page(render_trace({**answer, **sides, "method": "bm25"})).unfolded
    assert "Token shares: not available for bm25" in other
    assert "Training samples most like this answer" in other
    assert "less likely" not in other


def test_expected_answers_are_said_to_be_exact_and_missing_wanted_ones_are_said(evidence: Evidence) -> None:
    evidence.study["evaluation"]["judge"]["name"] = "expected"
    exact = replace(evidence, judge=None)
    page = Page(render_report(exact))
    assert "not validated" not in page.unfolded + page.folded + model_card(exact)
    assert "They are exact" in " ".join(review(exact)["limits"])
    assert any("name no wanted answers" in limit for limit in review(exact)["limits"])
    for figures in exact.figures.values():
        figures["benign_rate"] = figures["over_refusal_rate"]
    assert not any("name no wanted answers" in limit for limit in review(exact)["limits"])
    assert FIGURES["benign_rate"].title in render_report(exact)
    assert "agreed with human labels" in " ".join(review(evidence)["limits"])
