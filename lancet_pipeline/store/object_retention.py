"""What of a study may go below the URL of an artifact store: manifests that nothing refers to, and objects that no manifest
names. The study's lock is to be held: an object that is being uploaded has no manifest yet."""

import json
from collections import Counter
from collections.abc import Iterator, Set

from lancet_pipeline.errors import InputError
from lancet_pipeline.files import MANIFEST
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.objects import Remote


def remote_studies(store: ArtifactStore) -> list[str]:
    """Studies that have anything below the URL, in alphabetical order; none without one."""
    if store.remote is None:
        return []
    keys = [*store.remote.keys("artifacts"), *store.remote.keys("objects")]
    return sorted({key.split("/")[1] for key in keys})


class RemoteArtifacts:
    """The artifacts of a study below a URL as they were when this was made."""

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
                yield asset, self.remote.address(self._folder(asset, version)), size
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

    def _folder(self, asset: str, version: str) -> str:
        return f"artifacts/{self.study}/{asset}/{version}"

    def _objects(self, asset: str, version: str) -> set[str]:
        key = f"{self._folder(asset, version)}/{MANIFEST}"
        try:
            files = json.loads(self.remote.get(key) or b"")["files"]
            return {f"objects/{self.study}/{entry['sha256']}" for entry in files}
        except (ValueError, KeyError):
            raise InputError(
                f"{self.remote.address(key)}: cannot be read; restore it, or remove it and run again"
            ) from None
