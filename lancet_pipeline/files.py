"""Folders of files: hashed, compared with their hashes, and written whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lancet_pipeline.errors import InputError, IntegrityError

MANIFEST = "manifest.json"
TICK_NS = 20_000_000
"""Nanoseconds within which two changes of a file may have the same modification time."""

_digests: dict[tuple[int, ...], str] = {}


@contextmanager
def whole_or_absent(final: Path, *, replace: bool = False, mode: int = 0o777) -> Iterator[Path]:
    """A folder of the same name beside `final` to write into, which takes its place, synced to the disk, when the block
    ends well. Otherwise nothing is left.

    Args:
        replace: whether a folder that is there goes; without it only an empty one may be there.
        mode: permissions of the folder, less the umask.

    Raises:
        OSError: it cannot be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        work = staging / final.name
        work.mkdir(mode)
        yield work
        for path in (*work.rglob("*"), work):
            sync(path)
        if replace and final.exists():
            shutil.rmtree(final)
        work.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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


def state(path: Path) -> tuple[int, ...]:
    """Device, inode, size and modification time of a file, whatever its name: where they are the same, so are its bytes. A
    file that was just written has another state at each look, as a second change within the clock's tick would not show."""
    status = path.stat()
    moment = () if time.time_ns() - status.st_mtime_ns > TICK_NS else (time.monotonic_ns(),)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *moment


def sha256(path: Path) -> str:
    """SHA-256 of a file. Its bytes are read once a process, and again only where its `state` is another."""
    now = state(path)
    if now not in _digests:
        with path.open("rb") as file:
            _digests[now] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[now]


def digest(value: Any) -> str:
    """SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def free_bytes(path: Path) -> int:
    """What the disk of a path, which need not be there yet, has room for."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def take_over(source: Path, target: Path) -> None:
    """Every file below `source`, but for its manifest, below `target` too: hard links where the disk has them."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path != source / MANIFEST:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:  # a disk without hard links
                shutil.copyfile(path, copy)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(error: Exception, root: Path) -> InputError | None:
    """What to do about `error` where its cause is a full disk (libraries wrap that in errors of their own)."""
    full, free = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}, free_bytes(root)
    if not full and (free > 2**20 or not (isinstance(error, OSError) or "No space" in str(error))):
        return None
    return InputError(f"{root}: the disk is full ({free / 2**20:.0f} MiB free); free some space or use another --home")
