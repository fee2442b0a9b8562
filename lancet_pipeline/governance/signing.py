"""Sign audit bundles: OpenSSF model signing over every file, with a key of one's own unless set otherwise.

The signature is a file of the bundle, in the format of `model_signing` (a DSSE envelope around the SHA-256 of each
file), so that its own command checks it, too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.errors import InputError
from lancet_pipeline.governance.keys import as_pem, create_keys, load_public_key, public_file, public_pem

SIGNATURE, PUBLIC_KEY = "model.sig", "public_key.pem"


def signing_key(signing: Signing) -> Path:
    """The private key's file, made where it may be.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = signing.private_key
    if path is None:
        raise InputError(f"signer '{signing.signer}' needs a private key; set LANCET_SIGNING_KEY to its file")
    if not path.exists():
        if not signing.create:
            raise InputError(f"LANCET_SIGNING_KEY = {path}: no such file; run `lancet keys create` or correct the path")
        try:
            create_keys(path)
        except InputError:
            if not path.exists():
                raise
    elif signing.create and not public_file(path).exists():
        public_file(path).write_bytes(public_pem(path))
    return path


def enclosed_key(signing: Signing) -> bytes | None:
    """The public key that goes into a bundle, as PEM; None where the signer has a new one each time.

    Raises:
        InputError: the signer is not known, lacks a setting, or its key cannot be used.
    """
    needed: dict[str, dict[str, Any]] = {
        "key": {},
        "certificate": {"LANCET_SIGNING_CERTIFICATE": signing.certificate, "LANCET_SIGNING_CHAIN": signing.chain},
        "pkcs11": {"LANCET_PKCS11_URI": signing.pkcs11_uri, "LANCET_SIGNING_PUBLIC_KEY": signing.public_key},
        "sigstore": {},
    }
    if signing.signer not in needed:
        raise InputError(f"LANCET_SIGNER = {signing.signer}: no such signer; signers: {', '.join(needed)}")
    for name, value in needed[signing.signer].items():
        if not value:
            raise InputError(f"signer '{signing.signer}' needs {name}; set it")
    if signing.signer == "sigstore":
        return None
    if signing.signer == "pkcs11" and signing.public_key is not None:
        return as_pem(load_public_key(signing.public_key))
    return public_pem(signing_key(signing))


def sign_folder(folder: Path, signing: Signing) -> None:
    """Sign every file below `folder` into `folder`/model.sig.

    Raises:
        InputError: the signer lacks something, or cannot be used.
    """
    import model_signing

    enclosed_key(signing)
    config = model_signing.signing.Config()
    config.set_hashing_config(
        model_signing.hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    )
    token = signing.sigstore_token or None
    settings: dict[str, dict[str, Any]] = {
        "elliptic_key": {"private_key": signing.private_key},
        "certificate": {
            "private_key": signing.private_key,
            "signing_certificate": signing.certificate,
            "certificate_chain": signing.chain,
        },
        "pkcs11": {
            "pkcs11_uri": signing.pkcs11_uri,
            "module_paths": [str(folder) for folder in signing.pkcs11_modules],
        },
        "sigstore": {
            "identity_token": token,
            "use_ambient_credentials": token is None,
            "trust_config": signing.sigstore_trust,
        },
    }
    method = "elliptic_key" if signing.signer == "key" else signing.signer
    attempt(getattr(config, f"use_{method}_signer"), **settings[method])
    attempt(config.sign, folder, folder / SIGNATURE)
    # One way to write it down, so that a changed byte is seen even where it does not change the meaning.
    document = json.loads((folder / SIGNATURE).read_bytes())
    (folder / SIGNATURE).write_bytes(canonical(document))


def canonical(document: Any) -> bytes:
    """The one way in which a signature is written down."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def attempt(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """What a signer of model signing raises, as an error that names the setting's side."""
    try:
        function(*arguments, **named)
    except Exception as error:  # of cryptography, OpenSSL, PKCS #11 modules or the network, as the signer is
        raise InputError(f"signature: {type(error).__name__}: {error}; check the signer's settings") from error
