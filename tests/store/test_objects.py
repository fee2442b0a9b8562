"""Artifacts below a URL: file:// stands for all of obstore's stores."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lancet_pipeline.assets.retries import passing_fault
from lancet_pipeline.errors import IntegrityError, Unreachable
from lancet_pipeline.store import locks
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.locks import Busy
from lancet_pipeline.store.objects import Remote
from lancet_pipeline.store.retention import DAY, find_unreferenced, remove

VERSION = "a" * 64
FIRST, SECOND = "first content", "second content"


@pytest.fixture
def shared(tmp_path) -> Path:
    pytest.importorskip("obstore")
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def url(shared) -> str:
    return f"file://{shared}"


def write(store: ArtifactStore, asset: str = "asset", version: str = VERSION, **texts: str) -> None:
    with store.write("s", asset, version, {"inputs": {}}) as folder:
        for name, text in (texts or {"first": FIRST, "second": SECOND}).items():
            (folder / "part").mkdir(exist_ok=True)
            (folder / "part" / name).write_text(text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def unregistered(study: str) -> list[dict[str, str]]:
    return []


def test_a_second_home_finds_everything(url, tmp_path):
    write(ArtifactStore(tmp_path / "a", url))
    other = ArtifactStore(tmp_path / "b", url)
    assert other.has("s", "asset", VERSION)
    assert other.current("s", "asset") == VERSION
    assert other.lineage("s", {"asset": VERSION}).keys() == {"asset"}
    assert (other.studies(), other.versions("s")) == (["s"], [("asset", "a" * 16)])
    folder = other.read("s", "asset", VERSION)
    assert (folder / "part" / "second").read_text() == SECOND
    assert folder == tmp_path / "b" / "artifacts" / "s" / "asset" / ("a" * 16)
    assert not ArtifactStore(tmp_path / "b").has("s", "asset", "b" * 64)


def test_another_study_takes_over_what_a_second_home_never_had(url, tmp_path):
    write(ArtifactStore(tmp_path / "a", url))
    other = ArtifactStore(tmp_path / "b", url)
    assert not other.adopt("t", "asset", "b" * 64)
    assert other.adopt("t", "asset", VERSION)
    third = ArtifactStore(tmp_path / "c", url)
    assert (third.read("t", "asset", VERSION) / "part" / "first").read_text() == FIRST
    assert third.manifest("t", "asset", VERSION)["adopted_from"] == "s"


def test_an_upload_that_fails_in_the_middle_leaves_no_artifact_and_is_finished_without_computing(shared, tmp_path):
    store = ArtifactStore(tmp_path / "a", f"file://{shared}")
    obstacle = shared / "objects" / "s" / digest(SECOND)
    (obstacle / "in the way").mkdir(parents=True)
    with pytest.raises(Unreachable, match="LANCET_ARTIFACTS"):
        write(store)
    assert (shared / "objects" / "s" / digest(FIRST)).read_text() == FIRST
    for home in "ab":
        found = ArtifactStore(tmp_path / home, f"file://{shared}")
        assert not found.has("s", "asset", VERSION)
        assert found.current("s", "asset") is None
    (obstacle / "in the way").rmdir()
    obstacle.rmdir()
    assert not ArtifactStore(tmp_path / "b", f"file://{shared}").publish("s", "asset", VERSION)
    assert store.publish("s", "asset", VERSION)
    assert (ArtifactStore(tmp_path / "b", f"file://{shared}").read("s", "asset", VERSION) / "part/second").exists()


def test_what_a_killed_upload_left_is_no_artifact_and_goes_after_a_day(shared, tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from lancet_pipeline.store.artifacts import ArtifactStore\n"
        "store = ArtifactStore(sys.argv[1], sys.argv[2]); final = store.folder('s', 'asset', 'a' * 64)\n"
        "def crash(name, values):\n"
        "    if name == 'open' and values[0] == str(final / 'manifest.json') and 'r' in values[1]: os._exit(9)\n"
        "sys.addaudithook(crash)\n"
        "with store.write('s', 'asset', 'a' * 64, {'inputs': {}}) as folder: (folder / 'file').write_text('content')"
    )
    home, url = tmp_path / "a", f"file://{shared}"
    assert subprocess.run([sys.executable, "-c", code, str(home), url], check=False).returncode == 9
    left = shared / "objects" / "s" / digest("content")
    assert left.read_text() == "content"
    other = tmp_path / "b"
    assert not ArtifactStore(other, url).has("s", "asset", VERSION)
    assert find_unreferenced(other, unregistered, artifacts=url).items == []
    found = find_unreferenced(other, unregistered, time.time() + DAY + 60, artifacts=url)
    assert [(item.kind, item.path) for item in found.items] == [("half written", f"{url}/objects/s/{left.name}")]
    assert find_unreferenced(home, unregistered, artifacts=url).items == [], "the next run uploads it"
    assert ArtifactStore(home, url).publish("s", "asset", VERSION)


def test_a_changed_or_missing_object_is_named_and_a_home_that_has_it_mends_it(url, tmp_path):
    store = ArtifactStore(tmp_path / "a", url)
    write(store)
    assert store.remote is not None
    key = f"objects/s/{digest(SECOND)}"
    store.remote.put(key, SECOND.upper().encode())
    other = ArtifactStore(tmp_path / "b", url)
    with pytest.raises(
        IntegrityError, match=f"{digest(SECOND)}: its bytes are not those of its name, it is part/second"
    ):
        other.read("s", "asset", VERSION)
    assert [path.name for path in (tmp_path / "b" / "artifacts" / "s" / "asset").iterdir()] == []
    store.remote.delete(key)
    with pytest.raises(IntegrityError, match=f"{digest(SECOND)}: missing, it is part/second") as caught:
        other.read("s", "asset", VERSION)
    manifest = f"artifacts/s/asset/{'a' * 16}/manifest.json"
    assert f"remove {url}/{manifest}" in str(caught.value)
    store.remote.delete(manifest)
    assert ArtifactStore(tmp_path / "a", url).publish("s", "asset", VERSION)
    assert (other.read("s", "asset", VERSION) / "part" / "second").read_text() == SECOND


def test_many_that_read_the_same_at_once_fetch_it_once(url, tmp_path):
    write(ArtifactStore(tmp_path / "a", url))

    def read(_: int) -> tuple[str, int]:
        folder = ArtifactStore(tmp_path / "b", url).read("s", "asset", VERSION)
        return (folder / "part" / "second").read_text(), folder.stat().st_ino

    with ThreadPoolExecutor(8) as readers:
        found = set(readers.map(read, range(8)))
    assert len(found) == 1
    assert found.pop()[0] == SECOND


def test_a_broken_copy_in_the_cache_is_fetched_again(url, tmp_path):
    write(ArtifactStore(tmp_path / "a", url))
    file = ArtifactStore(tmp_path / "a", url).folder("s", "asset", VERSION) / "part" / "first"
    file.write_text("other content")
    assert ArtifactStore(tmp_path / "a", url).read("s", "asset", VERSION) == file.parents[1]
    assert file.read_text() == FIRST


def test_a_manifest_cannot_make_a_home_write_elsewhere(url, tmp_path):
    store = ArtifactStore(tmp_path / "a", url)
    write(store)
    manifest = store.manifest("s", "asset", VERSION)
    manifest["files"][0]["path"] = "../../../../../outside"
    assert store.remote is not None
    store.remote.put(f"artifacts/s/asset/{'a' * 16}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(IntegrityError, match="would be written outside of"):
        ArtifactStore(tmp_path / "b", url).read("s", "asset", VERSION)
    assert not list(tmp_path.rglob("outside"))


def test_what_nothing_refers_to_is_listed_then_removed_below_the_url_and_in_the_cache(url, tmp_path):
    home = tmp_path / "a"
    store = ArtifactStore(home, url)
    write(store, "base_model", "a" * 64, shared=FIRST, own=SECOND)
    write(store, "base_model", "b" * 64, shared=FIRST)
    found = find_unreferenced(home, unregistered, artifacts=url)
    old = f"{url}/artifacts/s/base_model/{'a' * 16}"
    assert {str(item.path): item.kind for item in found.items} == {
        str(store.folder("s", "base_model", "a" * 64)): "base_model",
        old: "base_model",
    }
    assert next(item.bytes for item in found.items if item.path == old) == len(SECOND) + len(FIRST) // 2
    assert store.has("s", "base_model", "a" * 64)
    assert remove(home, found.items, unregistered, url) == 2
    other = ArtifactStore(tmp_path / "b", url)
    assert not other.has("s", "base_model", "a" * 64)
    assert (other.read("s", "base_model", "b" * 64) / "part" / "shared").read_text() == FIRST
    assert other.remote is not None
    assert other.remote.keys("objects/s").keys() == {f"objects/s/{digest(FIRST)}"}
    assert find_unreferenced(home, unregistered, artifacts=url).items == []


def test_a_study_that_another_machine_works_on_is_neither_run_nor_tidied(url, tmp_path):
    write(ArtifactStore(tmp_path / "a", url))
    other = ArtifactStore(tmp_path / "b", url)
    with ArtifactStore(tmp_path / "a", url).lock("s"), ArtifactStore(tmp_path / "a", url).lock("s"):
        with pytest.raises(Busy, match=r"study 's': a run is going on on .* since"), other.lock("s"):
            pass
        with other.lock("another"):
            pass
        assert find_unreferenced(tmp_path / "b", unregistered, artifacts=url).locked == ["s"]
    with other.lock("s"), pytest.raises(Busy), ArtifactStore(tmp_path / "a", url).lock("s"):
        pass


def test_a_holder_is_waited_for(url, tmp_path):
    done = threading.Event()

    def hold() -> None:
        with locks.lease(Remote(url), tmp_path / "a", "s"):
            done.wait()

    (tmp_path / "a" / "locks").mkdir(parents=True)
    holder = threading.Thread(target=hold)
    holder.start()
    while not Remote(url).keys("locks/s"):
        time.sleep(0.01)
    with pytest.raises(Busy), ArtifactStore(tmp_path / "b", url).lock("s"):
        pass
    threading.Timer(0.5, done.set).start()
    with ArtifactStore(tmp_path / "b", url).lock("s", wait=30.0):
        assert done.is_set()
    holder.join()


def test_the_lock_of_a_killed_run_is_its_homes_at_once_and_everybodys_when_its_time_is_over(
    shared, tmp_path, monkeypatch
):
    code = (
        "import os, sys; from lancet_pipeline.store.artifacts import ArtifactStore\n"
        "with ArtifactStore(sys.argv[1], sys.argv[2]).lock('s'): os._exit(9)"
    )
    url = f"file://{shared}"
    command = [sys.executable, "-c", code, str(tmp_path / "a"), url]
    assert subprocess.run(command, check=False).returncode == 9
    with pytest.raises(Busy), ArtifactStore(tmp_path / "b", url).lock("s"):
        pass
    with ArtifactStore(tmp_path / "a", url).lock("s"):
        pass
    assert subprocess.run(command, check=False).returncode == 9
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.2)
    time.sleep(0.3)
    with ArtifactStore(tmp_path / "b", url).lock("s"):
        pass


def test_a_lock_is_renewed_while_it_is_held(url, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    with ArtifactStore(tmp_path / "a", url).lock("s"):
        time.sleep(1.5)
        with pytest.raises(Busy), ArtifactStore(tmp_path / "b", url).lock("s"):
            pass


def test_of_many_machines_one_gets_the_lock(url, tmp_path):
    held, refused, go = [], [], threading.Barrier(8)

    def machine(number: int) -> None:
        root = tmp_path / str(number)
        (root / "locks").mkdir(parents=True)
        go.wait()
        try:
            with locks.lease(Remote(url), root, "s"):
                held.append(number)
                go.wait()
        except Busy:
            refused.append(number)
            go.wait()

    threads = [threading.Thread(target=machine, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_share_that_is_not_mounted_is_away_and_no_folder_is_made_in_its_place(tmp_path):
    pytest.importorskip("obstore")
    with pytest.raises(Unreachable, match="missing"):
        write(ArtifactStore(tmp_path / "a", f"file://{tmp_path}/missing"))
    assert not (tmp_path / "missing").exists()


def test_a_store_that_is_away_may_come_back(tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        Unreachable, match=r"LANCET_ARTIFACTS: s3://bucket/prefix: .*; see that the store runs"
    ) as caught:
        ArtifactStore(tmp_path, "s3://bucket/prefix").has("s", "asset", VERSION)
    assert passing_fault(caught.value)
    assert "hush" not in str(caught.value)
    assert time.monotonic() - started < 20
