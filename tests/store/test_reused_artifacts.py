"""Artifacts that were built on the bytes of others, and not only on their versions."""

from pathlib import Path

import pytest

from lancet_pipeline.assets.display import save_plots
from lancet_pipeline.files import take_over
from lancet_pipeline.store.artifacts import ArtifactStore

VERSION = "a" * 64


def write(store: ArtifactStore, asset: str, text: str, **record: object) -> None:
    with store.write("s", asset, VERSION, {"inputs": {}, **record}) as folder:
        (folder / "content.txt").write_text(text)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path)
    write(store, "base_model", "first weights")
    built_on = {"base_model": store.digest("s", "base_model", VERSION)}
    write(store, "linfac_factors", "factors", inputs={"base_model": VERSION}, built_on=built_on)
    return store


def test_what_was_built_on_other_bytes_of_the_same_version_is_out_of_date(store: ArtifactStore):
    assert store.has("s", "linfac_factors", VERSION)
    write(store, "base_model", "other weights")
    assert store.has("s", "base_model", VERSION)
    assert not store.has("s", "linfac_factors", VERSION)


def test_what_was_built_on_something_that_is_gone_is_out_of_date(store: ArtifactStore):
    (store.folder("s", "base_model", VERSION) / "manifest.json").unlink()
    assert not store.has("s", "linfac_factors", VERSION)


def test_a_new_plot_leaves_the_artifact_that_was_taken_over_as_it_was(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    with store.write("s", "linfac_factors", VERSION, {"inputs": {}}) as folder:
        save_plots({"spectrum": b"old"}, folder)
    with store.write("s", "linfac_factors", "b" * 64, {"inputs": {}}) as folder:
        take_over(store.folder("s", "linfac_factors", VERSION), folder)
        save_plots({"spectrum": b"new"}, folder)
    for version, content in ((VERSION, b"old"), ("b" * 64, b"new")):
        assert (
            ArtifactStore(tmp_path).read("s", "linfac_factors", version) / "plots/spectrum.png"
        ).read_bytes() == content
