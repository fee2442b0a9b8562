"""Who may become champion, and who is: the registry's aliases against the decision log.

A decision is written in this order: the log, the alias in MLflow, the tag `lancet.decision` on the version. After a crash
in between, the log names a champion that the registry does not have yet; the old one stays in use, `lancet decisions`
says so, and giving the command again puts it right. Where alias and log differ although the tag is there, the alias was
moved by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lancet_pipeline.errors import InputError, IntegrityError, LancetError
from lancet_pipeline.evaluation.gates import Gate
from lancet_pipeline.governance.decisions import (
    PIPELINE,
    append_decision,
    decision_file,
    decision_lock,
    read_decisions,
    timestamp,
)
from lancet_pipeline.governance.readiness import evaluate
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import BUNDLE_TAG, RegisteredVersion, Tracking, registry_name

DECISION_TAG = "lancet.decision"


class Refused(LancetError):
    """A decision that the rules do not allow; it is in the log."""


@dataclass(frozen=True)
class Standing:
    """Log and registry of a study side by side.

    champion, candidate: versions that have the alias. approved: whether the champion has an approval that still holds.
    approver, expires: of the champion's last approval. problems: what does not fit, with the remedy.
    """

    study: str
    candidate: int | None = None
    champion: int | None = None
    approved: bool = False
    approver: str | None = None
    expires: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def next_command(self) -> str:
        """What to type next."""
        if self.candidate is None and self.champion is None:
            return f"lancet run {self.study}"
        if self.problems or (self.candidate is not None and self.candidate != self.champion):
            version = f" --version {self.champion}" if self.candidate is None else ""
            return f"lancet promote {self.study} --approver NAME --reason TEXT{version}"
        return f"lancet decisions {self.study}"


@dataclass
class Request:
    """A decision that a person asks for. version: of the registry; the candidate, or the champion before this one, otherwise.
    accepted: gates that were not shown or not measured, and that the person takes upon themselves.

    Raises:
        InputError: nobody decides, or no reason is given.
    """

    approver: str
    reason: str
    version: int | None = None
    accepted: Sequence[str] = ()
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.approver, self.reason = self.approver.strip(), self.reason.strip()
        if not self.approver or self.approver.lower() == PIPELINE:
            raise InputError(f"--approver is {self.approver!r}: name the person who decides")
        if not self.reason:
            raise InputError("--reason is blank: say why, in words that a reviewer can follow")

    def values(self, chosen: RegisteredVersion, bundle: str, gates: Mapping[str, bool]) -> dict[str, Any]:
        """What the log keeps of it, but for its action and its end."""
        about = {"model": chosen.name, "version": chosen.number, "bundle": bundle, "gates": dict(gates)}
        return {**about, "moment": self.moment, "actor": self.approver, "reason": self.reason}


def record_registration(
    home: Path, tracking: Tracking, version: RegisteredVersion, study: str, gates: Sequence[Gate]
) -> None:
    """Enter a new version into the log, and only then make it the candidate."""
    held = sum(gate.passed for gate in gates)
    with decision_lock(home, study):
        entry = append_decision(
            home,
            study,
            action="registered",
            actor=PIPELINE,
            reason=f"a corrected model was evaluated: {held} of {len(gates)} gates passed",
            model=version.name,
            version=version.number,
            bundle=version.tags.get(BUNDLE_TAG, ""),
            gates={gate.name: gate.passed for gate in gates},
        )
        tracking.set_alias(study, "candidate", version.number)
        tracking.tag_version(study, version.number, DECISION_TAG, entry["hash"])


def promote(
    home: Path,
    tracking: Tracking,
    study: str,
    request: Request,
    valid_days: int,
    trust: Trust = Trust(),  # noqa: B008, a frozen value
    artifacts: str = "",
) -> dict[str, Any]:
    """Make the candidate, or the version asked for, the champion for `valid_days`. The present champion's approval is renewed
    so, too.

    Args:
        trust: what the bundle's signature is held against.
        artifacts: URL of the store of artifacts; empty where `home` is.

    Returns:
        The entry of the log.

    Raises:
        Refused: a gate or check does not hold, or the evidence is not whole; in the log.
        InputError: no such version, a gate that cannot be accepted, or MLflow is lost: nothing was decided.
        IntegrityError: the log is broken.
    """
    store = ArtifactStore(home, artifacts)
    with decision_lock(home, study):
        _, versions = _consistent(home, tracking, study)
        number = request.version
        chosen = _candidate(store, versions, study) if number is None else _version(versions, number, study)
        found = evaluate(store, study, chosen.tags, trust, request.accepted)
        values = request.values(chosen, chosen.tags.get(BUNDLE_TAG, ""), found.gates)
        if found.notes:
            values["reason"] += f" ({'; '.join(found.notes)})"
        if found.faults:
            why = "; ".join(found.faults)
            remedy = (
                f"correct the model again (`lancet run {study}`), take a gate that was not shown or not measured upon "
                f"yourself (`--accept GATE`), or see `lancet decisions {study}`"
            )
            raise _refusal(
                home, tracking, study, why, f"version {chosen.number} was not promoted: {why}; {remedy}", values
            )
        expires = timestamp(request.moment + timedelta(days=valid_days))
        return _decide(home, tracking, study, action="promoted", expires=expires, **values)


def rollback(home: Path, tracking: Tracking, study: str, request: Request) -> dict[str, Any]:
    """Make the champion before this one champion again, or the version asked for, which was approved once. Raises as
    `promote`.

    Gates and checks are not looked at again: they held when it was approved, and a rollback must be possible when the
    artifacts are not at hand.
    """
    with decision_lock(home, study):
        entries, versions = _consistent(home, tracking, study)
        number = _previous(entries, study) if request.version is None else request.version
        chosen = _version(versions, number, study)
        approval = _approval(entries, number)
        again = f"lancet promote {study} --version {number} --approver NAME --reason TEXT"
        if approval is None:
            raise InputError(
                f"study '{study}': version {number} was never approved, so there is nothing to go back to; promote it: {again}"
            )
        values = request.values(chosen, approval["bundle"], approval["gates"])
        if _expired(approval, request.moment):
            why = f"the approval of version {number} expired at {approval['expires']}"
            raise _refusal(home, tracking, study, why, f"{why}; promote it again: {again}", values)
        return _decide(home, tracking, study, action="rolled_back", expires=approval["expires"], **values)


def standing(home: Path, tracking: Tracking, study: str, now: datetime | None = None) -> Standing:
    """Who is champion and who candidate, and whether log and registry agree.

    Raises:
        InputError: MLflow is lost.
        IntegrityError: the log is broken, or its end is missing.
    """
    entries, versions = _consistent(home, tracking, study)
    now = now or datetime.now(UTC)
    holders = {alias: version.number for version in versions for alias in version.aliases}
    candidate, champion = holders.get("candidate"), holders.get("champion")
    last = next((entry for entry in reversed(entries) if entry["action"] in ("promoted", "rolled_back")), None)
    problems, interrupted = [], False
    if last is not None and last["version"] != champion:
        target = next((version for version in versions if version.number == last["version"]), None)
        interrupted = target is not None and not _carries(target, entries, last)
        actual = "none" if champion is None else f"version {champion}"
        why = (
            "the command was interrupted; give it again" if interrupted else "the alias was moved by hand; promote anew"
        )
        problems.append(
            f"decision {last['sequence']} made version {last['version']} champion, in the registry {actual} is: {why}"
        )
    approval = _approval(entries, champion) if champion is not None else None
    approved = approval is not None and not _expired(approval, now) and (interrupted or not problems)
    if champion is not None and approval is None:
        problems.append(f"champion version {champion} has no approval: its alias was not set by `lancet promote`")
    elif approval is not None and _expired(approval, now):
        problems.append(f"the approval of champion version {champion} expired at {approval['expires']}")
    approver, expires = (approval["actor"], approval["expires"]) if approval else (None, None)
    return Standing(study, candidate, champion, approved, approver, expires, problems)


def _consistent(home: Path, tracking: Tracking, study: str) -> tuple[list[dict[str, Any]], list[RegisteredVersion]]:
    """Log and registry, once the log has every decision that the registry's tags name."""
    entries, versions = read_decisions(home, study), tracking.registered(study)
    known = {entry["hash"] for entry in entries}
    for version in versions:
        carried = version.tags.get(DECISION_TAG)
        if carried is not None and carried not in known:
            raise IntegrityError(
                f"{decision_file(home, study)}: does not have the decision {carried[:16]} that version {version.number} of "
                f"{version.name} carries in the registry: its end was removed, or it was written anew; restore it from a copy"
            )
    return entries, versions


def _version(versions: Sequence[RegisteredVersion], number: int, study: str) -> RegisteredVersion:
    for version in versions:
        if version.number == number:
            return version
    known = ", ".join(str(version.number) for version in versions) or "none"
    raise InputError(
        f"study '{study}': the registry has no version {number} of {registry_name(study)}; it has: {known}"
    )


def _candidate(store: ArtifactStore, versions: Sequence[RegisteredVersion], study: str) -> RegisteredVersion:
    """The version with the alias, where it is the one that the last run stands for."""
    found = next((version for version in versions if "candidate" in version.aliases), None)
    if found is None:
        raise InputError(f"study '{study}': the registry has no candidate of it; run `lancet run {study}` first")
    current = store.current(study, "registered_model")
    if current is not None and current != found.artifacts.get("registered_model"):
        same = [v.number for v in versions if v.artifacts.get("registered_model") == current]
        remedy = " or ".join(f"--version {number}" for number in (*same[-1:], found.number))
        raise InputError(
            f"study '{study}': the candidate, version {found.number}, is not of the last run, whose data or settings were "
            f"those of an earlier one; say which version is meant: {remedy}"
        )
    return found


def _refusal(home: Path, tracking: Tracking, study: str, why: str, told: str, values: Mapping[str, Any]) -> Refused:
    """Enter a refusal into the log, and return the error that tells it."""
    reason = f"{values['reason']} (refused: {why})"
    entry = append_decision(home, study, **{**values, "action": "refused", "reason": reason})
    tracking.tag_version(study, entry["version"], DECISION_TAG, entry["hash"])
    return Refused(f"study '{study}': {told}")


def _decide(home: Path, tracking: Tracking, study: str, **values: Any) -> dict[str, Any]:
    """Enter a decision into the log, make its version champion, and return the entry."""
    entry = append_decision(home, study, **values)
    try:
        tracking.set_alias(study, "champion", entry["version"])
        tracking.tag_version(study, entry["version"], DECISION_TAG, entry["hash"])
    except InputError as error:
        raise InputError(
            f"{error}. Decision {entry['sequence']} is in the log, but the registry may not have it: the last champion "
            "stays until the command is given again"
        ) from error
    return entry


def _approval(entries: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any] | None:
    """The last approval of a version."""
    return next((e for e in reversed(entries) if e["action"] == "promoted" and e["version"] == number), None)


def _expired(approval: Mapping[str, Any], now: datetime) -> bool:
    return datetime.fromisoformat(approval["expires"]) <= now


def _previous(entries: Sequence[Mapping[str, Any]], study: str) -> int:
    """The champion before the present one: what was promoted last, without what was rolled back since."""
    if not entries:
        raise InputError(f"study '{study}': nothing was decided on it in this home; `lancet run {study}` comes first")
    champions: list[int] = []
    for entry in entries:
        number = entry["version"]
        if entry["action"] == "rolled_back" and number in champions:
            while champions[-1] != number:
                champions.pop()
        elif entry["action"] in ("promoted", "rolled_back") and champions[-1:] != [number]:
            champions.append(number)
    if len(champions) < 2:
        raise InputError(
            f"study '{study}': there is no champion before this one; name a version that was approved: --version N"
        )
    return champions[-2]


def _carries(version: RegisteredVersion, entries: Sequence[Mapping[str, Any]], decision: Mapping[str, Any]) -> bool:
    """Whether the registry heard of a decision: the version's tag names it, or a later one on the same version."""
    tag = version.tags.get(DECISION_TAG)
    heard = next((entry["sequence"] for entry in entries if entry["hash"] == tag), 0)
    return heard >= decision["sequence"]
