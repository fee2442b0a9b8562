"""What the scripts need of the server's database and artifact store; addresses come from the environment they set."""

import os
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

DATABASE = "MLFLOW_BACKEND_STORE_URI"
ARTIFACTS = "MLFLOW_ARTIFACTS_DESTINATION"


def check() -> None:
    """Both stores answer."""
    _tables(os.environ[DATABASE])
    _artifacts(os.environ[ARTIFACTS])


def check_users() -> None:
    """Somebody can sign in once the server is up."""
    uri, found = os.environ["USERS_URI"], 0
    if "users" in _tables(uri):
        with sa.create_engine(uri).connect() as connection:
            found = connection.execute(sa.text("select count(*) from users")).scalar_one()
    if not found and not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        raise SystemExit(
            "error: MLFLOW_AUTH_ADMIN_PASSWORD is not set: the first start makes the administrator with it"
        )


def check_empty() -> None:
    """Neither store holds anything that a restore would mix with."""
    for uri in (os.environ[DATABASE], os.environ["USERS_URI"]):
        if _tables(uri):
            raise SystemExit(f"error: {DATABASE}: the database is not empty; restore into a new one")
    if _artifacts(os.environ[ARTIFACTS]):
        raise SystemExit(f"error: {os.environ[ARTIFACTS]}: not empty; restore into a new bucket or folder")


def copy_artifacts(source: str, destination: str) -> None:
    """Copy every artifact between two stores, each a folder or any address that MLflow knows."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if "://" not in destination:
        Path(destination).mkdir(parents=True, exist_ok=True)
    if not _artifacts(source):
        return
    if "://" in source:
        get_artifact_repository(source).download_artifacts("", destination)
    else:
        get_artifact_repository(destination).log_artifacts(source)


def copy_sqlite(source: str, destination: str) -> None:
    """SQLite's online backup: consistent while the server writes."""
    origin, copy = (uri.removeprefix("sqlite:///") for uri in (source, destination))
    if not Path(origin).exists():
        raise SystemExit(f"error: {origin}: no such database")
    with sqlite3.connect(origin) as reader, sqlite3.connect(copy) as writer:
        reader.backup(writer)


def _tables(uri: str) -> list[str]:
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).exists():
        return []
    try:
        engine = sa.create_engine(uri, connect_args={} if path != uri else {"connect_timeout": 10})
        return sa.inspect(engine).get_table_names()
    except sa.exc.SQLAlchemyError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise SystemExit(f"error: {DATABASE}: the database cannot be opened: {reason}") from None


def _artifacts(uri: str) -> bool:
    """Whether the store holds anything."""
    address = urlsplit(uri)
    if address.scheme != "s3":
        folder = Path(uri.removeprefix("file://"))
        return folder.is_dir() and any(folder.iterdir())
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    try:
        client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"), config=settings)
        listing = client.list_objects_v2(Bucket=address.netloc, Prefix=address.path.lstrip("/"), MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(f"error: {ARTIFACTS}: {uri}: {error}") from None
    return listing["KeyCount"] > 0


COMMANDS = {
    "check": check,
    "check-users": check_users,
    "check-empty": check_empty,
    "copy-artifacts": copy_artifacts,
    "copy-sqlite": copy_sqlite,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
