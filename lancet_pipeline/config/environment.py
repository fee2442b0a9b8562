"""Every environment variable that LANCET reads, and the deployment that they describe: where it keeps things and looks for
them."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lancet_pipeline.config.experiment import PACKAGED_EXPERIMENTS
from lancet_pipeline.config.loading import PACKAGED_STUDIES
from lancet_pipeline.errors import InputError

ARTIFACTS, DAGSTER_POSTGRES = "LANCET_ARTIFACTS", "LANCET_DAGSTER_POSTGRES_URL"

OBJECT_STORES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _split(value: Any) -> Any:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _artifacts_url(url: str) -> str:
    scheme, mark, place = url.partition("://")
    if url and not (mark and scheme and place):
        raise ValueError("must be a URL with a place in it, such as s3://BUCKET/PREFIX")
    if re.match(r"[^/@]*:[^/@]*@", place) or "?" in place or "#" in place:
        raise ValueError(
            "holds a password or options, which pages and logs would show; leave them out, and set AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or what else the store takes from the environment"
        )
    if url and scheme not in OBJECT_STORES:
        raise ValueError(f"{scheme}:// is no store of objects that is known; known ones: {', '.join(OBJECT_STORES)}")
    return url.rstrip("/")


def _tracking_uri(uri: str) -> str:
    if re.search(r"//[^/@\s]*:[^/@\s]*@", uri):
        raise ValueError(
            "holds a password, which pages and logs would show; leave it out, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or PGPASSFILE for PostgreSQL"
        )
    return uri


File = Annotated[Path, AfterValidator(_absolute)]
Paths = Annotated[tuple[File, ...], BeforeValidator(_split)]
_NAMED = ConfigDict(populate_by_name=True)

VARIABLES: dict[str, str] = {}
"""Every variable, and what it is for."""


def _variable(name: str, description: str, default: Any = "", *, secret: bool = False) -> Any:
    """A field that an environment variable sets. Secrets stay out of the repr."""
    VARIABLES[name] = description
    return Field(default=default, validation_alias=name, description=description, repr=not secret)


@dataclass(frozen=True, config=_NAMED)
class Signing:
    """Who signs. create: make the private key where there is none."""

    signer: str = _variable("LANCET_SIGNER", "Who signs bundles: key, certificate, pkcs11 or sigstore.", "key")
    private_key: File | None = _variable(
        "LANCET_SIGNING_KEY", "PEM file of the private key; made below the home where not set.", None
    )
    create: bool = False
    public_key: File | None = _variable(
        "LANCET_SIGNING_PUBLIC_KEY", "pkcs11: PEM file of the public key whose private half the token holds.", None
    )
    certificate: File | None = _variable("LANCET_SIGNING_CERTIFICATE", "certificate: PEM file of it.", None)
    chain: Paths = _variable("LANCET_SIGNING_CHAIN", "certificate: PEM files of those above it.", ())
    pkcs11_uri: str = _variable("LANCET_PKCS11_URI", "pkcs11: the key in its token.", secret=True)
    pkcs11_modules: Paths = _variable("LANCET_PKCS11_MODULES", "pkcs11: directories of modules.", ())
    sigstore_token: str = _variable(
        "LANCET_SIGSTORE_TOKEN", "sigstore: identity token; the machine's ambient credentials otherwise.", secret=True
    )
    sigstore_trust: File | None = _variable(
        "LANCET_SIGSTORE_TRUST", "sigstore: trust configuration of an instance other than the public one.", None
    )
    sigstore_identity: str = _variable("LANCET_SIGSTORE_IDENTITY", "sigstore: whose signature a promotion asks for.")
    sigstore_issuer: str = _variable("LANCET_SIGSTORE_ISSUER", "sigstore: who vouches for that identity.")


@dataclass(frozen=True, config=_NAMED)
class Deployment:
    """Where one deployment keeps things and looks for them, each field set by the variable that it names. Paths are absolute;
    lists of them are separated as in PATH.

    study_directories, experiment_directories: those of the variable, of the working directory, and the packaged ones.
    alerts: whether there is a webhook; its URL is a secret, which the resource `Alerts` reads where it is used.
    """

    home: File = _variable("LANCET_HOME", "Where results live.", ".lancet")
    study_directories: Paths = _variable("LANCET_STUDIES", "Directories of studies; the first match wins.", ())
    model_directories: Paths = _variable(
        "LANCET_MODELS", "Directories where a checkpoint is looked for by the last part of its name.", ()
    )
    tracking_uri: Annotated[str, AfterValidator(_tracking_uri)] = _variable(
        "MLFLOW_TRACKING_URI", "MLflow's tracking server; a SQLite file below the home otherwise."
    )
    experiment_directories: Paths = _variable("LANCET_EXPERIMENTS", "Directories of experiments, likewise.", ())
    signing: Signing = Signing()
    alerts: Annotated[bool, BeforeValidator(bool)] = _variable(
        "LANCET_WEBHOOK", "Takes alerts as JSON by POST; a secret.", False
    )
    page: str = _variable("LANCET_PAGE", "Address of Dagster's page, for links in alerts.")
    dagster_postgres_url: str = _variable(
        DAGSTER_POSTGRES, "Dagster's database, postgresql+psycopg2://...; SQLite otherwise.", secret=True
    )
    artifacts: Annotated[str, AfterValidator(_artifacts_url)] = _variable(
        ARTIFACTS, "URL of the store of artifacts, whose cache is the home then; the home alone otherwise."
    )


def deployment(environ: Mapping[str, str], home: Path | None = None) -> Deployment:
    """The deployment that the variables in `environ` describe; an empty one counts as not set.

    Args:
        home: goes before LANCET_HOME.

    Raises:
        InputError: the first variable that does not fit; its value is not shown.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    given["LANCET_HOME"] = str(home or given.get("LANCET_HOME", ".lancet"))
    try:
        found = TypeAdapter(Deployment).validate_python({**given, "signing": given})
    except ValidationError as error:
        problem = error.errors()[0]
        variable = next(part for part in problem["loc"] if part in VARIABLES)
        raise InputError(f"{variable}: {problem['msg'].removeprefix('Value error, ')}") from None
    signing, models = (
        found.signing,
        (*found.model_directories, found.home / "models", _absolute(Path(".lancet/models"))),
    )
    if signing.private_key is None:
        signing = replace(signing, private_key=found.home / "keys" / "signing_key.pem", create=True)
    return replace(
        found,
        study_directories=_search_path(found.study_directories, "studies", PACKAGED_STUDIES),
        model_directories=tuple(dict.fromkeys(models)),
        experiment_directories=_search_path(found.experiment_directories, "experiments", PACKAGED_EXPERIMENTS),
        signing=signing,
    )


def _search_path(given: tuple[Path, ...], folder: str, packaged: Path) -> tuple[Path, ...]:
    """The directories given, `folder` of the working directory where there is one, and the packaged."""
    local = [Path(folder).absolute()] if Path(folder).is_dir() else []
    return tuple(dict.fromkeys([*given, *local, packaged]))
