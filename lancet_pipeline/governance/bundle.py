"""The audit bundle: a directory that carries the evidence of one correction and can be checked offline.

    manifest.json        format, study, versions, seeds, settings, environment, SHA-256 and size of every other file
    manifest.sha256      SHA-256 of manifest.json
    model.sig            the signature over all files but itself (OpenSSF model signing)
    public_key.pem       the signer's public key
    study.json lineage.json figures.json correction_curve.json decisions.json
    samples.parquet queries.parquet pairs.parquet generations.parquet traces.parquet
    model_card.md report.html bom.cdx.json plots/*.png
    data_checks/*.json data_docs/index.html

The enclosed key shows that the bundle is whole, not who wrote it: a reviewer compares its fingerprint with one known
from elsewhere, or gives the key to `lancet verify`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_jsonable_python

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.data.expected_answers import EXPECTED
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.traced_outputs import TOKEN, TRACES
from lancet_pipeline.files import hash_files, sha256, whole_or_absent
from lancet_pipeline.governance.bom import bill_of_materials
from lancet_pipeline.governance.data_docs import render_data_docs
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.model_card import model_card
from lancet_pipeline.governance.report import render_report
from lancet_pipeline.governance.signing import PUBLIC_KEY, enclosed_key, sign_folder
from lancet_pipeline.governance.verification import DIGEST, FORMAT, MANIFEST, inspect_bundle


def _columns(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, kind) for name in names]


_TEXT, _NUMBER, _FLAG = pa.string(), pa.float64(), pa.bool_()
_ANSWER = _columns(_TEXT, "sample_id", "prompt", "response", "verdict")
_TABLES = {
    "samples": [
        *_columns(_TEXT, "role", "sample_id"),
        ("score", _NUMBER),
        *_columns(_TEXT, "source", "category"),
        ("is_safe", _FLAG),
        *_columns(_TEXT, "prompt", "response"),
        ("tokens", pa.list_(TOKEN)),
    ],
    "queries": _ANSWER,
    "pairs": [
        *_columns(_TEXT, "preferred_id", "dispreferred_id"),
        *_columns(_NUMBER, "preferred_score", "dispreferred_score", "weight"),
    ],
    "generations": [
        *_columns(_TEXT, "report", "model", "decoding", "wording"),
        *_ANSWER,
        *_columns(_FLAG, "harmful", "refusing"),
        *_columns(pa.list_(_TEXT), *EXPECTED),
    ],
    "traces": list(TRACES),
}


def write_bundle(evidence: Evidence, folder: Path, signing: Signing) -> dict[str, Any]:
    """Write, sign and verify the bundle, whole or not at all. The same evidence and key give the same bytes of
    everything but the signature.

    Numbers that are not finite become null in the JSON files.

    Args:
        folder: does not exist yet, or is empty.

    Returns:
        The manifest.

    Raises:
        InputError: `folder` holds something, cannot be written, or the disk is full; the signer cannot be used; a
            plot's or asset's name cannot be a file name.
    """
    _refuse_occupied(folder)
    for name in (*evidence.plots, *evidence.data_checks):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InputError(f"'{name}': the name of a plot or asset may hold letters, digits, '_', '-' and '.' only")
    public_key = enclosed_key(signing)  # a signer that cannot be used is found before anything is written
    try:
        with whole_or_absent(folder) as work:  # of the same name, which the signature holds
            _write_files(evidence, work)
            if public_key is not None:
                (work / PUBLIC_KEY).write_bytes(public_key)
            manifest = _manifest(evidence, signing) | {"files": hash_files(work)}
            _write_json(work / MANIFEST, manifest)
            _write_text(work / DIGEST, sha256(work / MANIFEST) + "\n")
            sign_folder(work, signing)
            # With the key at hand; others' certificates and identities are the reader's to check.
            return inspect_bundle(work).manifest if signing.signer in ("key", "pkcs11") else manifest
    except OSError as error:
        raise InputError(
            f"{folder}: the bundle cannot be written ({error.strerror or error}); nothing was left there; free some "
            "space, or choose another directory"
        ) from error


def _refuse_occupied(folder: Path) -> None:
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise InputError(f"{folder}: is no directory; give one that is empty or not there yet")
    occupied = min((path.name for path in folder.iterdir()), default=None) if folder.is_dir() else None
    if occupied is not None:
        raise InputError(f"{folder}: holds {occupied} already; give a directory that is empty or not there yet")


def _write_files(evidence: Evidence, folder: Path) -> None:
    _write_json(folder / "study.json", evidence.study)
    _write_json(folder / "lineage.json", evidence.lineage)
    parts = ("figures", "gates", "selection", "influence", "judge")
    _write_json(folder / "figures.json", {part: getattr(evidence, part) for part in parts})
    _write_json(folder / "correction_curve.json", evidence.correction_curve)
    _write_json(folder / "decisions.json", evidence.decisions)
    _write_json(folder / "bom.cdx.json", bill_of_materials(evidence))
    for name, columns in _TABLES.items():
        rows = pa.Table.from_pylist(getattr(evidence, name), schema=pa.schema(columns))
        unused = [c for c in EXPECTED if c in rows.column_names and rows[c].null_count == rows.num_rows]
        pq.write_table(rows.drop_columns(unused), folder / f"{name}.parquet")
    _write_text(folder / "model_card.md", model_card(evidence))
    _write_text(folder / "report.html", render_report(evidence))
    for name, png in evidence.plots.items():
        _write(folder / "plots" / f"{name}.png", png)
    for asset, result in evidence.data_checks.items():
        _write_json(folder / "data_checks" / f"{asset}.json", result)
    if evidence.data_checks:
        _write_text(folder / "data_docs" / "index.html", render_data_docs(evidence))


def _manifest(evidence: Evidence, signing: Signing) -> dict[str, Any]:
    study = evidence.study
    settings = ("description", "model", "queries", "linfac", "pareto", "correction", "evaluation", "governance")
    return {
        "format": FORMAT,
        "signer": signing.signer,
        "study": study["name"],
        "versions": evidence.versions,
        "seeds": {"study": study.get("seed")},
        "settings": {key: study[key] for key in settings if key in study},
        "gates": {gate["name"]: gate["passed"] for gate in evidence.gates},
        "environment": evidence.environments(),
    }


def _write_json(path: Path, value: Any) -> None:
    finite = to_jsonable_python(value, inf_nan_mode="null")
    _write_text(path, json.dumps(finite, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    _write(path, text.encode("utf-8"))  # bytes, since text mode would write other line ends on other systems


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
