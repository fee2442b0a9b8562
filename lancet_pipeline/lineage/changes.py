"""Detect changes of what a study reads, without an orchestrator: file states first, content only if these differ.

A fingerprint is made of file states (path, size, modification time, inode) and hub commits. It says that something may have
changed; versions by content say whether it has, so that a touched file costs one reading and no computation.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import DataSource, Study
from lancet_pipeline.data.readers import FORMATS
from lancet_pipeline.errors import InputError
from lancet_pipeline.files import digest
from lancet_pipeline.lineage.sources import hub_commit, source_versions
from lancet_pipeline.lineage.stages import TABLES, versions
from lancet_pipeline.models.loading import find_checkpoint

HUB_SECONDS = 300
"""Seconds for which the answer of the hub about a revision is taken as it was."""


@dataclass(frozen=True)
class Watch:
    """What is remembered of a study between two looks.

    read: fingerprint whose content was read last. pending: fingerprint of the last look, while it differs from `read`.
    known: digest of the versions of that content. changes: how often they changed. problem: why that content cannot be used.
    """

    read: str = ""
    pending: str = ""
    known: str = ""
    changes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Look:
    """One look at a study. versions: of everything, where new content was read and is valid; empty otherwise. problem:
    set where new content is not valid. reason: why there is nothing to do, in words."""

    watch: Watch
    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    reason: str = ""


@dataclass
class Hub:
    """Commits of revisions on the hub, asked at most every `HUB_SECONDS`; the last answer stands where it gives none.

    answers: `kind name@revision` -> [commit, time of asking]; kept between looks. ask: commit of (kind, name, revision).
    """

    ask: Callable[[str, str, str | None], str]
    answers: dict[str, list] = field(default_factory=dict)

    def commit(self, kind: str, name: str, revision: str | None) -> str:
        key = f"{kind} {name}@{revision or ''}"
        commit, asked = self.answers.get(key, ["", 0.0])
        if time.time() - asked >= HUB_SECONDS:
            with suppress(Exception):  # the hub client raises a dozen types of its own, and no answer is no change
                commit = self.ask(kind, name, revision)
            self.answers[key] = [commit, time.time()]
        return commit


def fingerprint(study: Study | None, place: Path, model_directories: Sequence[Path], hub: Hub) -> str:
    """Digest of the states of the study's file `place` and of every file, folder and hub revision that it reads (None: the
    file holds no study); no content is read. What is missing has a state of its own, so that a deletion is a change."""
    states: list = [_states(place)]
    if study is None:
        return digest(states)
    judge, model = study.evaluation.judge, study.model
    for source in (*(table.origin(study) for table in TABLES.values()), judge.validation):
        if source is not None and source.path is not None:
            states.append(_states(Path(source.path)))
        elif source is not None and source.hub is not None:
            states.append(hub.commit("dataset", source.hub, source.revision))
        if isinstance(source, DataSource):
            states += [_states(Path(path)) for path in source.apart_from]
    if judge.words is not None:
        states.append(_states(Path(judge.words)))
    embedding = study.influence.embedding_model if study.influence.method == "embeddings" else None
    for name, revision in ((model.checkpoint, model.revision), (judge.model, judge.revision), (embedding, None)):
        if name is not None:
            found = find_checkpoint(name, model_directories)
            absolute = Path(found).is_absolute()
            states.append(_states(Path(found), any_file=True) if absolute else hub.commit("model", found, revision))
    return digest(states)


def look(watch: Watch, seen: Callable[[], str], read: Callable[[], Mapping[str, str]]) -> Look:
    """Compare a study with what is remembered of it, and read it where it has changed and then held still for one look.

    Args:
        seen: its fingerprint now.
        read: the versions of everything; raises InputError where the content is not valid.
    """
    now = seen()
    if now == watch.read:
        return Look(replace(watch, pending=""), reason=watch.problem or "nothing changed")
    if now != watch.pending:
        return Look(replace(watch, pending=now), reason="a change is seen; it is read when it holds still")
    known, problem = {}, ""
    try:
        known = dict(read())
    except InputError as error:
        problem = str(error)
    after = seen()
    if after != now:
        return Look(replace(watch, pending=after), reason="it is being written; it is read when it holds still")
    watch = replace(watch, read=now, pending="", problem=problem)
    if problem:
        return Look(watch, problem=problem, reason=problem)
    now_known = digest(known)
    if now_known == watch.known:
        return Look(watch, reason="touched, with the content that it had")
    return Look(replace(watch, known=now_known, changes=watch.changes + 1), versions=known)


def known_versions(study: Study, model_directories: Sequence[Path]) -> dict[str, str]:
    """Versions of every source and asset of a study; reads and validates all its sources. Raises InputError."""
    return versions(study, source_versions(study, model_directories))


def to_json(watches: Mapping[str, Watch], hub: Hub) -> str:
    return json.dumps({"studies": {name: asdict(watch) for name, watch in watches.items()}, "hub": hub.answers})


def from_json(
    text: str | None, ask: Callable[[str, str, str | None], str] = hub_commit
) -> tuple[dict[str, Watch], Hub]:
    """What `to_json` wrote; nothing is remembered where there is no text, or one of another shape."""
    try:
        tree: dict[str, Any] = json.loads(text or "{}")
        watches = {name: Watch(**watch) for name, watch in tree.get("studies", {}).items()}
        return watches, Hub(ask, dict(tree.get("hub", {})))
    except (ValueError, TypeError, AttributeError):
        return {}, Hub(ask)


def _states(path: Path, *, any_file: bool = False) -> list:
    """[path, size, modification time in ns, inode] of a file, or of the data files of a folder (all its files where
    `any_file`)."""
    try:
        folder = path.is_dir()
        files = [file for file in path.iterdir() if any_file or file.suffix in FORMATS] if folder else [path]
    except OSError as error:
        return [[str(path), error.strerror]]
    return [_state(file) for file in sorted(files)]


def _state(path: Path) -> list:
    try:
        status = path.stat()
    except OSError as error:
        return [str(path), error.strerror]
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ino]
