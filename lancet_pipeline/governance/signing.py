"""Signatures of audit bundles: OpenSSF model signing over every file, with a key of one's own unless set otherwise.

The signature is a file of the bundle, in the format of `model_signing` (a DSSE envelope around the SHA-256 of each
file), so that its own command checks it, too.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lancet_pipeline.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNATURE, PUBLIC_KEY = "model.sig", "public_key.pem"
SIGNERS = ("key", "certificate", "pkcs11", "sigstore")
CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Signing:
    """Who signs. Secrets stay out of the repr.

    Attributes:
        signer: one of SIGNERS.
        private_key: PEM file, for `key` and `certificate`.
        create: make the key at `private_key` where there is none.
        public_key: PEM file of the public key whose private half a PKCS #11 token holds.
        certificate: PEM file of the signing certificate.
        chain: PEM files of the certificates above it.
        pkcs11_uri: the key in its token.
        pkcs11_modules: directories of PKCS #11 modules.
        sigstore_token: identity token; the machine's ambient credentials where empty.
        sigstore_trust: trust configuration of a Sigstore instance other than the public one.
    """

    signer: str = "key"
    private_key: Path | None = None
    create: bool = False
    public_key: Path | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    pkcs11_uri: str = field(default="", repr=False)
    pkcs11_modules: tuple[str, ...] = ()
    sigstore_token: str = field(default="", repr=False)
    sigstore_trust: Path | None = None


@dataclass(frozen=True)
class Trust:
    """What a signature is held against: a public key, a chain of certificates, or an identity and who vouches for it.

    All empty: the public key in the bundle itself.
    """

    key: Path | None = None
    chain: tuple[Path, ...] = ()
    identity: str = ""
    issuer: str = ""


def create_keys(private_key: Path) -> Path:
    """Make an EC P-256 key pair: `private_key` (mode 0600) and, beside it, the public key with the suffix `.pub`.

    Raises:
        InputError: there is a key already, or the place cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        private_key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=".signing-", dir=private_key.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, private_key)  # fails where another process was faster, so no key is ever overwritten
        finally:
            os.unlink(temporary)
        _public_file(private_key).write_bytes(public_pem(private_key))
    except FileExistsError:
        raise InputError(f"{private_key}: there is a key already; move it away first to make a new one") from None
    except OSError as error:
        raise InputError(f"{private_key}: the key cannot be written there ({error.strerror})") from error
    return _public_file(private_key)


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
    elif signing.create and not _public_file(path).exists():
        _public_file(path).write_bytes(public_pem(path))
    return path


def public_pem(private_key: Path) -> bytes:
    """PEM of the public half. Raises InputError where the file is no elliptic private key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{private_key}: the signing key cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{private_key}: no private key in PEM without a password; give another file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise InputError(f"{private_key}: no private key on P-256, P-384 or P-521; run `lancet keys create`")
    return _pem(key.public_key())


def load_public_key(path: Path) -> "EllipticCurvePublicKey":
    """Raises InputError where the file cannot be read or is no elliptic public key."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the public key cannot be read ({error.strerror})") from error
    return parse_public_key(pem, str(path))


def parse_public_key(pem: bytes, name: str) -> "EllipticCurvePublicKey":
    """Raises InputError, which calls the key `name`, where it is no elliptic public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as error:  # cryptography raises UnsupportedAlgorithm, ValueError and a few of its backend's own
        raise InputError(f"{name}: no public key in PEM; give the file that `lancet keys create` wrote") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise InputError(f"{name}: no public key on P-256, P-384 or P-521; give the signer's own")
    return key


def fingerprint(key: "EllipticCurvePublicKey") -> str:
    """SHA-256 of the public key in DER (SubjectPublicKeyInfo), 64 hex digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def enclosed_key(signing: Signing) -> bytes | None:
    """The public key that goes into a bundle, as PEM; None where the signer has a new one each time."""
    if signing.signer == "sigstore":
        return None
    if signing.signer == "pkcs11":
        if signing.public_key is None:
            raise InputError("signer 'pkcs11' needs the public key, too; set LANCET_SIGNING_PUBLIC_KEY to its file")
        return _pem(load_public_key(signing.public_key))
    return public_pem(signing_key(signing))


def sign_folder(folder: Path, signing: Signing) -> None:
    """Sign every file below `folder` into `folder`/model.sig.

    Raises:
        InputError: the signer lacks something, or cannot be used.
    """
    import model_signing

    config = model_signing.signing.Config()
    if signing.signer == "key":
        config.use_elliptic_key_signer(private_key=signing_key(signing))
    elif signing.signer == "certificate":
        if signing.certificate is None:
            raise InputError("signer 'certificate' needs one; set LANCET_SIGNING_CERTIFICATE to its file")
        _call(
            config.use_certificate_signer,
            private_key=signing_key(signing),
            signing_certificate=signing.certificate,
            certificate_chain=signing.chain,
        )
    elif signing.signer == "pkcs11":
        if not signing.pkcs11_uri:
            raise InputError("signer 'pkcs11' needs the key's URI; set LANCET_PKCS11_URI")
        _call(config.use_pkcs11_signer, pkcs11_uri=signing.pkcs11_uri, module_paths=signing.pkcs11_modules)
    elif signing.signer == "sigstore":
        token = signing.sigstore_token or None
        _call(
            config.use_sigstore_signer,
            identity_token=token,
            use_ambient_credentials=token is None,
            trust_config=signing.sigstore_trust,
        )
    else:
        raise InputError(f"LANCET_SIGNER = {signing.signer}: no such signer; signers: {', '.join(SIGNERS)}")
    config.set_hashing_config(
        model_signing.hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    )
    _call(config.sign, folder, folder / SIGNATURE)
    # One way to write it down, so that a changed byte is seen even where it does not change the meaning.
    document = json.loads((folder / SIGNATURE).read_bytes())
    (folder / SIGNATURE).write_bytes(_canonical(document))


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
    hint = document["verificationMaterial"]["publicKey"]["hint"]
    if hint != _hint(key):
        made_with = (
            f"{fingerprint(enclosed)}, the one in {PUBLIC_KEY}" if hint == _hint(enclosed) else "one not enclosed"
        )
        raise IntegrityError(
            f"{SIGNATURE}: the signature was made with another key: {fingerprint(key)} is the key "
            f"{'in ' + PUBLIC_KEY if given is None else 'given'}, {made_with}, is the signer's; "
            "ask the signer for the fingerprint of the right one"
        )
    # The comparison of keys above leaves one way to write a true signature: see `_read_document`.
    _authenticate(folder, "use_elliptic_key_verifier", public_key=given or folder / PUBLIC_KEY)
    return fingerprint(key)


def _authenticate(folder: Path, method: str, **arguments: Any) -> None:
    """Let model signing check the signature. A file that does not fit is left to `_compare`, which names it."""
    import model_signing

    config = model_signing.verifying.Config()
    _call(getattr(config, method), **arguments)
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
        plain &= set(signature) <= {"sig", "keyid"} and data == _canonical(document)
        material = document["verificationMaterial"]
        if "publicKey" in material:
            plain &= set(document) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
            plain &= set(material) <= {"publicKey", "tlogEntries"} and not material.get("tlogEntries")
            plain &= set(material["publicKey"]) == {"hint"}
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
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


def _canonical(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _call(function: Any, *arguments: Any, **named: Any) -> None:
    """What a signer of model signing raises, as an error that names the setting's side."""
    try:
        function(*arguments, **named)
    except Exception as error:  # of cryptography, OpenSSL, PKCS #11 modules or the network, as the signer is
        raise InputError(f"signature: {type(error).__name__}: {error}; check the signer's settings") from error


def _hint(key: "EllipticCurvePublicKey") -> str:
    return hashlib.sha256(_pem(key)).hexdigest()


def _pem(key: "EllipticCurvePublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _public_file(private_key: Path) -> Path:
    return private_key.with_suffix(".pub")
