"""Elliptic keys that sign audit bundles: made, read, and told apart by their fingerprints."""

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lancet_pipeline.errors import InputError

CURVES = ("secp256r1", "secp384r1", "secp521r1")


def create_keys(private_key: Path) -> Path:
    """Make an EC P-256 key pair: `private_key` (mode 0600) and, beside it, the public key with the suffix `.pub`.

    Raises:
        InputError: there is a key already, or the place cannot be written.
    """
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        private_key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(prefix=".signing-", dir=private_key.parent) as file:  # mode 0600
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
            os.link(file.name, private_key)  # fails where another process was faster, so no key is ever overwritten
        public_file(private_key).write_bytes(public_pem(private_key))
    except FileExistsError:
        raise InputError(f"{private_key}: there is a key already; move it away first to make a new one") from None
    except OSError as error:
        raise InputError(f"{private_key}: the key cannot be written there ({error.strerror})") from error
    return public_file(private_key)


def public_pem(private_key: Path) -> bytes:
    """PEM of the public half. Raises InputError where the file is no elliptic private key."""
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{private_key}: the signing key cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{private_key}: no private key in PEM without a password; give another file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise InputError(f"{private_key}: no private key on P-256, P-384 or P-521; run `lancet keys create`")
    return as_pem(key.public_key())


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Raises InputError where the file cannot be read or is no elliptic public key."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the public key cannot be read ({error.strerror})") from error
    return parse_public_key(pem, str(path))


def parse_public_key(pem: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Raises InputError, which calls the key `name`, where it is no elliptic public key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as error:  # cryptography raises UnsupportedAlgorithm, ValueError and a few of its backend's own
        raise InputError(f"{name}: no public key in PEM; give the file that `lancet keys create` wrote") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise InputError(f"{name}: no public key on P-256, P-384 or P-521; give the signer's own")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key in DER (SubjectPublicKeyInfo), 64 hex digits."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def as_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """PEM (SubjectPublicKeyInfo) of a public key."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_file(private_key: Path) -> Path:
    """Where the public half of a key lies."""
    return private_key.with_suffix(".pub")
