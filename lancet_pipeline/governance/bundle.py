"""The audit bundle: a directory that carries the evidence of one correction and can be checked offline.

    manifest.json        format, study, versions, seeds, settings, environment, SHA-256 and size of every other file
    manifest.sha256      SHA-256 of manifest.json
    study.json lineage.json figures.json correction_curve.json
    samples.parquet queries.parquet pairs.parquet generations.parquet
    model_card.md report.html plots/*.png

The digest shows accidents and careless edits. Who can rewrite the whole directory can also rewrite the digest, so a
reviewer compares it with one kept elsewhere (the artifact store and the registry keep it).
"""

import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.artifacts import hash_files, sha256, verify_files
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.model_card import model_card
from lancet_pipeline.governance.report import render_report

FORMAT = 1
MANIFEST, DIGEST = "manifest.json", "manifest.sha256"

_TOKEN = pa.struct([("position", pa.int32()), ("token", pa.string()), ("share", pa.float64())])
_TEXTS = [(name, pa.string()) for name in ("sample_id", "prompt", "response", "verdict")]
_TABLES: dict[str, pa.Schema] = {
    "samples": pa.schema(
        [
            *[(name, pa.string()) for name in ("role", "sample_id")],
            ("score", pa.float64()),
            *[(name, pa.string()) for name in ("source", "category")],
            ("is_safe", pa.bool_()),
            *[(name, pa.string()) for name in ("prompt", "response")],
            ("tokens", pa.list_(_TOKEN)),
        ]
    ),
    "queries": pa.schema(_TEXTS),
    "pairs": pa.schema(
        [
            *[(name, pa.string()) for name in ("preferred_id", "dispreferred_id")],
            *[(name, pa.float64()) for name in ("preferred_score", "dispreferred_score", "weight")],
        ]
    ),
    "generations": pa.schema(
        [
            *[(name, pa.string()) for name in ("report", "model", "decoding", "wording")],
            *_TEXTS,
            *[(name, pa.bool_()) for name in ("harmful", "refusing")],
        ]
    ),
}
_ALWAYS = {
    *("study.json", "lineage.json", "figures.json", "correction_curve.json", "model_card.md", "report.html"),
    *(f"{name}.parquet" for name in _TABLES),
}


def write_bundle(evidence: Evidence, folder: Path) -> None:
    """Write the bundle into `folder`. The same evidence gives the same bytes.

    Numbers that are not finite become null in the JSON files.

    Raises:
        InputError: `folder` is missing or not empty, or a plot's name cannot be a file name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; create it before writing a bundle")
    occupied = min((path.name for path in folder.iterdir()), default=None)
    if occupied is not None:
        raise InputError(f"{folder}: holds {occupied} already; give an empty directory")
    for name in evidence.plots:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InputError(f"plot '{name}': a plot's name may hold letters, digits, '_', '-' and '.' only; rename it")

    _write_json(folder / "study.json", evidence.study)
    _write_json(folder / "lineage.json", evidence.lineage)
    parts = ("figures", "gates", "selection", "influence", "judge")
    _write_json(folder / "figures.json", {part: getattr(evidence, part) for part in parts})
    _write_json(folder / "correction_curve.json", evidence.correction_curve)
    for name, schema in _TABLES.items():
        rows: Sequence[Mapping[str, Any]] = getattr(evidence, name)
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / f"{name}.parquet")
    _write_text(folder / "model_card.md", model_card(evidence))
    _write_text(folder / "report.html", render_report(evidence))
    if evidence.plots:
        (folder / "plots").mkdir()
    for name, png in evidence.plots.items():
        (folder / "plots" / f"{name}.png").write_bytes(png)
    _write_json(folder / MANIFEST, _manifest(evidence) | {"files": hash_files(folder)})
    _write_text(folder / DIGEST, sha256(folder / MANIFEST) + "\n")


def verify_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, once every file in it is what the manifest says.

    Raises:
        IntegrityError: names the first thing that does not fit, relative to the bundle.
        InputError: `folder` is no bundle, or one of a format that this version does not know.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give the directory of an audit bundle")
    if not os.path.lexists(folder / DIGEST):
        # An artifact that holds a bundle has a manifest of its own, so the digest is what tells the two apart.
        inner = next((path.parent for path in sorted(folder.glob(f"*/{DIGEST}"))), None)
        if inner or not os.path.lexists(folder / MANIFEST):
            hint = f"did you mean {inner}?" if inner else "give the directory that `lancet run` wrote as audit_bundle"
            raise InputError(f"{folder}: no audit bundle: it has no {DIGEST}; {hint}")
    manifest = _trusted_manifest(folder)
    _refuse_special_files(folder)
    listed = {entry["path"] for entry in manifest["files"]}
    for name in sorted(_ALWAYS - listed):
        raise _unfit(folder, f"{MANIFEST}: does not list {name}, which every bundle has; get the bundle again")
    try:
        verify_files(folder, manifest["files"], {MANIFEST, DIGEST})
    except IntegrityError as error:
        raise _unfit(folder, str(error).removeprefix(f"{folder}{os.sep}")) from None
    return manifest


def _manifest(evidence: Evidence) -> dict[str, Any]:
    study = evidence.study
    settings = ("description", "model", "queries", "linfac", "pareto", "correction", "evaluation", "governance")
    return {
        "format": FORMAT,
        "study": study["name"],
        "versions": evidence.versions,
        "seeds": {"study": study.get("seed")},
        "settings": {key: study[key] for key in settings if key in study},
        "gates": {gate["name"]: gate["passed"] for gate in evidence.gates},
        "environment": evidence.environments(),
    }


def _trusted_manifest(folder: Path) -> dict[str, Any]:
    for name in (MANIFEST, DIGEST):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _unfit(folder, f"{name}: is no plain file; get the bundle again")
        if not path.exists():
            raise _unfit(folder, f"{name}: missing; get the bundle again")
    promised = (folder / DIGEST).read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", promised):
        raise _unfit(folder, f"{DIGEST}: does not hold a SHA-256 digest; get the bundle again")
    if sha256(folder / MANIFEST) != promised.decode():
        raise _unfit(folder, f"{MANIFEST}: its bytes do not have the digest in {DIGEST}; get the bundle again")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except ValueError:
        raise _unfit(folder, f"{MANIFEST}: is no JSON; get the bundle again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise _unfit(folder, f"{MANIFEST}: names no bundle format; get the bundle again")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: bundle format {manifest['format']}, where this version of LANCET reads {FORMAT}; "
            "use a version that matches"
        )
    files = manifest.get("files")
    if not isinstance(files, list) or not all(_is_entry(entry) for entry in files):
        raise _unfit(folder, f"{MANIFEST}: its list of files is broken; get the bundle again")
    return manifest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("path"), str) and isinstance(entry.get("sha256"), str)


def _refuse_special_files(folder: Path) -> None:
    """A link, pipe, socket or empty directory has no bytes that a hash could stand for."""
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISDIR(mode):
            if not any(path.iterdir()):
                raise _unfit(folder, f"{name}: an empty directory, which no bundle has; remove it")
        elif not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
            raise _unfit(folder, f"{name}: is {kind}; a bundle holds plain files only, get it again")


def _unfit(folder: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{folder}: {what}")


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(_finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # bytes, since text mode would write other line ends on other systems


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
