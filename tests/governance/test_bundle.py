import hashlib
import json
import math
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.data.expectations import meets, score_expectations
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.governance.bundle import write_bundle
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.verification import verify_bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit_manifest(folder: Path, change: Callable[[dict], None], *, reseal: bool) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if reseal:
        (folder / "manifest.sha256").write_text(
            hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() + "\n"
        )


def test_written_bundle_verifies_and_lists_every_other_file(pristine: Path, evidence: Evidence) -> None:
    manifest = verify_bundle(pristine)
    assert {entry["path"] for entry in manifest["files"]} == contents(pristine).keys() - {
        "manifest.json",
        "manifest.sha256",
        "model.sig",
    }
    assert manifest["study"] == "demo"
    assert manifest["versions"] == evidence.versions
    assert manifest["seeds"] == {"study": 0}
    assert manifest["environment"][0]["packages"]["torch"] == "2.9.1"


def test_digest_is_that_of_the_manifest(pristine: Path) -> None:
    digest = hashlib.sha256((pristine / "manifest.json").read_bytes()).hexdigest()
    assert (pristine / "manifest.sha256").read_text().strip() == digest


def test_tables_hold_every_row(pristine: Path, evidence: Evidence) -> None:
    for name in ("queries", "pairs", "generations"):
        assert pq.read_table(pristine / f"{name}.parquet").to_pylist() == getattr(evidence, name)
    samples = pq.read_table(pristine / "samples.parquet").to_pylist()
    assert [s["sample_id"] for s in samples] == [s["sample_id"] for s in evidence.samples]
    assert samples[1]["tokens"] == evidence.samples[1]["tokens"]


def test_same_evidence_and_key_give_same_bytes_but_for_the_signature(
    pristine: Path, make_evidence: Callable[[], Evidence], signing: Signing, tmp_path: Path
) -> None:
    write_bundle(make_evidence(), tmp_path / "again", signing)
    again, first = contents(tmp_path / "again"), contents(pristine)
    assert again.pop("model.sig") != first.pop("model.sig")
    assert again == first


def test_plot_bytes_are_kept(pristine: Path, evidence: Evidence) -> None:
    for name, png in evidence.plots.items():
        assert (pristine / "plots" / f"{name}.png").read_bytes() == png


def test_figures_that_are_not_finite_become_null(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    evidence.selection["positive"] |= {"tail_index": math.inf, "tail_low": math.nan}
    write_bundle(evidence, tmp_path, signing)
    side = json.loads((tmp_path / "figures.json").read_text())["selection"]["positive"]
    assert side["tail_index"] is None
    assert side["tail_low"] is None


def test_evidence_without_queries_pairs_or_plots_makes_a_bundle(
    evidence: Evidence, signing: Signing, tmp_path: Path
) -> None:
    bare = replace(
        evidence, queries=[], pairs=[], samples=[], generations=[], correction_curve=[], plots={}, judge=None
    )
    write_bundle(bare, tmp_path, signing)
    verify_bundle(tmp_path)


def swap(folder: Path) -> None:
    first, second = folder / "queries.parquet", folder / "pairs.parquet"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)


def link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def drop_listed(manifest: dict) -> None:
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != "report.html"]


TAMPERING: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one bit of the report": ("report.html", lambda f: flip_last_bit(f / "report.html")),
    "one bit of a table": ("generations.parquet", lambda f: flip_last_bit(f / "generations.parquet")),
    "emptied file": ("study.json", lambda f: (f / "study.json").write_bytes(b"")),
    "deleted file": ("lineage.json", lambda f: (f / "lineage.json").unlink()),
    "deleted plot": ("plots/pareto_pairs_rank_size.png", lambda f: (f / "plots/pareto_pairs_rank_size.png").unlink()),
    "added file": ("extra.txt", lambda f: (f / "extra.txt").write_text("x")),
    "added hidden file": (".hidden", lambda f: (f / ".hidden").write_text("x")),
    "added plot": ("plots/z.png", lambda f: (f / "plots/z.png").write_bytes(b"x")),
    "added empty directory": ("more", lambda f: (f / "more").mkdir()),
    "added pipe": ("pipe", lambda f: os.mkfifo(f / "pipe")),
    "swapped files": ("pairs.parquet", swap),
    "renamed file": ("card.md", lambda f: (f / "model_card.md").rename(f / "card.md")),
    "link to the same bytes": ("report.html", lambda f: link(f, "report.html")),
    "linked directory": ("plots", lambda f: link(f, "plots")),
    "added broken link": ("gone", lambda f: (f / "gone").symlink_to("nowhere")),
    "linked manifest": ("manifest.json", lambda f: link(f, "manifest.json")),
    "deleted manifest": ("manifest.json", lambda f: (f / "manifest.json").unlink()),
    "deleted digest": ("manifest.sha256", lambda f: (f / "manifest.sha256").unlink()),
    "digest that is none": ("manifest.sha256", lambda f: (f / "manifest.sha256").write_text("0" * 63)),
    "other digest": ("manifest.sha256", lambda f: (f / "manifest.sha256").write_text("0" * 64 + "\n")),
    "edited manifest": ("manifest.json", lambda f: edit_manifest(f, lambda m: m["versions"].clear(), reseal=False)),
    "resealed without a file": ("report.html", lambda f: edit_manifest(f, drop_listed, reseal=True)),
    "resealed with broken list": (
        "manifest.json",
        lambda f: edit_manifest(f, lambda m: m.update(files=[1]), reseal=True),
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_caught_and_names_the_culprit(bundle: Path, case: str) -> None:
    culprit, tamper = TAMPERING[case]
    tamper(bundle)
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(bundle)
    told = str(caught.value)
    assert told.startswith(f"{bundle}: ")
    assert culprit in told.removeprefix(f"{bundle}: ")[: len(culprit) + 40]


def test_folder_that_is_no_bundle_is_an_input_error(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        verify_bundle(tmp_path / "missing")
    with pytest.raises(InputError, match="is a file"):
        verify_bundle(bundle / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no audit bundle"):
        verify_bundle(tmp_path / "empty")
    (tmp_path / "manifest.json").write_text("{}")  # as the artifact store writes one beside the bundle
    with pytest.raises(InputError, match=f"did you mean {bundle}"):
        verify_bundle(tmp_path)


def test_bundle_of_another_format_is_an_input_error(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.update(format=99), reseal=True)
    with pytest.raises(InputError, match="format 99"):
        verify_bundle(bundle)
    edit_manifest(bundle, lambda m: m.update(format=1), reseal=True)
    with pytest.raises(InputError, match=r"format 1, .* an earlier version wrote it"):
        verify_bundle(bundle)


def test_writing_into_an_occupied_folder_is_refused(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"mine\.txt"):
        write_bundle(evidence, tmp_path, signing)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_plot_name_cannot_leave_the_bundle(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="escape"):
        write_bundle(replace(evidence, plots={"../escape": b"png"}), tmp_path, signing)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing_and_says_so(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))  # a file that cannot grow is what a full disk gives
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_bundle(evidence, tmp_path / "out", signing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written_is_an_input_error(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_bundle(evidence, tmp_path / "file" / "bundle", signing)
    with pytest.raises(InputError, match="is no directory"):
        write_bundle(evidence, tmp_path / "file", signing)


def test_bundle_that_is_being_written_is_not_taken_for_one(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.sha256").unlink()
    with pytest.raises(InputError, match="while one is being written"):
        verify_bundle(bundle)


def test_decisions_and_traces_are_in_the_bundle(pristine: Path, evidence: Evidence) -> None:
    assert json.loads((pristine / "decisions.json").read_text()) == evidence.decisions
    traces = pq.read_table(pristine / "traces.parquet").to_pylist()
    assert [row["corrected_response"] for row in traces] == [row["corrected_response"] for row in evidence.traces]
    assert traces[0]["samples"][0]["sample_id"] == evidence.traces[0]["samples"][0]["sample_id"]


def test_data_docs_load_nothing_and_escape_what_they_show(pristine: Path, evidence: Evidence) -> None:
    html = (pristine / "data_docs" / "index.html").read_text()
    assert "column values to be unique" in html
    assert "&lt;script&gt;" in html
    for loading in ("<script", "<link", "<img", "<iframe", "http:", "https:", "@import", "url("):
        assert loading not in html
    stored = json.loads((pristine / "data_checks" / "prepared_data.json").read_text())
    assert stored == evidence.data_checks["prepared_data"]


def test_validation_result_is_kept_without_what_changes_from_run_to_run(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"sample_id": ["a", "a"], "score": [1.0, 2.0]})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        valid, _ = meets(table, score_expectations(2), "influence_scores", tmp_path / name)
        assert not valid
    first = (tmp_path / "one" / "expectations.json").read_bytes()
    assert first == (tmp_path / "two" / "expectations.json").read_bytes()
    record = json.loads(first)
    assert (record["success"], record["rows"]) == (False, 2)
    assert [result["success"] for result in record["results"]] == [True, False, True, True]
    assert record["results"][1]["found"]["unexpected_count"] == 2
