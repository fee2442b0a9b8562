"""What may go: everything below HOME/artifacts that nothing refers to, and checkpoints of training that is done.

What refers to an artifact: the pointer to a study's or variant's last version of an asset, a version of its model in
the registry, an audit bundle; and whatever those were computed from. Bundles are evidence and stay, with all that they
rest on, until somebody removes them by hand. A study that is being run is left alone.

A folder is renamed before its files go, so that a crash leaves no artifact that is there by half: what it leaves is
listed again the next time.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lancet_pipeline.artifacts import ArtifactStore
from lancet_pipeline.errors import InputError
from lancet_pipeline.files import MANIFEST
from lancet_pipeline.governance.readiness import VERSION_TAG
from lancet_pipeline.locks import study_lock

DAY = 86_400.0
REMOVED = ".removed-"

RegistryTags = Callable[[str], Sequence[Mapping[str, str]]]
"""The tags of every registered version of a study's model."""


@dataclass(frozen=True)
class Unreferenced:
    """Something that may go. kind: the asset, or what else it is. bytes: on the disk; a file with several links counts
    its share of each."""

    study: str
    kind: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Found:
    """items: what may go. locked: studies that were left out, since they are being run."""

    items: list[Unreferenced]
    locked: list[str]


def find_unreferenced(home: Path, registry: RegistryTags, now: float | None = None) -> Found:
    """List what may go, by study and path; nothing is changed.

    Args:
        now: seconds since the epoch; what a running command may be writing counts as left over after a day.

    Raises:
        InputError: a manifest that cannot be read, or a study's folder that is no folder below HOME/artifacts.
    """
    store = ArtifactStore(home)
    items: list[Unreferenced] = []
    locked: list[str] = []
    for study in _studies(store):
        tags = registry(study)  # before the lock, which a run may wait for
        with ExitStack() as stack:
            if not _at_rest(stack, store, study):
                locked.append(study)
                continue
            known = {item.path for item in items}  # studies that share a checkpoint's artifact both name it
            found = _of_study(store, study, tags, now or time.time())
            items += [item for item in found if item.path not in known]
    return Found(items, locked)


def remove(home: Path, items: Sequence[Unreferenced], registry: RegistryTags) -> int:
    """Delete `items`, as far as nothing refers to them by now; returns how many went.

    Raises:
        InputError: an item that does not lie where artifacts or checkpoints lie; nothing is deleted then.
    """
    store = ArtifactStore(home)
    for item in items:
        _check_inside(store, item.path)
    removed = 0
    for study in sorted({item.study for item in items}):
        wanted = {item.path for item in items if item.study == study}
        with ExitStack() as stack:
            if not _at_rest(stack, store, study):
                continue
            still = {item.path for item in _of_study(store, study, registry(study), time.time())}
            for path in sorted(wanted & still):
                _remove(path)
                removed += 1
    return removed


def journal_bytes(home: Path) -> int:
    """Size of the scoring journal: whose model a part of it belongs to cannot be told from its name."""
    return _size(ArtifactStore(home).journal)


def _at_rest(stack: ExitStack, store: ArtifactStore, study: str) -> bool:
    """Whether no run on the study is going on; none begins then until `stack` ends."""
    try:
        stack.enter_context(study_lock(store.root, study))
    except InputError:
        return False
    return True


def _studies(store: ArtifactStore) -> list[str]:
    folder = store.root / "artifacts"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for name in names:
        _check_inside(store, folder / name)
    return names


def _of_study(
    store: ArtifactStore, study: str, registered: Sequence[Mapping[str, str]], now: float
) -> list[Unreferenced]:
    folder = store.root / "artifacts" / study
    kept = _referenced(store, study, registered)
    found = []
    for asset in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(asset.iterdir()):
            if path.name.startswith(REMOVED):
                found.append(Unreferenced(study, "half removed", path, _size(path)))
            elif path.name.startswith("."):
                if now - _last_change(path) > DAY:
                    found.append(Unreferenced(study, "half written", path, _size(path)))
            elif path.is_dir() and path not in kept:
                found.append(Unreferenced(study, asset.name, path, _size(path)))
    for path in sorted((store.root / "checkpoints").glob("*.safetensors")):
        if any((asset / path.stem / MANIFEST).is_file() for asset in folder.iterdir()):
            found.append(Unreferenced(study, "checkpoint", path, _size(path)))
    return found


def _referenced(store: ArtifactStore, study: str, registered: Sequence[Mapping[str, str]]) -> set[Path]:
    """Folders of the artifacts that something refers to, and of all that they were computed from."""
    folder = store.root / "artifacts" / study
    waiting: list[tuple[str, str]] = []
    for asset in folder.iterdir():
        version = store.current(study, asset.name)
        if version is not None:
            waiting.append((asset.name, version))
    for tags in registered:
        waiting += [
            (key.removeprefix(VERSION_TAG), value) for key, value in tags.items() if key.startswith(VERSION_TAG)
        ]
    for path in folder.glob(f"audit_bundle/*/{MANIFEST}"):
        if not path.parent.name.startswith("."):
            waiting.append(("audit_bundle", path.parent.name))
    kept: set[Path] = set()
    while waiting:
        asset, version = waiting.pop()
        path = store.folder(study, asset, version)
        if path in kept or not store.has(study, asset, version):
            continue  # sources have versions but no folder
        kept.add(path)
        try:
            waiting += store.manifest(study, asset, version)["inputs"].items()
        except (ValueError, KeyError):
            raise InputError(f"{path / MANIFEST}: cannot be read; restore it, or remove {path} and run again") from None
    return kept


def _check_inside(store: ArtifactStore, path: Path) -> None:
    """Links and paths that lead elsewhere are not ours to delete."""
    allowed = [(store.root / name).resolve() for name in ("artifacts", "checkpoints")]
    if path.is_symlink() or not any(parent in allowed for parent in path.resolve().parents):
        raise InputError(f"{path}: does not lie in {allowed[0]}; lancet gc deletes nothing elsewhere, move it yourself")


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    doomed = path
    if not path.name.startswith(REMOVED):
        doomed = path.with_name(f"{REMOVED}{path.name.lstrip('.')}-{uuid.uuid4().hex[:8]}")
        path.rename(doomed)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    shutil.rmtree(doomed)


def _size(path: Path) -> int:
    return sum(s.st_size // s.st_nlink for s in (file.lstat() for file in _files(path)))


def _last_change(path: Path) -> float:
    return max(file.lstat().st_mtime for file in (path, *_files(path)))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if not file.is_dir())
    elif path.exists():
        yield path
