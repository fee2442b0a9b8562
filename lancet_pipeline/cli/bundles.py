"""Commands on audit bundles, for those who write them and those who check them: verify, bundle, diff, keys."""

from pathlib import Path
from typing import Annotated

import typer

from lancet_pipeline.cli.options import AsJson, Home, deployed, study_name
from lancet_pipeline.cli.terminal import show
from lancet_pipeline.errors import InputError
from lancet_pipeline.store.artifacts import open_store

Key = Annotated[Path | None, typer.Option(help="Public key of the signer; the enclosed one otherwise.")]
Chain = Annotated[list[Path] | None, typer.Option(help="Certificates that you trust; repeat for several.")]
Identity = Annotated[str, typer.Option(help="Sigstore: who must have signed.")]
Issuer = Annotated[str, typer.Option(help="Sigstore: who vouches for the identity.")]


keys_app = typer.Typer(help="The key pair that signs audit bundles.", no_args_is_help=True)


def verify(
    bundle: Annotated[Path, typer.Argument(help="Directory of an audit bundle.")],
    key: Key = None,
    chain: Chain = None,
    identity: Identity = "",
    issuer: Issuer = "",
) -> None:
    """Check an audit bundle offline: every file against its hash, then the signature. Exit code 1 names the culprit."""
    from lancet_pipeline.governance.signature import Trust
    from lancet_pipeline.governance.verification import inspect_bundle

    found = inspect_bundle(bundle, Trust(key, tuple(chain or ()), identity, issuer))
    print(f"{bundle}: whole: {len(found.manifest['files'])} files have the hashes of the manifest, and all are signed")
    if found.fingerprint is None:
        print(f"signed by   {found.signer}, checked against what was given")
    elif key is not None:
        print(f"signed by   the key given, fingerprint {found.fingerprint}")
    else:
        print(
            f"signed by   the key in the bundle, fingerprint {found.fingerprint}\n"
            "origin      only as good as the comparison of this fingerprint with one that you know from elsewhere; "
            "--key PUBLIC_KEY makes it for you"
        )


def bundle(
    study: Annotated[str, typer.Argument(help="Name of a study that has been run, or path to its YAML file.")],
    out: Annotated[Path, typer.Option(help="Directory to write; empty or not there yet.")],
    home: Home = None,
) -> None:
    """Write and sign the audit bundle of the last run afresh, with the decisions up to now, for handing out."""
    from lancet_pipeline.governance.bundle import write_bundle
    from lancet_pipeline.governance.evidence import collect_last_run

    where = deployed(home)
    evidence = collect_last_run(open_store(where), study_name(study))
    manifest = write_bundle(evidence, out.absolute(), where.signing)
    print(f"{out}: written: {len(manifest['files'])} files, signed by {manifest['signer']}")
    print(f"next        lancet verify {out}")


def diff(
    before: Annotated[Path, typer.Argument(help="Directory of an audit bundle.")],
    after: Annotated[Path, typer.Argument(help="Directory of another one.")],
    key: Key = None,
    chain: Chain = None,
    identity: Identity = "",
    issuer: Issuer = "",
    as_json: AsJson = False,
) -> None:
    """What changed between two corrections, from their audit bundles, which are verified first."""
    from lancet_pipeline.cli.difference import print_difference
    from lancet_pipeline.governance.difference import compare_bundles
    from lancet_pipeline.governance.signature import Trust

    show(compare_bundles(before, after, Trust(key, tuple(chain or ()), identity, issuer)), as_json, print_difference)


@keys_app.command("create")
def keys_create(home: Home = None) -> None:
    """Make the key pair that signs audit bundles."""
    from lancet_pipeline.governance.keys import create_keys, fingerprint, load_public_key

    private = _private_key(home)
    public = create_keys(private)
    print(f"{private}: written, readable by you alone; keep a copy in a safe place")
    print(f"{public}: written; hand it to those who verify\nfingerprint {fingerprint(load_public_key(public))}")


@keys_app.command("show")
def keys_show(home: Home = None) -> None:
    """The public key that verifies this deployment's bundles, and its fingerprint (SHA-256 of its DER)."""
    from lancet_pipeline.governance.keys import fingerprint, parse_public_key
    from lancet_pipeline.governance.signing import enclosed_key

    signing = deployed(home).signing
    if signing.signer in ("key", "certificate") and not _private_key(home).exists():
        raise InputError(f"{_private_key(home)}: no signing key yet; run `lancet keys create`")
    pem = enclosed_key(signing)
    if pem is None:
        raise InputError(f"signer '{signing.signer}' has no key of its own: each signature has a new one")
    print(f"{pem.decode().strip()}\nfingerprint {fingerprint(parse_public_key(pem, 'the public key'))}")


def _private_key(home: Path | None) -> Path:
    path = deployed(home).signing.private_key
    assert path is not None  # a deployment always names one
    return path
