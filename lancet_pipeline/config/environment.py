"""Where one deployment keeps things and looks for them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lancet_pipeline.config.experiment import PACKAGED_EXPERIMENTS
from lancet_pipeline.config.study import PACKAGED_STUDIES
from lancet_pipeline.errors import InputError
from lancet_pipeline.governance.signing import Signing
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.objects import VARIABLE as ARTIFACTS
from lancet_pipeline.store.objects import check_url

DAGSTER_POSTGRES = "LANCET_DAGSTER_POSTGRES_URL"


@dataclass(frozen=True)
class Deployment:
    """home: artifacts, and MLflow's and Dagster's storage where no server is named. study_directories: studies by
    name, first match wins. experiment_directories: experiments, likewise. model_directories: checkpoints by their last name part, before the hub is asked.
    tracking_uri: an MLflow server; empty for a SQLite file below home. signing: who signs audit bundles.
    alerts: whether LANCET_WEBHOOK names a webhook; its URL is a secret, which the resource `Alerts` reads where it is used.
    page: address of Dagster's page, for links.
    dagster_postgres_url: Dagster's database; empty for SQLite files below home.
    artifacts: URL of the store of artifacts, whose cache is home then; empty for home alone."""

    home: Path
    study_directories: tuple[Path, ...]
    model_directories: tuple[Path, ...]
    tracking_uri: str = ""
    experiment_directories: tuple[Path, ...] = (PACKAGED_EXPERIMENTS,)
    signing: Signing = field(default_factory=Signing)
    alerts: bool = False
    page: str = ""
    dagster_postgres_url: str = ""
    artifacts: str = ""

    def store(self) -> ArtifactStore:
        return ArtifactStore(self.home, self.artifacts)


def deployment(environ: Mapping[str, str], home: Path | None = None) -> Deployment:
    """The deployment that LANCET_HOME, LANCET_STUDIES, LANCET_EXPERIMENTS, LANCET_MODELS, MLFLOW_TRACKING_URI,
    LANCET_WEBHOOK, LANCET_PAGE, LANCET_DAGSTER_POSTGRES_URL, LANCET_ARTIFACTS and those of `_signing` describe.

    Args:
        home: goes before LANCET_HOME.

    Raises:
        InputError: an address with a password in it, or one of artifacts that is no URL.
    """
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    if re.search(r"//[^/@\s]*:[^/@\s]*@", tracking):
        raise InputError(
            "MLFLOW_TRACKING_URI: holds a password, which pages and logs would show; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSFILE for PostgreSQL"
        )
    root = (home or Path(environ.get("LANCET_HOME", ".lancet"))).expanduser().absolute()
    return Deployment(
        root,
        _search_path(environ, "LANCET_STUDIES", "studies", PACKAGED_STUDIES),
        tuple(dict.fromkeys([*_paths(environ, "LANCET_MODELS"), root / "models", Path(".lancet/models").absolute()])),
        tracking,
        _search_path(environ, "LANCET_EXPERIMENTS", "experiments", PACKAGED_EXPERIMENTS),
        _signing(environ, root),
        bool(environ.get("LANCET_WEBHOOK")),
        environ.get("LANCET_PAGE", ""),
        environ.get(DAGSTER_POSTGRES, ""),
        check_url(environ.get(ARTIFACTS, "")),
    )


def _signing(environ: Mapping[str, str], root: Path) -> Signing:
    """LANCET_SIGNER and what each signer needs; the key is made below home where no other is named."""

    def path(name: str) -> Path | None:
        return next(iter(_paths(environ, name)), None)

    named = path("LANCET_SIGNING_KEY")
    return Signing(
        environ.get("LANCET_SIGNER", "key"),
        named or root / "keys" / "signing_key.pem",
        create=named is None,
        public_key=path("LANCET_SIGNING_PUBLIC_KEY"),
        certificate=path("LANCET_SIGNING_CERTIFICATE"),
        chain=tuple(_paths(environ, "LANCET_SIGNING_CHAIN")),
        pkcs11_uri=environ.get("LANCET_PKCS11_URI", ""),
        pkcs11_modules=tuple(str(part) for part in _paths(environ, "LANCET_PKCS11_MODULES")),
        sigstore_token=environ.get("LANCET_SIGSTORE_TOKEN", ""),
        sigstore_trust=path("LANCET_SIGSTORE_TRUST"),
        sigstore_identity=environ.get("LANCET_SIGSTORE_IDENTITY", ""),
        sigstore_issuer=environ.get("LANCET_SIGSTORE_ISSUER", ""),
    )


def _search_path(environ: Mapping[str, str], name: str, folder: str, packaged: Path) -> tuple[Path, ...]:
    """The directories that a variable lists, `folder` of the working directory where there is one, and the packaged."""
    local = [Path(folder).absolute()] if Path(folder).is_dir() else []
    return tuple(dict.fromkeys([*_paths(environ, name), *local, packaged]))


def _paths(environ: Mapping[str, str], name: str) -> list[Path]:
    return [Path(part).expanduser().absolute() for part in environ.get(name, "").split(os.pathsep) if part]
