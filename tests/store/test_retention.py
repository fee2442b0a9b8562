import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import held_elsewhere, lancet
from registered import copy_home, empty_registry, register

from lancet_pipeline.errors import InputError
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.retention import DAY, find_unreferenced, journal_bytes, remove
from lancet_pipeline.tracking.client import Tracking


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> Path:
    """Two versions of one model; the pointers are on the second."""
    home = empty_registry(tmp_path_factory.mktemp("registered"))
    register(home, "first")
    register(home, "second")
    return home


@pytest.fixture
def home(registered, tmp_path) -> Path:
    return copy_home(registered, tmp_path / "home")


def unregistered(study: str) -> list[dict[str, str]]:
    return []


def registry(home: Path):
    return lambda study: [version.artifacts for version in Tracking(home=str(home)).registered(study)]


def artifact(home: Path, asset: str, version: str, inputs: dict[str, str] | None = None, study: str = "s") -> Path:
    with ArtifactStore(home).write(study, asset, version, {"inputs": inputs or {}}) as folder:
        (folder / "data.bin").write_bytes(b"0" * 1000)
    return ArtifactStore(home).folder(study, asset, version)


def listed(home: Path, tags=unregistered, now: float | None = None) -> set[Path]:
    return {item.path for item in find_unreferenced(home, tags, now).items}


def test_what_current_versions_were_computed_from_stays_and_the_rest_is_listed_with_its_size(tmp_path):
    old = artifact(tmp_path, "base_model", "a" * 64)
    artifact(tmp_path, "corrected_model", "c" * 64, {"base_model": "b" * 64})
    artifact(tmp_path, "base_model", "b" * 64)
    other = artifact(tmp_path, "base_model", "a" * 64, study="other=1")
    found = find_unreferenced(tmp_path, unregistered)
    assert [(item.study, item.kind, item.path) for item in found.items] == [("s", "base_model", old)]
    assert found.items[0].bytes == sum(file.stat().st_size for file in old.iterdir())
    assert remove(tmp_path, found.items, unregistered) == 1
    assert not old.exists()
    assert other.exists()
    assert listed(tmp_path) == set()


def test_an_older_version_that_a_current_one_was_computed_from_stays(tmp_path):
    base = artifact(tmp_path, "base_model", "a" * 64)
    artifact(tmp_path, "corrected_model", "c" * 64, {"base_model": "a" * 64})
    artifact(tmp_path, "base_model", "b" * 64)  # current, but the corrected model in use comes from the older one
    assert listed(tmp_path) == set()
    assert base.exists()


def test_a_registered_version_keeps_its_artifacts_alive(home):
    store = ArtifactStore(home)
    bundles = sorted(path for path in (home / "artifacts" / "demo" / "audit_bundle").iterdir() if path.is_dir())
    old = next(path for path in bundles if path.name != (store.current("demo", "audit_bundle") or "")[:16])
    assert listed(home, registry(home)) == set()
    for file in sorted(old.rglob("*"), reverse=True):  # even where its bundle was removed by hand
        file.unlink() if file.is_file() else file.rmdir()
    old.rmdir()
    assert listed(home, registry(home)) == set()
    Tracking(home=str(home)).client().delete_model_version("lancet-demo", "1")
    left = {path.parent.name for path in listed(home, registry(home))}
    assert left == {"corrected_model", "pareto_pairs", "harmlessness_report", "ood_report", "utility_report"}


def test_a_bundle_keeps_what_it_rests_on_without_a_registry(home):
    assert listed(home) == set()


def test_a_lost_registry_stops_it_all(home):
    tags = registry(home)
    dead = Tracking(home=str(home), uri="http://127.0.0.1:9")
    artifact(home, "pareto_pairs", "9" * 64, study="demo")
    artifact(home, "pareto_pairs", "8" * 64, study="demo")
    found = find_unreferenced(home, tags)
    assert {item.path.name for item in found.items} == {"9" * 16}
    with pytest.raises(InputError, match="MLflow at"):
        remove(home, found.items, lambda study: [version.artifacts for version in dead.registered(study)])
    assert found.items[0].path.exists()


def test_what_got_a_reference_since_it_was_listed_stays(tmp_path):
    old = artifact(tmp_path, "base_model", "a" * 64)
    artifact(tmp_path, "base_model", "b" * 64)
    items = find_unreferenced(tmp_path, unregistered).items
    ArtifactStore(tmp_path).confirm("s", "base_model", "a" * 64)
    assert remove(tmp_path, items, unregistered) == 0
    assert old.exists()


def test_half_written_folders_count_after_a_day(tmp_path):
    artifact(tmp_path, "base_model", "a" * 64)
    staging = tmp_path / "artifacts" / "s" / "base_model" / ".bbbbbbbbbbbbbbbb-x1y2"
    staging.mkdir()
    (staging / "part").write_bytes(b"1")
    assert listed(tmp_path) == set()
    assert listed(tmp_path, now=time.time() + DAY + 60) == {staging}
    assert listed(tmp_path) == set()
    os.utime(staging, (0, 0))
    assert listed(tmp_path) == set(), "a file in it is being written"
    os.utime(staging / "part", (0, 0))
    assert listed(tmp_path) == {staging}


def test_checkpoints_of_finished_training_go_and_others_stay(tmp_path):
    artifact(tmp_path, "corrected_model", "a" * 64)
    done, going = (ArtifactStore(tmp_path).checkpoint(letter * 64) for letter in "ab")
    done.parent.mkdir()
    for path in (done, going):
        path.write_bytes(b"0")
    found = find_unreferenced(tmp_path, unregistered)
    assert [(item.kind, item.path) for item in found.items] == [("checkpoint", done)]
    assert remove(tmp_path, found.items, unregistered) == 1
    assert not done.exists()
    assert going.exists()


def test_a_study_that_is_being_run_is_left_alone(tmp_path):
    old = artifact(tmp_path, "base_model", "a" * 64)
    artifact(tmp_path, "base_model", "b" * 64)
    items = find_unreferenced(tmp_path, unregistered).items
    with held_elsewhere(tmp_path, "s"):
        found = find_unreferenced(tmp_path, unregistered)
        assert (found.items, found.locked) == ([], ["s"])
        assert remove(tmp_path, items, unregistered) == 0
    assert old.exists()
    assert remove(tmp_path, items, unregistered) == 1


@pytest.mark.parametrize("event", ["shutil.rmtree", "os.remove"])
def test_an_interrupted_delete_leaves_no_half_artifact_and_is_finished_the_next_time(tmp_path, event):
    old = artifact(tmp_path, "base_model", "a" * 64)
    artifact(tmp_path, "base_model", "b" * 64)
    code = (
        "import os, sys; from pathlib import Path; from lancet_pipeline.store.retention import find_unreferenced, remove\n"
        "home = Path(sys.argv[1]); none = lambda study: []; items = find_unreferenced(home, none).items\n"
        "seen = []\n"
        "def crash(name, values):\n"
        "    if name == sys.argv[2]:\n"
        "        seen.append(name)\n"
        "        if len(seen) == (2 if name == 'os.remove' else 1): os._exit(9)\n"
        "sys.addaudithook(crash); remove(home, items, none)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path), event], check=False).returncode == 9
    assert not old.exists()
    assert not ArtifactStore(tmp_path).has("s", "base_model", "a" * 64)
    found = find_unreferenced(tmp_path, unregistered)
    assert [item.kind for item in found.items] == ["half removed"]
    assert remove(tmp_path, found.items, unregistered) == 1
    assert {path.name for path in old.parent.iterdir()} == {"current", "b" * 16}


def test_nothing_outside_the_artifacts_is_deleted(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    artifact(home, "base_model", "a" * 64)
    artifact(elsewhere, "base_model", "b" * 64)
    foreign = elsewhere / "artifacts" / "s"
    (home / "artifacts" / "linked").symlink_to(foreign)
    with pytest.raises(InputError, match=r"linked: does not lie in .*artifacts"):
        find_unreferenced(home, unregistered)
    (home / "artifacts" / "linked").unlink()
    artifact(elsewhere, "base_model", "c" * 64)
    items = find_unreferenced(elsewhere, unregistered).items
    assert len(items) == 1
    with pytest.raises(InputError, match="does not lie in"):
        remove(home, items, unregistered)
    assert items[0].path.exists()


def test_the_journal_is_measured_and_left(tmp_path):
    artifact(tmp_path, "base_model", "a" * 64)
    part = tmp_path / "journal" / "0" / "1.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"12345")
    assert journal_bytes(tmp_path) == 5
    assert listed(tmp_path) == set()


def test_the_command_lists_first_and_deletes_only_when_told_to(home):
    old = artifact(home, "base_model", "a" * 64)
    artifact(home, "base_model", "b" * 64)
    told = lancet("gc", "--home", home).stdout
    assert str(old) in told
    assert f"lancet gc --delete --home {home}" in told
    assert "nobody to ask" in lancet("gc", "--home", home, "--delete", code=2).stderr
    assert old.exists()
    assert json.loads(lancet("gc", "--home", home, "--delete", "--yes", "--json").stdout)["removed"] == 1
    assert not old.exists()
    assert "nothing to remove" in lancet("gc", "--home", home).stdout
