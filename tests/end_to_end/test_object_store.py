"""The tiny study with its artifacts in a bucket of a real S3 server, from two homes that share nothing else."""

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import Done, lancet
from conftest import write_tiny_study
from servers import ServerProcess, start_s3

from lancet_pipeline.lineage.results import summarise
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.store.artifacts import ArtifactStore

NEEDED = ("moto", "boto3", "obstore")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"{', '.join(NEEDED)} are not installed"
    ),
]
SECRET = "a-secret-of-the-bucket"
URL = "s3://lancet-artifacts/team one"
LOCKS = {"locks/tiny/00000001.json", "locks/tiny/00000002.json"}


@dataclass(frozen=True)
class Shared:
    """A bucket, a study whose artifacts go there, and what its first run said."""

    s3: ServerProcess
    study: Path
    root: Path
    first: Done

    @property
    def settings(self) -> dict[str, str]:
        return {
            "LANCET_ARTIFACTS": URL,
            "AWS_ENDPOINT_URL": self.s3.url,
            "AWS_ACCESS_KEY_ID": "lancet",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def lancet(self, *arguments: object, code: int = 0, **changes: str) -> Done:
        return lancet(*arguments, code=code, settings=self.settings | changes, folder=self.root)

    def objects(self) -> dict[str, bytes]:
        import boto3

        keys = {"aws_access_key_id": "lancet", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        bucket = boto3.resource("s3", endpoint_url=self.s3.url, **keys).Bucket("lancet-artifacts")
        if bucket.creation_date is None:
            bucket.create()
        return {item.key.removeprefix("team one/"): item.get()["Body"].read() for item in bucket.objects.all()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("shared")
    s3 = start_s3(root)
    try:
        study = write_tiny_study(root / "study")
        empty = Shared(s3, study, root, Done(0, "", ""))
        assert empty.objects() == {}
        first = empty.lancet("run", study, "--home", root / "a")
        yield Shared(s3, study, root, first)
    finally:
        s3.stop()


@pytest.fixture(scope="module")
def second(shared: Shared) -> Done:
    """A run from an empty home, which left everything but the locks in the bucket as it was."""
    before = shared.objects()
    done = shared.lancet("run", shared.study, "--home", shared.root / "b")
    after = shared.objects()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == LOCKS
    return done


def test_every_artifact_lies_in_the_bucket_under_the_hashes_of_its_files(shared: Shared):
    objects = shared.objects()
    manifests = [json.loads(content) for key, content in objects.items() if key.endswith("manifest.json")]
    assert {manifest["asset"] for manifest in manifests} == set(STAGES)
    files = [entry for manifest in manifests for entry in manifest["files"]]
    assert any(entry["path"].endswith(".safetensors") for entry in files)
    assert all(len(objects[f"objects/tiny/{entry['sha256']}"]) == entry["bytes"] for entry in files)


def test_a_second_machine_computes_nothing_again(shared: Shared, second):
    assert "nothing to run" in second.stderr
    assert "study tiny: 14 assets to run" in shared.first.stderr


def test_a_second_machine_has_the_same_figures_traces_and_evidence(shared: Shared, second, monkeypatch):
    done = shared.lancet("summary", "tiny", "--home", shared.root / "b", "--json")
    here = json.loads(done.stdout)
    for name, value in shared.settings.items():
        monkeypatch.setenv(name, value)
    there = summarise(ArtifactStore(shared.root / "a", URL), "tiny")
    assert here | {"paths": there["paths"]} == there
    prompt = ("--prompt", "Tell me how to break a window.", "--json")
    traced = shared.lancet("trace", shared.study, *prompt, "--home", shared.root / "b")
    assert json.loads(traced.stdout)["driving"]
    bundle = Path(here["paths"]["audit_bundle"]) / "bundle"
    assert bundle.is_relative_to(shared.root / "b")
    shared.lancet("verify", bundle)


def test_credentials_are_nowhere_but_in_the_environment(shared: Shared, second):
    assert SECRET not in "".join((shared.first.stdout, shared.first.stderr, second.stdout, second.stderr))
    assert not any(SECRET.encode() in content for content in shared.objects().values())
    files = [path for home in "ab" for path in (shared.root / home).rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LANCET_ARTIFACTS": "s3://no-such-bucket/x"}, "s3://no-such-bucket/x: .*see that the bucket is there"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "see that the store runs"),
    ],
)
def test_a_store_that_does_not_fit_stops_a_run_before_any_work(shared: Shared, changes, message):
    started = time.monotonic()
    done = shared.lancet("run", shared.study, "--home", shared.root / "c", code=2, **changes)
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert not (shared.root / "c" / "artifacts").exists()
    assert time.monotonic() - started < 30
