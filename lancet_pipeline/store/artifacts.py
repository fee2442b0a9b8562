"""The artifact store: what each asset wrote, whole or absent, under the version that it was computed for.

ROOT/artifacts/STUDY/ASSET/VERSION[:16]/   the files, and manifest.json with the SHA-256 of each
ROOT/artifacts/STUDY/ASSET/current         the version that was written or confirmed last

With a URL, that is the store and ROOT its cache:

URL/objects/STUDY/SHA256                                a file's content; content never changes under its name
URL/artifacts/STUDY/ASSET/VERSION[:16]/manifest.json    written last, so that an artifact is whole or absent there too
URL/artifacts/STUDY/ASSET/current
"""

import fnmatch
import json
import os
import platform
import resource
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.files import (
    MANIFEST,
    digest,
    full_disk,
    hash_files,
    sha256,
    take_over,
    verify_files,
    whole_or_absent,
)
from lancet_pipeline.store.locks import lease, study_lock
from lancet_pipeline.store.objects import Remote


class ArtifactStore:
    """Artifacts of all studies below one root directory, or with `url` below that. What
    asks a URL raises Unreachable where it does not answer, and InputError where it says no."""

    def __init__(self, root: str | Path, url: str = "") -> None:
        self.root = Path(root).expanduser().absolute()
        self.remote = Remote(url) if url else None

    @property
    def place(self) -> str:
        """Where the artifacts are, for messages."""
        return self.remote.url if self.remote else str(self.root)

    @property
    def journal(self) -> Path:
        """Where scoring keeps what it has scored; it may be removed at any time."""
        return self.root / "journal"

    def checkpoint(self, version: str) -> Path:
        """Where training that makes an artifact of `version` says how far it is, until it is done."""
        return self.root / "checkpoints" / f"{version[:16]}.safetensors"

    def address(self, study: str, asset: str, version: str) -> str:
        """Where an artifact is, for messages: its folder, or its URL."""
        key = artifact_key(study, asset, version)
        return self.remote.address(key) if self.remote else str(self.root / key)

    def folder(self, study: str, asset: str, version: str) -> Path:
        return self.root / "artifacts" / study / asset / version[:16]

    @contextmanager
    def lock(self, study: str, wait: float = 0.0) -> Iterator[None]:
        """One run on a study at a time, in all processes and on all machines that share the URL; see `locks`. The same
        process may hold it more than once. Raises Busy after `wait` seconds."""
        with ExitStack() as held:
            first = held.enter_context(study_lock(self.root, study, wait))
            if first and self.remote is not None:
                held.enter_context(lease(self.remote, self.root, study, wait))
            yield

    def has(self, study: str, asset: str, version: str) -> bool:
        """Whether an artifact is there and, where it says on which bytes of its inputs it was built, those are."""
        record = self._find(study, asset, version)
        return record is not None and self._built_on_what_is_there(study, record)

    def _built_on_what_is_there(self, study: str, record: Mapping[str, Any]) -> bool:
        built_on = record.get("built_on", {})
        return all(self.digest(study, name, record["inputs"][name]) == found for name, found in built_on.items())

    def digest(self, study: str, asset: str, version: str) -> str | None:
        """SHA-256 over the list of an artifact's files; None where it is not there."""
        record = self._find(study, asset, version)
        return None if record is None else digest(record["files"])

    def manifest(self, study: str, asset: str, version: str) -> dict[str, Any]:
        record = self._find(study, asset, version)
        if record is None:
            raise InputError(f"{self.address(study, asset, version)}: no such artifact; run `lancet run {study}` first")
        return record

    def _find(self, study: str, asset: str, version: str) -> dict[str, Any] | None:
        content = self._get(f"{artifact_key(study, asset, version)}/{MANIFEST}")
        return None if content is None else json.loads(content)

    def _get(self, key: str) -> bytes | None:
        if self.remote is not None:
            return self.remote.get(key)
        return (self.root / key).read_bytes() if (self.root / key).is_file() else None

    def read(self, study: str, asset: str, version: str) -> Path:
        """Folder of an artifact, once its bytes agree with its manifest (`files.sha256` reads them once a process). What the
        cache of a URL does not have, or not whole, is fetched.

        Raises:
            IntegrityError: a file is missing, added or changed.
        """
        folder, manifest = self.folder(study, asset, version), self.manifest(study, asset, version)
        if self.remote is None:
            verify_files(folder, manifest["files"], {MANIFEST})
        else:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / "locks" / ".cache.lock"):  # nobody fetches what another process fetches
                if not _agrees(folder, manifest):
                    self._fetch(self.remote, folder, manifest)
        return folder

    def _fetch(self, remote: Remote, folder: Path, manifest: Mapping[str, Any]) -> None:
        remedy = f"restore it, or remove {remote.address(artifact_key(*_names(manifest)))}/{MANIFEST} and run again"
        with self._folder(folder) as staging:
            for entry in manifest["files"]:
                target, key = staging / entry["path"], f"objects/{manifest['study']}/{entry['sha256']}"
                if not target.resolve().is_relative_to(staging.resolve()):
                    raise IntegrityError(f"{remote.address(key)}: would be written outside of {folder}; {remedy}")
                target.parent.mkdir(parents=True, exist_ok=True)
                if not remote.fetch(key, target):
                    raise IntegrityError(f"{remote.address(key)}: missing, it is {entry['path']}; {remedy}")
                if sha256(target) != entry["sha256"]:
                    raise IntegrityError(
                        f"{remote.address(key)}: its bytes are not those of its name, it is {entry['path']}; {remedy}"
                    )
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))

    @contextmanager
    def write(self, study: str, asset: str, version: str, record: dict[str, Any]) -> Iterator[Path]:
        """A folder to write into, that takes its place with a manifest holding `record` when the block ends well, and is
        uploaded then.

        Raises:
            InputError: the disk is full.
        """
        final = self.folder(study, asset, version)
        with self._folder(final) as staging:
            yield staging
            files = hash_files(staging)
            manifest = {"asset": asset, "study": study, "version": version, **record, "files": files}
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
        self._upload(final, manifest)
        self.confirm(study, asset, version)

    @contextmanager
    def _folder(self, final: Path) -> Iterator[Path]:
        """`whole_or_absent` in place of a copy that is broken, or built on other bytes: `has` said no."""
        try:
            with whole_or_absent(final, replace=True, mode=0o700) as staging:
                yield staging
        except (InputError, IntegrityError):
            raise
        except Exception as error:
            if (full := full_disk(error, self.root)) is not None:
                raise full from error
            raise

    def _upload(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        if self.remote is not None:
            for entry in manifest["files"]:
                self.remote.put(f"objects/{manifest['study']}/{entry['sha256']}", folder / entry["path"])
            self.remote.put(f"{artifact_key(*_names(manifest))}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def publish(self, study: str, asset: str, version: str) -> bool:
        """Upload what the cache has of an artifact and the URL does not: an upload was cut short, or the home is older
        than its URL.

        Returns:
            Whether the artifact is there now.
        """
        folder = self.folder(study, asset, version)
        if self.remote is None or not (folder / MANIFEST).is_file():
            return False
        manifest = json.loads((folder / MANIFEST).read_text())
        if not self._built_on_what_is_there(study, manifest) or not _agrees(folder, manifest):
            return False
        self._upload(folder, manifest)
        self.confirm(study, asset, version)
        return True

    def adopt(self, study: str, asset: str, version: str) -> bool:
        """Take over the same version of an asset from another study: equal versions are equal content, but for studies
        that let a model outlive changes of its data (docs/decisions/0006).

        Files are hard links where the disk has them, copies elsewhere; either study's folder can be removed. A broken
        artifact is passed over.

        Returns:
            Whether another study had it.
        """
        for owner in self.studies(f"{asset}/{version[:16]}"):
            record = self._find(owner, asset, version)
            if record is None or record["version"] != version:
                continue
            try:
                source = self.read(owner, asset, version)
            except IntegrityError:
                continue
            with self.write(study, asset, version, {**record, "study": study, "adopted_from": owner}) as folder:
                take_over(source, folder)
            return True
        return False

    def studies(self, artifact: str = "*/*") -> list[str]:
        """Studies that have an artifact, in alphabetical order; one whose ASSET/VERSION[:16] fits the pattern."""
        return sorted({key.split("/")[1] for key in self._manifests("*", artifact)})

    def versions(self, study: str) -> list[tuple[str, str]]:
        """Asset and first 16 digits of the version of every artifact of a study, in alphabetical order."""
        return sorted((key.split("/")[2], key.split("/")[3]) for key in self._manifests(study, "*/*"))

    def _manifests(self, study: str, artifact: str) -> list[str]:
        pattern = f"artifacts/{study}/{artifact}/{MANIFEST}"
        if self.remote is not None:
            prefix = "artifacts" if study == "*" else f"artifacts/{study}"
            return fnmatch.filter(self.remote.keys(prefix), pattern)
        keys = (path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        return [key for key in keys if "/." not in key]

    def current(self, study: str, asset: str) -> str | None:
        """Version that was written or confirmed last, None where there is none."""
        content = self._get(f"artifacts/{study}/{asset}/current")
        return None if content is None else content.decode().strip()

    def confirm(self, study: str, asset: str, version: str) -> None:
        """Make a version that is there the current one."""
        if self.current(study, asset) == version:
            return
        key = f"artifacts/{study}/{asset}/current"
        if self.remote is not None:
            self.remote.put(key, version.encode())
            return
        temporary = self.root / f"{key.removesuffix('current')}.current-{os.getpid()}"
        temporary.write_text(version)
        temporary.replace(self.root / key)

    def lineage(self, study: str, roots: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Manifests of `roots` (asset -> version) and of every stage they were computed from, by asset."""
        found: dict[str, dict[str, Any]] = {}
        waiting = list(roots.items())
        while waiting:
            name, version = waiting.pop()
            record = None if name in found else self._find(study, name, version)
            if record is not None:  # sources have versions but no folder
                found[name] = record
                waiting += record["inputs"].items()
        return found


def artifact_key(study: str, asset: str, version: str) -> str:
    """Where an artifact is below the root or URL of a store."""
    return f"artifacts/{study}/{asset}/{version[:16]}"


def _names(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    return manifest["study"], manifest["asset"], manifest["version"]


def _agrees(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder of the cache holds what a manifest says."""
    try:
        verify_files(folder, manifest["files"], {MANIFEST})
    except IntegrityError:
        return False
    return folder.is_dir()


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("lancet-pipeline", "torch", "transformers", "numpy", "pyarrow", "peft", "dagster", "mlflow")
    return {"python": platform.python_version(), "platform": platform.platform()} | {p: version(p) for p in packages}


def processor_seconds() -> float:
    """Processor time of this process, and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_store(where: Deployment) -> ArtifactStore:
    """The store of a deployment."""
    return ArtifactStore(where.home, where.artifacts)
