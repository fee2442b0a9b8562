"""Which errors another try may cure: a service or a disk that is away for a moment."""

import errno

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
    unavailable = (
        getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"
    )  # MLflow, of the database of its server
    return unavailable or bool(names & _PASSING)
