"""The artifact store: what each asset wrote, whole or absent, under the version that it was computed for.

ROOT/artifacts/STUDY/ASSET/VERSION[:16]/   the files, and manifest.json with the SHA-256 of each
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lancet_pipeline.errors import InputError, IntegrityError

MANIFEST = "manifest.json"


class ArtifactStore:
    """Artifacts of all studies below one root directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self._verified: set[Path] = set()

    @property
    def journal(self) -> Path:
        """Where scoring keeps what it has scored; it may be removed at any time."""
        return self.root / "journal"

    def checkpoint(self, version: str) -> Path:
        """Where training that makes an artifact of `version` says how far it is, until it is done."""
        return self.root / "checkpoints" / f"{version[:16]}.safetensors"

    def folder(self, study: str, asset: str, version: str) -> Path:
        return self.root / "artifacts" / study / asset / version[:16]

    def has(self, study: str, asset: str, version: str) -> bool:
        """Whether an artifact is there and, where it says on which bytes of its inputs it was built, those are."""
        if not self._written(study, asset, version):
            return False
        record = self.manifest(study, asset, version)
        built_on = record.get("built_on", {})
        return all(self.digest(study, name, record["inputs"][name]) == digest for name, digest in built_on.items())

    def digest(self, study: str, asset: str, version: str) -> str | None:
        """SHA-256 over the list of an artifact's files; None where it is not there."""
        if not self._written(study, asset, version):
            return None
        files = self.manifest(study, asset, version)["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def _written(self, study: str, asset: str, version: str) -> bool:
        return (self.folder(study, asset, version) / MANIFEST).is_file()

    def manifest(self, study: str, asset: str, version: str) -> dict[str, Any]:
        path = self.folder(study, asset, version) / MANIFEST
        if not path.is_file():
            raise InputError(f"{path.parent}: no such artifact; run `lancet run {study}` first")
        return json.loads(path.read_text())

    def read(self, study: str, asset: str, version: str) -> Path:
        """Folder of an artifact, once its bytes agree with its manifest (checked once a process).

        Raises:
            IntegrityError: a file is missing, added or changed.
        """
        folder = self.folder(study, asset, version)
        if folder not in self._verified:
            verify_files(folder, self.manifest(study, asset, version)["files"], {MANIFEST})
            self._verified.add(folder)
        return folder

    @contextmanager
    def write(self, study: str, asset: str, version: str, record: dict[str, Any]) -> Iterator[Path]:
        """A folder to write into, that takes its place with a manifest holding `record` when the block ends well.

        Raises:
            InputError: the disk is full.
        """
        final = self.folder(study, asset, version)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{version[:16]}-", dir=final.parent))
        except OSError as error:
            raise _full_disk(error, self.root) from error
        try:
            yield staging
            files = hash_files(staging)
            manifest = {"asset": asset, "study": study, "version": version, **record, "files": files}
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
            for path in staging.rglob("*"):
                _sync(path)
            if final.exists():  # an earlier copy that is broken, or built on other bytes: `has` said no
                shutil.rmtree(final)
            staging.rename(final)
            _sync(final.parent)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, Exception) and not isinstance(error, InputError):
                raise _full_disk(error, self.root) from error
            raise
        self.confirm(study, asset, version)

    def adopt(self, study: str, asset: str, version: str) -> bool:
        """Take over the same version of an asset from another study: equal versions are equal content, but for studies
        that let a model outlive changes of its data (docs/decisions/0006).

        Files are hard links where the disk has them, copies elsewhere; either study's folder can be removed. A broken
        artifact is passed over.

        Returns:
            Whether another study had it.
        """
        for path in sorted(self.root.glob(f"artifacts/*/{asset}/{version[:16]}/{MANIFEST}")):
            owner = path.parents[2].name
            record = self.manifest(owner, asset, version)
            if record["version"] != version:
                continue
            try:
                source = self.read(owner, asset, version)
            except IntegrityError:
                continue
            with self.write(study, asset, version, {**record, "study": study, "adopted_from": owner}) as folder:
                take_over(source, folder)
            return True
        return False

    def current(self, study: str, asset: str) -> str | None:
        """Version that was written or confirmed last, None where there is none."""
        pointer = self.root / "artifacts" / study / asset / "current"
        return pointer.read_text().strip() if pointer.is_file() else None

    def confirm(self, study: str, asset: str, version: str) -> None:
        """Make a version that is there the current one."""
        if self.current(study, asset) != version:
            folder = self.root / "artifacts" / study / asset
            temporary = folder / f".current-{os.getpid()}"
            temporary.write_text(version)
            temporary.replace(folder / "current")

    def lineage(self, study: str, roots: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Manifests of `roots` (asset -> version) and of every stage they were computed from, by asset."""
        found: dict[str, dict[str, Any]] = {}
        waiting = list(roots.items())
        while waiting:
            name, version = waiting.pop()
            if name in found or not self._written(study, name, version):
                continue  # sources have versions but no folder
            found[name] = self.manifest(study, name, version)
            waiting += found[name]["inputs"].items()
        return found


@contextmanager
def study_lock(root: Path, study: str, wait: float = 0.0) -> Iterator[None]:
    """One run on a study at a time, in all processes; the same process may hold it more than once.

    Args:
        wait: seconds that another run is waited for.

    Raises:
        InputError: another run holds it.
    """
    path = root / "locks" / f"{study}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise InputError(
            f"study '{study}': another run is going on ({path}); wait for it to end, or use another --home"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(root: Path, study: str) -> bool:
    """Whether a run on a study is going on, in any process."""
    try:
        with study_lock(root, study):
            return False
    except InputError:
        return True


def hash_files(folder: Path) -> list[dict[str, Any]]:
    """Relative path, size and SHA-256 of every file below `folder`, by path."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def verify_files(folder: Path, files: list[Mapping[str, Any]], besides: set[str]) -> None:
    """Compare `folder` with a list made by `hash_files`; files named in `besides` are not looked at.

    Raises:
        IntegrityError: names the first file, in the order of paths, that is missing, added or changed.
    """
    promised = {entry["path"]: entry for entry in files}
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()} - besides
    for path in sorted(promised.keys() | present):
        if path not in present:
            raise IntegrityError(
                f"{folder / path}: missing, though the manifest lists it; restore it, or remove {folder} and run again"
            )
        if path not in promised:
            raise IntegrityError(f"{folder / path}: the manifest does not list it; remove it")
        if (folder / path).is_symlink() or sha256(folder / path) != promised[path]["sha256"]:
            raise IntegrityError(
                f"{folder / path}: its bytes are not those of the manifest; restore it, or remove {folder} and run again"
            )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib.metadata import version

    packages = ("lancet-pipeline", "torch", "transformers", "numpy", "pyarrow", "peft", "dagster", "mlflow")
    return {"python": platform.python_version(), "platform": platform.platform()} | {p: version(p) for p in packages}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def take_over(source: Path, target: Path) -> None:
    """Every file below `source`, but for its manifest, below `target` too: hard links where the disk has them."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path != source / MANIFEST:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _link(path, copy)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _full_disk(error: Exception, root: Path) -> Exception:
    """`error`, or what to do about it where its cause is a full disk (libraries wrap that in errors of their own)."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if (not full and not (isinstance(error, OSError) or "No space" in str(error))) or (not full and free > 2**20):
        return error
    return InputError(f"{root}: the disk is full ({free / 2**20:.0f} MiB free); free some space or use another --home")
