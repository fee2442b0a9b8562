"""Check an audit bundle with nothing but the bundle and, better, the signer's public key."""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.files import sha256, verify_files
from lancet_pipeline.governance.keys import load_public_key
from lancet_pipeline.governance.signature import Trust, check_signature, signed_digest
from lancet_pipeline.governance.signing import SIGNATURE

FORMAT = 2
MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
TABLES = ("samples", "queries", "pairs", "generations", "traces")
ALWAYS = {
    *("study.json", "lineage.json", "figures.json", "correction_curve.json", "decisions.json"),
    *("model_card.md", "report.html", "bom.cdx.json"),
    *(f"{name}.parquet" for name in TABLES),
}


@dataclass(frozen=True)
class Verified:
    """A bundle that fits. fingerprint: of the key that its signature was held against, None where it is not a key's."""

    manifest: dict[str, Any]
    signer: str
    fingerprint: str | None


def verify_bundle(folder: Path, key: Path | None = None) -> dict[str, Any]:
    """The manifest of a bundle, once it fits as `inspect_bundle` says. `key`: the signer's public key."""
    return inspect_bundle(folder, Trust(key=key)).manifest


def inspect_bundle(folder: Path, trust: Trust = Trust()) -> Verified:  # noqa: B008, a frozen value
    """Check the manifest, its digest, every file against it, and the signature over all of them.

    Raises:
        IntegrityError: names the first thing that does not fit, relative to the bundle.
        InputError: `folder` is no bundle, or one of a format that this version does not read; `trust` cannot be used.
    """
    _refuse_other_things(folder)
    if trust.key is not None:
        load_public_key(trust.key)  # a key that is none is the caller's mistake, whatever the bundle
    try:
        _refuse_special_files(folder)
        manifest = _trusted_manifest(folder)
        listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
        for name in sorted(ALWAYS - listed.keys()):
            raise IntegrityError(f"{MANIFEST}: does not list {name}, which every bundle has; get the bundle again")
        _check_files(folder, manifest["files"])
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and not any(path.iterdir()):
                name = path.relative_to(folder).as_posix()
                raise IntegrityError(f"{name}: an empty directory, which no bundle has; remove it")
        digests = {**listed, MANIFEST: sha256(folder / MANIFEST), DIGEST: sha256(folder / DIGEST)}
        signer = str(manifest.get("signer"))
        return Verified(manifest, signer, check_signature(folder, signer, digests, trust))
    except IntegrityError as error:
        raise IntegrityError(f"{folder}: {error}") from None


def _refuse_other_things(folder: Path) -> None:
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the directory of an audit bundle")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give the directory of an audit bundle")
    if not os.path.lexists(folder / DIGEST):
        # An artifact that holds a bundle has a manifest of its own, so the digest is what tells the two apart.
        inner = next((path.parent for path in sorted(folder.glob(f"*/{DIGEST}"))), None)
        if inner or not os.path.lexists(folder / MANIFEST):
            hint = (
                f"did you mean {inner}?"
                if inner
                else "give the directory that `lancet bundle` or `lancet run` wrote; while one is being written it has "
                "another name, which begins with a dot"
            )
            raise InputError(f"{folder}: no audit bundle: it has no {DIGEST}; {hint}")


def _trusted_manifest(folder: Path) -> dict[str, Any]:
    for name in (MANIFEST, DIGEST):
        if not (folder / name).is_file():
            raise IntegrityError(f"{name}: missing; get the bundle again")
    promised = (folder / DIGEST).read_bytes()
    if not re.fullmatch(rb"[0-9a-f]{64}\n", promised):
        raise IntegrityError(f"{DIGEST}: does not hold a SHA-256 digest and a line's end alone; get the bundle again")
    actual = sha256(folder / MANIFEST)
    if actual != promised.decode().strip():
        if signed_digest(folder, MANIFEST) == actual:
            raise IntegrityError(f"{DIGEST}: is not the digest of {MANIFEST}, which was not changed; get it again")
        raise IntegrityError(f"{MANIFEST}: its bytes do not have the digest in {DIGEST}; get the bundle again")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except ValueError:
        raise IntegrityError(f"{MANIFEST}: is no JSON; get the bundle again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise IntegrityError(f"{MANIFEST}: names no bundle format; get the bundle again")
    if manifest["format"] != FORMAT:
        older = "an earlier version wrote it, unsigned; `lancet run STUDY` writes a new one"
        remedy = older if manifest["format"] == 1 else "use a version that matches"
        raise InputError(
            f"{folder}: bundle format {manifest['format']}, where this version of LANCET reads {FORMAT}; {remedy}"
        )
    try:
        broken = not all(isinstance(entry[key], str) for entry in manifest["files"] for key in ("path", "sha256"))
    except (KeyError, TypeError):
        broken = True
    if broken:
        raise IntegrityError(f"{MANIFEST}: its list of files is broken; get the bundle again")
    return manifest


def _refuse_special_files(folder: Path) -> None:
    """A link, pipe or socket has no bytes that a hash could stand for."""
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
            raise IntegrityError(f"{name}: is {kind}; a bundle holds plain files only, get it again")


def _check_files(folder: Path, files: list[Mapping[str, Any]]) -> None:
    try:
        verify_files(folder, files, {MANIFEST, DIGEST, SIGNATURE})
    except IntegrityError as error:
        # The artifact store's remedies (run again) are not those of somebody who was handed a bundle.
        told = str(error).removeprefix(f"{folder}{os.sep}").partition(";")[0]
        raise IntegrityError(f"{told}; get the bundle again") from None
