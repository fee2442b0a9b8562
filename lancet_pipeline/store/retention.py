"""What `lancet gc` may remove: everything below HOME/artifacts that nothing refers to, and checkpoints of finished training.

What refers to an artifact: the pointer to a study's or variant's last version of an asset, a version of its model in
the registry, an audit bundle; and whatever those were computed from. Bundles are evidence and stay, with all that they
rest on, until somebody removes them by hand. A study that is being run is left alone.

A folder is renamed before its files go, and a manifest goes before the objects that it names, so that a crash leaves no
artifact that is there by half: what it leaves is listed again the next time.

With a URL for artifacts, what is not referred to goes there and from the home, which is its cache.
"""

import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lancet_pipeline.errors import InputError
from lancet_pipeline.files import MANIFEST, sync
from lancet_pipeline.store.artifacts import ArtifactStore, artifact_key
from lancet_pipeline.store.locks import Busy
from lancet_pipeline.store.objects import Remote

DAY = 86_400.0
REMOVED = ".removed-"

Registry = Callable[[str], Sequence[Mapping[str, str]]]
"""Of every registered version of a study's model, the artifacts (asset -> version) that it was computed from."""


@dataclass(frozen=True)
class Unreferenced:
    """Something that may go. kind: the asset, or what else it is. path: of a file or folder, or the address of an artifact or
    object below a URL. bytes: on the disk; a file with several links, or an object of several artifacts, counts its share
    of each."""

    study: str
    kind: str
    path: Path | str
    bytes: int


@dataclass(frozen=True)
class Found:
    """items: what may go. locked: studies that were left out, since they are being run."""

    items: list[Unreferenced]
    locked: list[str]


def find_unreferenced(home: Path, registry: Registry, now: float | None = None, artifacts: str = "") -> Found:
    """List what may go, by study and path; nothing is changed.

    Args:
        now: seconds since the epoch; what a running command may be writing counts as left over after a day.
        artifacts: URL of the store of artifacts; empty where `home` is.

    Raises:
        InputError: a manifest that cannot be read, or a study's folder that is no folder below HOME/artifacts.
    """
    store = ArtifactStore(home, artifacts)
    items: list[Unreferenced] = []
    locked: list[str] = []
    for study in _studies(store):
        registered = registry(study)  # before the lock, which a run may wait for
        known = {item.path for item in items}  # studies that share a checkpoint's artifact both name it
        try:
            with store.lock(study):
                found = _of_study(store, study, registered, now or time.time())
        except Busy:
            locked.append(study)
            continue
        items += [item for item in found if item.path not in known]
    return Found(items, locked)


def remove(home: Path, items: Sequence[Unreferenced], registry: Registry, artifacts: str = "") -> int:
    """Delete `items`, as far as nothing refers to them by now; returns how many went.

    Raises:
        InputError: an item that does not lie where artifacts or checkpoints lie; nothing is deleted then.
    """
    store = ArtifactStore(home, artifacts)
    for item in items:
        if isinstance(item.path, Path):
            _check_inside(store, item.path)
    removed = 0
    for study in sorted({item.study for item in items}):
        wanted = {item.path for item in items if item.study == study}
        with suppress(Busy), store.lock(study):
            still = {item.path for item in _of_study(store, study, registry(study), time.time())}
            remote = store.remote and _RemoteArtifacts(store, study)
            for path in sorted(wanted & still, key=str):
                if isinstance(path, Path):
                    _remove(path)
                elif remote is not None:
                    remote.remove(path)
                removed += 1
    return removed


def journal_bytes(home: Path) -> int:
    """Size of the scoring journal: whose model a part of it belongs to cannot be told from its name."""
    return _size(ArtifactStore(home).journal)


def _studies(store: ArtifactStore) -> list[str]:
    folder = store.root / "artifacts"
    names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    for name in names:
        _check_inside(store, folder / name)
    if store.remote is not None:
        names |= {key.split("/")[1] for prefix in ("artifacts", "objects") for key in store.remote.keys(prefix)}
    return sorted(names)


def _of_study(
    store: ArtifactStore, study: str, registered: Sequence[Mapping[str, str]], now: float
) -> list[Unreferenced]:
    present, kept = store.versions(study), _referenced(store, study, registered)
    found = []
    for asset in sorted(path for path in (store.root / "artifacts" / study).glob("*") if path.is_dir()):
        for path in sorted(asset.iterdir()):
            if path.name.startswith(REMOVED):
                found.append(Unreferenced(study, "half removed", path, _size(path)))
            elif path.name.startswith("."):
                if now - _last_change(path) > DAY:
                    found.append(Unreferenced(study, "half written", path, _size(path)))
            elif path.is_dir() and (asset.name, path.name) not in kept:
                unsent = store.remote is not None and (asset.name, path.name) not in present
                if not unsent or now - _last_change(path) > DAY:  # an upload that failed is tried again
                    found.append(Unreferenced(study, asset.name, path, _size(path)))
    for path in sorted((store.root / "checkpoints").glob("*.safetensors")):
        if path.stem in {version for _, version in present}:
            found.append(Unreferenced(study, "checkpoint", path, _size(path)))
    if store.remote is not None:
        found += [Unreferenced(study, *item) for item in _RemoteArtifacts(store, study).unreferenced(kept, now - DAY)]
    return found


def _referenced(store: ArtifactStore, study: str, registered: Sequence[Mapping[str, str]]) -> set[tuple[str, str]]:
    """Asset and first 16 digits of the version of the artifacts that something refers to, and of all that they were
    computed from."""
    present = store.versions(study)
    last = {asset: store.current(study, asset) for asset in sorted({asset for asset, _ in present})}
    waiting = [(asset, version) for asset, version in last.items() if version is not None]
    waiting += [named for artifacts in registered for named in artifacts.items()]
    waiting += [(asset, version) for asset, version in present if asset == "audit_bundle"]
    kept: set[tuple[str, str]] = set()
    while waiting:
        asset, version = waiting.pop()
        if (asset, version[:16]) in kept:
            continue
        try:
            if store.has(study, asset, version):  # sources have versions but no folder
                kept.add((asset, version[:16]))
                waiting += store.manifest(study, asset, version)["inputs"].items()
        except (ValueError, KeyError):
            path = store.address(study, asset, version)
            raise InputError(f"{path}/{MANIFEST}: cannot be read; restore it, or remove {path} and run again") from None
    return kept


class _RemoteArtifacts:
    """The artifacts of a study below a URL as they were when this was made. The study's lock is to be held: an object that is
    being uploaded has no manifest yet."""

    def __init__(self, store: ArtifactStore, study: str) -> None:
        assert store.remote is not None
        self.remote: Remote = store.remote
        self.study = study
        self.sizes = self.remote.keys(f"objects/{study}")
        self.named: dict[tuple[str, str], set[str]] = {}  # asset and version -> keys of its objects
        for asset, version in store.versions(study):
            self.named[asset, version] = self._objects(asset, version)

    def unreferenced(self, kept: Set[tuple[str, str]], before: float) -> Iterator[tuple[str, str, int]]:
        """Kind, address and share of bytes of artifacts that are not in `kept`, and of objects of no artifact that were
        written `before` then (seconds since the epoch)."""
        uses = Counter(key for keys in self.named.values() for key in keys)
        for (asset, version), keys in self.named.items():
            if (asset, version) not in kept:
                size = sum(self.sizes.get(key, 0) // uses[key] for key in keys)
                yield asset, self.remote.address(artifact_key(self.study, asset, version)), size
        for key in sorted(self.sizes.keys() - uses.keys()):
            if self.remote.modified(key) < before:
                yield "half written", self.remote.address(key), self.sizes[key]

    def remove(self, address: str) -> None:
        """Delete an object, or an artifact with the objects that no other one names."""
        key = address.removeprefix(f"{self.remote.url}/")
        if key.startswith("objects/"):
            self.remote.delete(key)
            return
        asset, version = key.split("/")[2:]
        self.remote.delete(f"{key}/{MANIFEST}")
        keys = self.named.pop((asset, version))
        for unused in sorted(keys.difference(*self.named.values())):
            self.remote.delete(unused)

    def _objects(self, asset: str, version: str) -> set[str]:
        key = f"{artifact_key(self.study, asset, version)}/{MANIFEST}"
        try:
            files = json.loads(self.remote.get(key) or b"")["files"]
            return {f"objects/{self.study}/{entry['sha256']}" for entry in files}
        except (ValueError, KeyError):
            raise InputError(
                f"{self.remote.address(key)}: cannot be read; restore it, or remove it and run again"
            ) from None


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
        sync(path.parent)
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
