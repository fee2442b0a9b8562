"""The decision log of a study: who decided what on which model, and why.

    HOME/decisions/STUDY.jsonl      one entry a line, oldest first, each with the hash of the one before

What the chain shows: an entry that was edited, removed, put in, or moved, unless every later entry was written anew with
it. What it cannot show: entries missing at the end, and a log that somebody who may write the file made up as a whole.
So the hash of a decision is kept in MLflow's registry too (tag `lancet.decision` of the model version), and bundles
carry a copy. Names are what people typed: the log does not prove who they are; who may run the commands is decided by
the system's accounts.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.files import sync
from lancet_pipeline.store.locks import file_lock

ACTIONS = ("registered", "promoted", "refused", "rolled_back")
PIPELINE = "pipeline"
FIRST = "0" * 64
FIELDS = (
    *("sequence", "time", "study", "action", "actor", "reason", "model", "version", "bundle", "gates", "expires"),
    *("previous", "hash"),
)
_WAIT_SECONDS = 20


def decision_file(home: Path, study: str) -> Path:
    return Path(home) / "decisions" / f"{study}.jsonl"


def decision_lock(home: Path, study: str) -> AbstractContextManager[bool]:
    """One decision on a study at a time, in all processes; the same process may hold it more than once.

    Apart from the lock of runs, so that a champion can be rolled back while a correction is going on.

    Raises:
        InputError: another decision does not end.
    """
    path = decision_file(home, study).with_suffix(".lock")
    busy = InputError(f"study '{study}': another decision is being made ({path}); try again when it is done")
    return file_lock(path, _WAIT_SECONDS, busy)


def read_decisions(home: Path, study: str) -> list[dict[str, Any]]:
    """Every decision on a study, oldest first, once the chain holds; empty where none was made.

    Returns:
        Dicts of `FIELDS`: sequence (1, 2, ...), time and expires (ISO 8601, UTC; expires None where the action approves
        nothing), action (one of `ACTIONS`), actor, reason, model (name in the registry), version (int), bundle (SHA-256
        of the audit bundle's manifest), gates (name -> whether it held), previous and hash (64 hex digits).

    Raises:
        IntegrityError: names the first line that does not fit.
    """
    path = decision_file(home, study)
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    if lines.pop() != b"":
        raise IntegrityError(
            f"{path}: line {len(lines) + 1}: half-written, as an interrupted command leaves it; nothing was decided by it: "
            "delete this last line, and give the command again"
        )
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if fault := _fault(line, study, number, entries[-1]["hash"] if entries else FIRST):
            raise IntegrityError(
                f"{path}: line {number}: {fault}; restore the log from a copy (audit bundles hold one)"
            )
        entries.append(json.loads(line))
    return entries


def append_decision(
    home: Path, study: str, *, expires: str | None = None, moment: datetime | None = None, **decided: Any
) -> dict[str, Any]:
    """Add one decision, on the disk when this returns, and return it.

    Args:
        decided: action, actor, reason, model, version, bundle and gates, as in `read_decisions`.

    Raises:
        IntegrityError: the log is broken; nothing is added to it then.
        InputError: the log cannot be written; it is as it was then.
    """
    assert decided["action"] in ACTIONS, decided["action"]
    with decision_lock(home, study):
        entries = read_decisions(home, study)
        entry: dict[str, Any] = {
            "sequence": len(entries) + 1,
            "time": timestamp(moment or datetime.now(UTC)),
            "study": study,
            **decided,
            "expires": expires,
            "previous": entries[-1]["hash"] if entries else FIRST,
        }
        entry["hash"] = _hash(entry)
        assert entry.keys() == set(FIELDS), entry.keys()
        _append(decision_file(home, study), _canonical(entry) + b"\n")
    return entry


def timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _fault(line: bytes, study: str, number: int, previous: str) -> str | None:
    """What is wrong with the line that stands at `number`; None where it fits."""
    try:
        entry = json.loads(line, parse_constant=_no_number)
    except ValueError:
        return "is no JSON: it was edited"
    if not isinstance(entry, dict) or set(entry) != set(FIELDS):
        return f"does not have the fields {', '.join(FIELDS)}: it was edited"
    if entry["hash"] != _hash({name: value for name, value in entry.items() if name != "hash"}):
        return f"entry {entry['sequence']} was edited: its hash is not that of its content"
    if line != _canonical(entry):
        return f"entry {entry['sequence']} was edited: it is not written as entries are"
    if entry["study"] != study:
        return f"entry {entry['sequence']} belongs to study '{entry['study']}'"
    if entry["sequence"] != number or entry["previous"] != previous:
        return f"entry {entry['sequence']} does not follow what stands before it: an entry was removed, put in or moved"
    return None


def _no_number(name: str) -> None:
    raise ValueError(name)


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(entry)).hexdigest()


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = file.write(line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise InputError(
                f"{path}: cannot be written ({error}); free some space, and give the command again"
            ) from error
    if size == 0:
        sync(path.parent)
