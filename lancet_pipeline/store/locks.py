"""One run on a study at a time: in all processes of a home, and on all machines that share a store of objects.

The latter is a lease, which its holder renews:

    locks/STUDY/00000001.json    numbers only rise, and each is created by one machine only; the highest one counts

It spares machines the same work twice. That artifacts are whole does not rest on it.
"""

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.store.objects import Remote

LEASE_SECONDS = 300.0
"""A holder that has said nothing for so long is taken for lost. Clocks of machines must agree within this."""

log = logging.getLogger("lancet.locks")


class Busy(InputError):
    """Another run holds the study."""


@contextmanager
def file_lock(path: Path, wait: float, busy: LancetError) -> Iterator[bool]:
    """One holder at a time, in all processes; the same process may hold it more than once.

    Args:
        wait: seconds that another process is waited for.
        busy: raised after that.

    Yields:
        Whether this process did not hold it before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise busy from None
    try:
        yield lock.lock_counter == 1
    finally:
        lock.release()


def study_lock(root: Path, study: str, wait: float = 0.0) -> AbstractContextManager[bool]:
    """One run on a study at a time, as `file_lock`. Raises Busy."""
    path = root / "locks" / f"{study}.lock"
    busy = Busy(f"study '{study}': another run is going on ({path}); wait for it to end, or use another --home")
    return file_lock(path, wait, busy)


def is_locked(root: Path, study: str) -> bool:
    """Whether a run on a study is going on, in any process of this home."""
    try:
        with study_lock(root, study):
            return False
    except Busy:
        return True


@contextmanager
def lease(remote: Remote, root: Path, study: str, wait: float = 0.0) -> Iterator[None]:
    """One home at a time may work on a study. To be taken while `study_lock` is held: what this home held before, a run
    that was killed held.

    Args:
        wait: seconds that another machine is waited for.

    Raises:
        Busy: another machine holds it.
    """
    entry = {"home": _identity(root), "host": socket.gethostname(), "since": time.time()}
    number = _take(remote, study, entry, time.monotonic() + wait)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(remote, study, number, entry, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        try:  # the number stays, so that nobody creates it a second time
            remote.put(_key(study, number), _content(entry | {"ended": True}))
        except LancetError as error:
            log.warning("the lock of study '%s' ends in %.0f s: %s", study, LEASE_SECONDS, error)


def _take(remote: Remote, study: str, entry: dict[str, Any], deadline: float) -> int:
    while True:
        number, held = _newest(remote, study)
        if (
            held is None
            or held.get("ended")
            or held["home"] == entry["home"]
            or time.time() - held["renewed"] > LEASE_SECONDS
        ):
            if remote.create(_key(study, number + 1), _content(entry)) and _newest(remote, study)[0] == number + 1:
                for key in remote.keys(f"locks/{study}"):
                    if key < _key(study, number + 1):
                        remote.delete(key)
                return number + 1
            continue  # another machine was faster
        if time.monotonic() >= deadline:
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(held["since"]))
            raise Busy(
                f"study '{study}': a run is going on on {held['host']} since {since} "
                f"({remote.address(_key(study, number))}); wait for it to end; if that machine is lost, its lock ends "
                f"{LEASE_SECONDS:.0f} s after its last sign"
            )
        time.sleep(1.0)


def _renew(remote: Remote, study: str, number: int, entry: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(LEASE_SECONDS / 5):
        try:
            if _newest(remote, study)[0] > number:
                log.warning("study '%s': this machine was silent for long, and another one works on it now", study)
                return
            remote.put(_key(study, number), _content(entry))
        except LancetError as error:
            log.warning("study '%s': its lock could not be renewed: %s", study, error)


def _newest(remote: Remote, study: str) -> tuple[int, dict[str, Any] | None]:
    """Number and content of the lock that counts; 0 and None where there is none."""
    while newest := max(remote.keys(f"locks/{study}"), default=None):
        content = remote.get(newest)
        if content is not None:
            return int(Path(newest).stem), json.loads(content)
    return 0, None


def _key(study: str, number: int) -> str:
    return f"locks/{study}/{number:08d}.json"


def _content(entry: dict[str, Any]) -> bytes:
    return json.dumps({**entry, "renewed": time.time()}).encode()


def _identity(root: Path) -> str:
    """A name of this home on this machine that no other has; a copied home on another machine is another one."""
    path = root / "locks" / ".identity"  # no study has a dot in its name
    with FileLock(root / "locks" / ".identity.lock"):
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        return f"{path.read_text()}@{socket.gethostname()}"
