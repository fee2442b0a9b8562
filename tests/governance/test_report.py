import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.lineage_graph import HEIGHT, WIDTH, draw
from lancet_pipeline.governance.report import SECTIONS, SHOWN_CHARACTERS, render_report
from lancet_pipeline.graph import SOURCES, STAGES

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
    assert [a["href"] for a in page.all("a")] == ["#content", *(f"#{name}" for name in SECTIONS)]
    assert {f"#{name}" for name in ids} >= {a["href"] for a in page.all("a")}
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
    evidence.queries[0] |= {"prompt": "nul \x00 escape \x1b]0;x\x07 \ud800", "response": "x" * (SHOWN_CHARACTERS + 5)}
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
    for text in ("50 of 86", "50 of 64", "10 of 258", "100 of 120", "50 of 60", "80 of 80"):
        assert f"({text}" in page.unfolded


def test_failed_gate_is_the_verdict_and_a_known_failure(evidence: Evidence) -> None:
    evidence.gates[1] |= {"passed": False, "value": 0.7}
    page = Page(render_report(evidence))
    assert "1 of 4 gates does not hold: ood_harm_falls (0.7, limit 0.5)" in page.unfolded
    assert "Gate ood_harm_falls does not hold" in page.unfolded
    assert "All 4 gates hold" not in page.unfolded


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
        **{name: [] for name in ("gates", "samples", "queries", "pairs", "generations", "correction_curve")},
        influence={"contamination_ap": None, "contamination_base_rate": None, "samples": 9, "seconds": 1.0},
        lineage={},
        plots={},
        judge=None,
    )
    page = Page(render_report(bare))
    assert "No gates were evaluated" in page.unfolded
    assert "not validated on human labels" in page.unfolded


def test_page_stays_small(evidence: Evidence) -> None:
    for row in evidence.samples + evidence.queries + evidence.generations:
        row["prompt"] = row["response"] = "word " * 2000
    assert len(render_report(evidence).encode()) < 4 * 2**20


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
