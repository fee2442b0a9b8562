"""Which errors another try may cure: a service or a disk that is away for a moment."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from lancet_pipeline.errors import LancetError, Unreachable, without_credentials

TRIES = 3
"""How often an asset is tried again after a fault that may pass."""

_PASSING_CODES = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNABORTED),
}
# By name, so that nothing is imported to look at an error.
_PASSING = {
    "sqlalchemy.exc.OperationalError",
    "sqlalchemy.exc.InterfaceError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.HTTPError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ConnectionError",
}


@contextmanager
def tried_again(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Have Dagster try an asset again, after a while, where a database, a server or a network file system was away. All
    other errors are final: they would come again."""
    try:
        yield
    except Exception as error:
        fault = passing_fault(error)
        if fault is None:
            raise
        wait = seconds_to_wait(context.retry_number)
        if context.retry_number < TRIES:
            context.log.warning(f"{fault}; tried again in {wait:.0f} s")
        message = f"a database, a server or a file system is away ({fault}); see that it is there, then run again"
        raise dg.RetryRequested(max_retries=TRIES, seconds_to_wait=wait) from LancetError(message)


def passing_fault(error: BaseException) -> str | None:
    """What is away, in words, where `error` or what it came from is a lost database, server or network file system; None
    for any other error, which would come again."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, LancetError):
            return str(cause) if isinstance(cause, Unreachable) else None
        if _passes(cause):
            return f"{type(cause).__name__}: {without_credentials(' '.join(str(cause).split()))[:300]}"
        seen.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def seconds_to_wait(tried: int) -> float:
    """Seconds before the next try, after `tried` of them: 2, 8, 32."""
    return 2.0 * 4**tried


def _passes(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_CODES:
        return True
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    # MLflow, of the database of its server
    unavailable = getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"
    return unavailable or bool(names & _PASSING)
