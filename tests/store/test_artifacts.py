"""The store: whole or absent, and read only when the bytes agree."""

import subprocess
import sys
import time

import pytest

from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.store.artifacts import ArtifactStore, processor_seconds
from lancet_pipeline.store.locks import study_lock

VERSION = "a" * 64


def write(store: ArtifactStore, text: str = "content") -> None:
    with store.write("s", "asset", VERSION, {"inputs": {}}) as folder:
        (folder / "file.txt").write_text(text)


def test_a_failed_write_leaves_nothing(tmp_path):
    store = ArtifactStore(tmp_path)
    with pytest.raises(FileNotFoundError) as failed, store.write("s", "asset", VERSION, {}) as folder:  # noqa: PT012
        (folder / "half.txt").write_text("half")
        (folder / "absent.txt").read_text()
    assert failed.value.__cause__ is None, "an error is not its own cause"
    assert not store.has("s", "asset", VERSION)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("tamper", ["change", "delete", "add"])
def test_changed_bytes_are_refused_and_named(tmp_path, tamper):
    write(ArtifactStore(tmp_path))
    folder = ArtifactStore(tmp_path).folder("s", "asset", VERSION)
    if tamper == "change":
        (folder / "file.txt").write_text("kontent")
    elif tamper == "delete":
        (folder / "file.txt").unlink()
    else:
        (folder / "extra.txt").write_text("x")
    with pytest.raises(IntegrityError, match=r"extra\.txt" if tamper == "add" else r"file\.txt"):
        ArtifactStore(tmp_path).read("s", "asset", VERSION)


def test_damage_since_the_last_read_is_found_even_of_the_same_length(tmp_path):
    store = ArtifactStore(tmp_path)
    write(store)
    file = store.read("s", "asset", VERSION) / "file.txt"
    for damaged in ("kontent", "CONTENT"):  # at once: within a tick of the clock the modification time may stay
        file.write_text(damaged)
        with pytest.raises(IntegrityError, match=r"file\.txt"):
            store.read("s", "asset", VERSION)
        file.write_text("content")
        store.read("s", "asset", VERSION)


def test_what_was_written_is_read(tmp_path):
    store = ArtifactStore(tmp_path)
    write(store)
    assert (store.read("s", "asset", VERSION) / "file.txt").read_text() == "content"
    assert store.current("s", "asset") == VERSION


def test_a_second_process_is_refused_while_one_holds_the_study(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lancet_pipeline.store.locks import study_lock\n"
        "with study_lock(Path(sys.argv[1]), 's'): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with study_lock(tmp_path, "s"):
        held = subprocess.run(command, capture_output=True, text=True, check=False)
    free = subprocess.run(command, capture_output=True, text=True, check=False)
    assert held.returncode == 1
    assert "another run is going on" in held.stderr
    assert free.returncode == 0


def test_a_full_disk_is_named_with_the_remedy(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(InputError, match="the disk is full"):
            write(ArtifactStore(tmp_path), "x" * 2**21)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)


def test_an_equal_version_of_another_study_is_taken_over_whole(tmp_path):
    write(ArtifactStore(tmp_path))
    store = ArtifactStore(tmp_path)
    assert not store.adopt("other", "asset", "b" * 64)
    assert store.adopt("other", "asset", VERSION)
    assert (store.read("other", "asset", VERSION) / "file.txt").read_text() == "content"
    manifest = store.manifest("other", "asset", VERSION)
    assert (manifest["study"], manifest["adopted_from"]) == ("other", "s")
    assert store.manifest("s", "asset", VERSION)["study"] == "s"
    assert store.current("other", "asset") == VERSION


def test_a_broken_artifact_is_not_taken_over(tmp_path):
    write(ArtifactStore(tmp_path))
    store = ArtifactStore(tmp_path)
    (store.folder("s", "asset", VERSION) / "file.txt").write_text("kontent")
    assert not store.adopt("other", "asset", VERSION)
    assert not store.has("other", "asset", VERSION)


def test_processor_time_is_that_of_work_in_ended_children_too_and_not_of_waiting():
    before = processor_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"], check=True)
    worked = processor_seconds()
    time.sleep(0.4)
    assert worked - before >= 0.4
    assert processor_seconds() - worked < 0.2
