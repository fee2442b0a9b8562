"""Check the signature of an audit bundle."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.governance.keys import as_pem, fingerprint, load_public_key
from lancet_pipeline.governance.signing import PUBLIC_KEY, SIGNATURE, attempt, canonical


@dataclass(frozen=True)
class Trust:
    """What a signature is held against: a public key, a chain of certificates, or an identity and who vouches for it.

    All empty: the public key in the bundle itself.
    """

    key: Path | None = None
    chain: tuple[Path, ...] = ()
    identity: str = ""
    issuer: str = ""


def own_trust(signing: Signing) -> Trust:
    """What a deployment holds its own bundles against. A key of its own may have changed since, so the one in the bundle
    counts; that a bundle is the one that was registered, its digest in the registry says."""
    return Trust(chain=signing.chain, identity=signing.sigstore_identity, issuer=signing.sigstore_issuer)


def check_signature(folder: Path, signer: str, digests: Mapping[str, str], trust: Trust) -> str | None:
    """Hold `folder`/model.sig against `trust` and `digests`, the SHA-256 of every other file by path.

    Returns:
        Fingerprint of the public key that the signature was held against; None where it is not a key's.

    Raises:
        IntegrityError: names the file that does not fit.
        InputError: what `trust` names cannot be used, or does not suit the signer.
    """
    path = folder / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{SIGNATURE}: missing; an audit bundle is always signed, get it again")
    document = _read_document(path)
    held_against = None
    if trust.key is not None and signer not in ("key", "pkcs11"):
        raise IntegrityError(f"{SIGNATURE}: was made by the signer '{signer}', not with the key given; ask the signer")
    if signer in ("key", "pkcs11"):
        held_against = _check_with_key(folder, document, trust.key)
    elif signer == "certificate":
        if not trust.chain:
            raise InputError(f"{folder}: signed with a certificate; give the chain that you trust with --chain FILE")
        _authenticate(folder, "use_certificate_verifier", certificate_chain=trust.chain)
    elif signer == "sigstore":
        if not (trust.identity and trust.issuer):
            raise InputError(f"{folder}: signed through Sigstore; say by whom with --identity and --issuer")
        _authenticate(folder, "use_sigstore_verifier", identity=trust.identity, oidc_issuer=trust.issuer)
    else:
        raise IntegrityError(f"manifest.json: names a signer '{signer}' that is not known; get the bundle again")
    _compare(_signed_digests(document), digests)
    return held_against


def signed_digest(folder: Path, name: str) -> str | None:
    """What the signature, true or not, says of one file; None where it cannot be read."""
    try:
        return _signed_digests(_read_document(folder / SIGNATURE)).get(name)
    except (IntegrityError, OSError):
        return None


def _check_with_key(folder: Path, document: dict[str, Any], given: Path | None) -> str:
    try:
        enclosed = load_public_key(folder / PUBLIC_KEY)
    except InputError:
        raise IntegrityError(f"{PUBLIC_KEY}: holds no public key that can be used; get the bundle again") from None
    key = enclosed if given is None else load_public_key(given)
    hint = document["verificationMaterial"].get("publicKey", {}).get("hint")
    if hint != _hint(key):
        made_with = (
            f"{fingerprint(enclosed)}, the one in {PUBLIC_KEY}" if hint == _hint(enclosed) else "one not enclosed"
        )
        raise IntegrityError(
            f"{SIGNATURE}: the signature was made with another key: {fingerprint(key)} is the key "
            f"{'in ' + PUBLIC_KEY if given is None else 'given'}, {made_with}, is the signer's; "
            "ask the signer for the fingerprint of the right one"
        )
    _authenticate(folder, "use_elliptic_key_verifier", public_key=given or folder / PUBLIC_KEY)
    return fingerprint(key)


def _authenticate(folder: Path, method: str, **arguments: Any) -> None:
    """Let model signing check the signature. A file that does not fit is left to `_compare`, which names it."""
    import model_signing

    config = model_signing.verifying.Config()
    attempt(getattr(config, method), **arguments)
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # wrong signatures raise a dozen types, down to those of the parser
        if not str(error).startswith("Signature mismatch"):
            reason = f"{type(error).__name__}{': ' if str(error) else ''}{error}"
            raise IntegrityError(f"{SIGNATURE}: is no true signature ({reason}); get the bundle again") from error


def _compare(signed: Mapping[str, str], found: Mapping[str, str]) -> None:
    # The manifest and its digest follow from the other files: those say more about what was changed.
    for name in sorted(signed.keys() | found.keys(), key=lambda name: (name.startswith("manifest."), name)):
        if signed.get(name) != found.get(name):
            what = "is not signed" if name not in signed else "is not what was signed"
            raise IntegrityError(
                f"{name}: {what}: either it was changed and the manifest with it, or {SIGNATURE} belongs to another "
                "bundle; get the bundle again"
            )


def _read_document(path: Path) -> dict[str, Any]:
    """The signature's JSON, once it is written in the one way in which `sign_folder` writes it.

    Base64 and JSON leave room for bytes that change without changing what is read; nothing here does.
    """
    broken = IntegrityError(f"{SIGNATURE}: is not as it was written; get the bundle again")
    data = path.read_bytes()
    try:
        document = json.loads(data)
        envelope = document["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        encoded = (envelope["payload"], signature["sig"])
        plain = all(base64.b64encode(base64.b64decode(text, validate=True)).decode() == text for text in encoded)
        plain &= set(envelope) == {"payload", "payloadType", "signatures"} and not signature.get("keyid")
        plain &= set(signature) <= {"sig", "keyid"} and data == canonical(document)
        material = document["verificationMaterial"]
        if "publicKey" in material:
            plain &= set(document) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
            plain &= set(material) <= {"publicKey", "tlogEntries"} and not material.get("tlogEntries")
            plain &= set(material["publicKey"]) == {"hint"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise broken from None
    if not plain:
        raise broken
    return document


def _signed_digests(document: Mapping[str, Any]) -> dict[str, str]:
    try:
        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        return {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{SIGNATURE}: signs no list of files; get the bundle again") from None


def _hint(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(as_pem(key)).hexdigest()
