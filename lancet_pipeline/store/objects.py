"""A store of objects below one URL, which several machines share. obstore's writes are atomic, and an object is created by
one machine only."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from lancet_pipeline.config.environment import ARTIFACTS
from lancet_pipeline.errors import InputError, LancetError, Unreachable, first_line

CHUNK = 32 * 2**20
"""Bytes of one request, so that each ends within REQUEST_SECONDS."""
REQUEST_SECONDS = 120


class Remote:
    """Objects by their key, a path without a slash before it.

    Every method raises Unreachable where the store does not answer, and InputError where it says no.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def address(self, key: str) -> str:
        return f"{self.url}/{key}"

    def get(self, key: str) -> bytes | None:
        """Content of an object, None where it is not there."""
        with self._explained():
            try:
                return bytes(self._store.get(key).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object, in place of one that is there."""
        with self._explained():
            self._store.put(key, content, chunk_size=CHUNK, max_concurrency=4)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there; whether it was not."""
        with self._explained():
            from obstore.exceptions import AlreadyExistsError

            try:
                self._store.put(key, content, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def fetch(self, key: str, target: Path) -> bool:
        """Write the content of an object into a file; False where the object is not there."""
        with self._explained():
            try:
                size = self._store.head(key)["size"]
            except FileNotFoundError:
                return False
        with target.open("wb") as file:
            for start in range(0, size, CHUNK):
                with self._explained():
                    content = self._store.get_range(key, start=start, end=min(start + CHUNK, size))
                file.write(content)
        return True

    def keys(self, prefix: str) -> dict[str, int]:
        """Size in bytes of every object below a prefix (without a slash at its end), by key."""
        with self._explained():
            return {entry["path"]: entry["size"] for page in self._store.list(f"{prefix}/") for entry in page}

    def modified(self, key: str) -> float:
        """When an object was written, in seconds since the epoch, by the store's clock."""
        with self._explained():
            return self._store.head(key)["last_modified"].timestamp()

    def delete(self, key: str) -> None:
        with self._explained(), suppress(FileNotFoundError):
            self._store.delete(key)

    @cached_property
    def _store(self) -> Any:
        """obstore's, which takes credentials, region and endpoint from the environment."""
        try:
            from obstore.store import from_url
        except ImportError:
            raise InputError(f"{ARTIFACTS} is set: install the extra `server` of lancet-pipeline") from None
        if self.url.startswith("file://"):  # not made where it is missing: a share may not be mounted
            return from_url(self.url)
        return from_url(
            self.url,
            client_options={
                "allow_http": True,  # where the endpoint in the environment says http
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            retry_config={  # some seconds; Dagster tries again besides
                "max_retries": 4,
                "retry_timeout": timedelta(seconds=15),
                "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=4), "base": 2},
            },
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except LancetError:
            raise
        except Exception as error:  # drivers raise types of their own
            raise self._explanation(error) from None

    def _explanation(self, error: Exception) -> LancetError:
        text, name = str(error), type(error).__name__
        line = re.sub(r"Error performing (\w+) (\S+) in .*? - ", r"\1 \2: ", first_line(error)).partition(": <?xml")[0]
        said = f"{ARTIFACTS}: {self.url}: {line}"
        if "169.254.169.254" in text or "metadata.google" in text:
            return InputError(f"{ARTIFACTS}: {self.url}: the environment holds no credentials for it; set them")
        denied = isinstance(error, PermissionError) or "os error 13" in text
        if denied or name in ("PermissionDeniedError", "UnauthenticatedError"):
            return InputError(
                f"{said}; see that the credentials in the environment may read, write, list and delete there"
            )
        refused = re.search(r"status code: 4(?!08|29)\d\d", text)
        if "NoSuchBucket" in text or isinstance(error, FileNotFoundError) or refused:
            return InputError(f"{said}; see that the bucket is there and that the URL and the region name it")
        return Unreachable(f"{said}; see that the store runs and that the URL and the environment name it")
