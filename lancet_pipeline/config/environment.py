"""Every environment variable that LANCET reads, and the deployment that they describe: where it keeps things and looks for
them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lancet_pipeline.config.experiment import PACKAGED_EXPERIMENTS
from lancet_pipeline.config.study import PACKAGED_STUDIES
from lancet_pipeline.errors import InputError

ARTIFACTS, DAGSTER_POSTGRES = "LANCET_ARTIFACTS", "LANCET_DAGSTER_POSTGRES_URL"

OBJECT_STORES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _split(value: str) -> list[str]:
    return [part for part in value.split(os.pathsep) if part]


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


class Environment(BaseModel):
    """The variables, by their names. An empty one counts as not set; paths are absolute; lists of paths are separated as
    in PATH."""

    model_config = ConfigDict(frozen=True)

    LANCET_HOME: File = Field(default=Path(".lancet"), validate_default=True, description="Where results live.")
    LANCET_ARTIFACTS: Annotated[str, AfterValidator(_artifacts_url)] = Field(
        default="", description="URL of the store of artifacts, whose cache is the home then; the home alone otherwise."
    )
    LANCET_STUDIES: Paths = Field(default=(), description="Directories of studies; the first match wins.")
    LANCET_EXPERIMENTS: Paths = Field(default=(), description="Directories of experiments, likewise.")
    LANCET_MODELS: Paths = Field(
        default=(), description="Directories where a checkpoint is looked for by the last part of its name."
    )
    LANCET_DAGSTER_POSTGRES_URL: str = Field(
        default="", repr=False, description="Dagster's database, postgresql+psycopg2://...; SQLite otherwise."
    )
    LANCET_WEBHOOK: str = Field(default="", repr=False, description="Takes alerts as JSON by POST; a secret.")
    LANCET_PAGE: str = Field(default="", description="Address of Dagster's page, for links in alerts.")
    LANCET_SIGNER: str = Field(default="key", description="Who signs bundles: key, certificate, pkcs11 or sigstore.")
    LANCET_SIGNING_KEY: File | None = Field(
        default=None, description="PEM file of the private key; made below the home where not set."
    )
    LANCET_SIGNING_PUBLIC_KEY: File | None = Field(
        default=None, description="pkcs11: PEM file of the public key whose private half the token holds."
    )
    LANCET_SIGNING_CERTIFICATE: File | None = Field(default=None, description="certificate: PEM file of it.")
    LANCET_SIGNING_CHAIN: Paths = Field(default=(), description="certificate: PEM files of those above it.")
    LANCET_PKCS11_URI: str = Field(default="", repr=False, description="pkcs11: the key in its token.")
    LANCET_PKCS11_MODULES: Paths = Field(default=(), description="pkcs11: directories of modules.")
    LANCET_SIGSTORE_TOKEN: str = Field(
        default="", repr=False, description="sigstore: identity token; the machine's ambient credentials otherwise."
    )
    LANCET_SIGSTORE_TRUST: File | None = Field(
        default=None, description="sigstore: trust configuration of an instance other than the public one."
    )
    LANCET_SIGSTORE_IDENTITY: str = Field(default="", description="sigstore: whose signature a promotion asks for.")
    LANCET_SIGSTORE_ISSUER: str = Field(default="", description="sigstore: who vouches for that identity.")
    MLFLOW_TRACKING_URI: Annotated[str, AfterValidator(_tracking_uri)] = Field(
        default="", description="MLflow's tracking server; a SQLite file below the home otherwise."
    )


@dataclass(frozen=True)
class Signing:
    """Who signs, as LANCET_SIGNER and the variables behind it say. create: make the private key where there is none.
    Secrets stay out of the repr."""

    signer: str = "key"
    private_key: Path | None = None
    create: bool = False
    public_key: Path | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    pkcs11_uri: str = field(default="", repr=False)
    pkcs11_modules: tuple[Path, ...] = ()
    sigstore_token: str = field(default="", repr=False)
    sigstore_trust: Path | None = None
    sigstore_identity: str = ""
    sigstore_issuer: str = ""


@dataclass(frozen=True)
class Deployment:
    """Where one deployment keeps things and looks for them; `Environment` describes the fields of the same names.

    study_directories, experiment_directories: those of the variable, of the working directory, and the packaged ones.
    alerts: whether there is a webhook; its URL is a secret, which the resource `Alerts` reads where it is used.
    """

    home: Path
    study_directories: tuple[Path, ...]
    model_directories: tuple[Path, ...]
    tracking_uri: str = ""
    experiment_directories: tuple[Path, ...] = (PACKAGED_EXPERIMENTS,)
    signing: Signing = field(default_factory=Signing)
    alerts: bool = False
    page: str = ""
    dagster_postgres_url: str = field(default="", repr=False)
    artifacts: str = ""


def deployment(environ: Mapping[str, str], home: Path | None = None) -> Deployment:
    """The deployment that the variables in `environ` describe.

    Args:
        home: goes before LANCET_HOME.

    Raises:
        InputError: the first variable that does not fit; its value is not shown.
    """
    given = {name: environ[name] for name in Environment.model_fields if environ.get(name)}
    try:
        found = Environment.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}") from None
    root = _absolute(home) if home else found.LANCET_HOME
    models = (*found.LANCET_MODELS, root / "models", Path(".lancet/models").absolute())
    return Deployment(
        home=root,
        study_directories=_search_path(found.LANCET_STUDIES, "studies", PACKAGED_STUDIES),
        model_directories=tuple(dict.fromkeys(models)),
        tracking_uri=found.MLFLOW_TRACKING_URI,
        experiment_directories=_search_path(found.LANCET_EXPERIMENTS, "experiments", PACKAGED_EXPERIMENTS),
        signing=Signing(
            signer=found.LANCET_SIGNER,
            private_key=found.LANCET_SIGNING_KEY or root / "keys" / "signing_key.pem",
            create=found.LANCET_SIGNING_KEY is None,
            public_key=found.LANCET_SIGNING_PUBLIC_KEY,
            certificate=found.LANCET_SIGNING_CERTIFICATE,
            chain=found.LANCET_SIGNING_CHAIN,
            pkcs11_uri=found.LANCET_PKCS11_URI,
            pkcs11_modules=found.LANCET_PKCS11_MODULES,
            sigstore_token=found.LANCET_SIGSTORE_TOKEN,
            sigstore_trust=found.LANCET_SIGSTORE_TRUST,
            sigstore_identity=found.LANCET_SIGSTORE_IDENTITY,
            sigstore_issuer=found.LANCET_SIGSTORE_ISSUER,
        ),
        alerts=bool(found.LANCET_WEBHOOK),
        page=found.LANCET_PAGE,
        dagster_postgres_url=found.LANCET_DAGSTER_POSTGRES_URL,
        artifacts=found.LANCET_ARTIFACTS,
    )


def _search_path(given: tuple[Path, ...], folder: str, packaged: Path) -> tuple[Path, ...]:
    """The directories given, `folder` of the working directory where there is one, and the packaged."""
    local = [Path(folder).absolute()] if Path(folder).is_dir() else []
    return tuple(dict.fromkeys([*given, *local, packaged]))
