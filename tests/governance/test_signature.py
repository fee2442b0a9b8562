"""Whatever is done to a bundle without the signer's key is caught, and the culprit named."""

import base64
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lancet_pipeline.config.environment import Signing, deployment
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.governance.bundle import write_bundle
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.keys import create_keys, fingerprint, load_public_key
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.signing import sign_folder
from lancet_pipeline.governance.verification import inspect_bundle, verify_bundle


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def public(signing: Signing) -> Path:
    assert signing.private_key is not None
    return signing.private_key.with_suffix(".pub")


@pytest.fixture
def stranger(tmp_path: Path) -> Signing:
    """Somebody else's key."""
    create_keys(tmp_path / "stranger" / "signing_key.pem")
    return Signing(private_key=tmp_path / "stranger" / "signing_key.pem")


def reseal(folder: Path, change: Callable[[dict], None] = lambda manifest: None) -> None:
    """Write manifest and digest anew, as somebody without the key can."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    besides = {"manifest.json", "manifest.sha256", "model.sig"}
    manifest["files"] = [
        {
            "path": name,
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in files(folder)
        if name not in besides
    ]
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(digest + "\n")


def culprit(folder: Path, key: Path | None = None) -> str:
    """The first thing that the message names: what stands before its first colon. Fails where nothing is caught."""
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(folder, key)
    return str(caught.value).removeprefix(f"{folder}: ").partition(":")[0]


def flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at:]


def delete(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + 1 :]


def test_every_changed_added_or_deleted_byte_of_every_file_is_caught_and_named(bundle: Path) -> None:
    draw, tried = random.Random(20), 0
    for name in files(bundle):
        path = bundle / name
        original = path.read_bytes()
        for change in (flip, insert, delete):
            path.write_bytes(change(original, draw))
            assert culprit(bundle) == name, (name, change.__name__)
            tried += 1
        path.write_bytes(original)
    verify_bundle(bundle)
    assert tried >= 30


@pytest.mark.parametrize("change", [flip, insert, delete])
def test_many_places_in_signature_digest_and_key_are_caught(
    bundle: Path, change: Callable[[bytes, random.Random], bytes]
) -> None:
    draw = random.Random(21)
    for name in ("model.sig", "manifest.sha256", "public_key.pem"):
        original = (bundle / name).read_bytes()
        for _ in range(40):
            (bundle / name).write_bytes(change(original, draw))
            if (bundle / name).read_bytes() != original:
                assert culprit(bundle) == name
        (bundle / name).write_bytes(original)


def test_bytes_of_the_signature_that_no_parser_minds_are_caught(bundle: Path) -> None:
    original = (bundle / "model.sig").read_text()
    document = json.loads(original)
    document["dsseEnvelope"]["signatures"][0]["keyid"] = "x"
    variants = [json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n", original + " ", " " + original]
    payload = json.loads(original)["dsseEnvelope"]["payload"]
    if payload.endswith("="):  # the bits before the padding say nothing
        digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        last = payload.rstrip("=")
        other = last[:-1] + digits[digits.index(last[-1]) + 1] + "=" * (len(payload) - len(last))
        assert base64.b64decode(other) == base64.b64decode(payload)
        variants.append(original.replace(payload, other))
    for text in variants:
        (bundle / "model.sig").write_text(text)
        assert culprit(bundle) == "model.sig"


def test_every_deleted_file_is_named(bundle: Path, tmp_path: Path) -> None:
    for name in files(bundle):
        if name == "manifest.sha256":
            continue  # a bundle without its digest: see test_bundle
        (bundle / name).rename(tmp_path / "kept")
        assert culprit(bundle) == name
        (tmp_path / "kept").rename(bundle / name)


def test_every_added_file_is_named_hidden_and_ignored_by_git_or_not(bundle: Path) -> None:
    for name in (".gitignore", ".gitattributes", "plots/new.png", "zzz", "model.sig.bak", ".git/config"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("x")
        assert culprit(bundle) == name
        (bundle / name).unlink()
        if name.startswith(".git/"):
            (bundle / ".git").rmdir()


def test_exchanged_contents_of_two_files_name_one_of_them(bundle: Path) -> None:
    draw, names = random.Random(22), files(bundle)
    for _ in range(30):
        one, other = sorted(draw.sample(names, 2))
        first, second = (bundle / one).read_bytes(), (bundle / other).read_bytes()
        (bundle / one).write_bytes(second)
        (bundle / other).write_bytes(first)
        assert culprit(bundle) in (one, other)
        (bundle / one).write_bytes(first)
        (bundle / other).write_bytes(second)


def test_manifest_and_digest_made_to_fit_are_caught_by_the_signature(bundle: Path, tmp_path: Path) -> None:
    draw = random.Random(23)
    kept = {name: (bundle / name).read_bytes() for name in ("manifest.json", "manifest.sha256")}
    for name in files(bundle):
        if name in kept or name in ("model.sig", "public_key.pem"):
            continue
        original = (bundle / name).read_bytes()
        (bundle / name).write_bytes(flip(original, draw))
        reseal(bundle)
        assert culprit(bundle) == name
        (bundle / name).write_bytes(original)
        for manifest, data in kept.items():
            (bundle / manifest).write_bytes(data)
    reseal(bundle, lambda manifest: manifest["gates"].update(harm_falls=True, extra=True))
    assert culprit(bundle) == "manifest.json"


def test_file_added_and_listed_is_not_signed(bundle: Path) -> None:
    (bundle / "extra.txt").write_text("x")
    reseal(bundle)
    with pytest.raises(IntegrityError, match=r"extra\.txt: is not signed"):
        verify_bundle(bundle)


def test_signature_of_another_bundle_of_the_same_signer_is_caught(
    bundle: Path, make_evidence: Callable[[], Evidence], signing: Signing, tmp_path: Path
) -> None:
    evidence = make_evidence()
    evidence.queries[0]["response"] = "another answer"
    write_bundle(evidence, tmp_path / "other", signing)
    shutil.copy(tmp_path / "other" / "model.sig", bundle / "model.sig")
    with pytest.raises(IntegrityError, match=r"model\.sig belongs to another bundle"):
        verify_bundle(bundle)


def test_unsigned_bundle_fails(bundle: Path) -> None:
    (bundle / "model.sig").unlink()
    with pytest.raises(IntegrityError, match=r"model\.sig: missing; an audit bundle is always signed"):
        verify_bundle(bundle)


def test_bundle_signed_anew_by_a_stranger_fails_against_the_signers_key_and_shows_its_own(
    bundle: Path, signing: Signing, stranger: Signing
) -> None:
    shutil.copy(public(stranger), bundle / "public_key.pem")
    (bundle / "model_card.md").write_text("all is well")
    reseal(bundle)
    (bundle / "model.sig").unlink()
    sign_folder(bundle, stranger)
    assert inspect_bundle(bundle).fingerprint == fingerprint(load_public_key(public(stranger)))
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(bundle, public(signing))
    for key in (public(signing), public(stranger)):
        assert fingerprint(load_public_key(key)) in str(caught.value)


def test_another_key_in_the_bundle_does_not_make_it_anothers(bundle: Path, stranger: Signing, signing: Signing) -> None:
    shutil.copy(public(stranger), bundle / "public_key.pem")
    reseal(bundle)
    assert culprit(bundle) == "model.sig"
    assert culprit(bundle, public(signing)) == "public_key.pem"


def test_signers_key_verifies_and_gives_its_fingerprint(bundle: Path, signing: Signing) -> None:
    found = inspect_bundle(bundle, Trust(key=public(signing)))
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public(signing), "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert found.fingerprint == hashlib.sha256(der).hexdigest()
    assert (bundle / "public_key.pem").read_bytes() == public(signing).read_bytes()


def test_key_that_is_none_is_the_callers_mistake(bundle: Path, signing: Signing, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa", "2048"], capture_output=True, check=True)
    subprocess.run(["openssl", "rsa", "-in", tmp_path / "rsa", "-pubout", "-out", rsa], capture_output=True, check=True)
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path, rsa, signing.private_key):
        with pytest.raises(InputError, match=r"public key"):
            verify_bundle(bundle, path)


def test_model_signings_own_command_verifies_a_bundle(bundle: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(bundle), "--no-ignore-git-paths"]
    keyed = [*command, "--signature", str(bundle / "model.sig"), "--public_key", str(bundle / "public_key.pem")]
    assert subprocess.run(keyed, capture_output=True).returncode == 0
    (bundle / "report.html").write_text("x")
    assert subprocess.run(keyed, capture_output=True).returncode != 0


def test_verification_loads_no_heavy_library(bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lancet_pipeline.governance.verification import verify_bundle; "
        f"verify_bundle(Path({str(bundle)!r})); "
        "print(*{'torch', 'dagster', 'mlflow', 'transformers', 'scipy', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


def test_key_is_made_once_private_and_never_overwritten(evidence: Evidence, tmp_path: Path) -> None:
    where = deployment({}, tmp_path / "home").signing
    write_bundle(evidence, tmp_path / "one", where)
    key = tmp_path / "home" / "keys" / "signing_key.pem"
    made = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    write_bundle(evidence, tmp_path / "two", where)
    assert key.read_bytes() == made
    with pytest.raises(InputError, match="there is a key already"):
        create_keys(key)
    assert key.read_bytes() == made
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing_key.pem", "signing_key.pub"]


def test_key_that_was_named_but_cannot_be_used_stops_before_anything_is_written(
    evidence: Evidence, tmp_path: Path
) -> None:
    (tmp_path / "broken.pem").write_text("no key")
    for name, told in (("missing.pem", "no such file"), ("broken.pem", "no private key in PEM")):
        named = deployment({"LANCET_SIGNING_KEY": str(tmp_path / name)}, tmp_path / "home").signing
        with pytest.raises(InputError, match=told):
            write_bundle(evidence, tmp_path / "out", named)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pem"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_key_that_may_not_be_read_is_named(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    key = shutil.copy(signing.private_key or "", tmp_path / "key.pem")
    key.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        write_bundle(evidence, tmp_path / "out", replace(signing, private_key=key, create=False))


def test_unknown_signer_and_missing_settings_are_named(evidence: Evidence, signing: Signing, tmp_path: Path) -> None:
    for signer, told in (
        ("seal", "no such signer"),
        ("certificate", "LANCET_SIGNING_CERTIFICATE"),
        ("pkcs11", "LANCET_PKCS11_URI"),
    ):
        with pytest.raises(InputError, match=told):
            write_bundle(evidence, tmp_path / "out", replace(signing, signer=signer))
    assert not list(tmp_path.iterdir())


def test_secrets_of_a_signer_are_not_shown() -> None:
    where = deployment({"LANCET_PKCS11_URI": "pkcs11:pin-value=1234", "LANCET_SIGSTORE_TOKEN": "ey.secret"})
    assert "1234" not in repr(where)
    assert "secret" not in repr(where)


def test_certificate_is_checked_against_the_chain_that_is_trusted(evidence: Evidence, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("root", "other"):
        openssl("req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (tmp_path / "usage").write_text("keyUsage=digitalSignature\n")
    openssl("req", *curve, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=signer")
    issued = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "usage")
    openssl("x509", "-req", "-in", "leaf.csr", *issued, "-out", "leaf.pem")
    root = (tmp_path / "root.pem",)
    signing = Signing("certificate", tmp_path / "leaf.key", certificate=tmp_path / "leaf.pem", chain=root)
    bundle = tmp_path / "bundle"
    write_bundle(evidence, bundle, signing)
    assert inspect_bundle(bundle, Trust(chain=root)).fingerprint is None
    with pytest.raises(InputError, match="--chain"):
        verify_bundle(bundle)
    with pytest.raises(IntegrityError, match=r"model\.sig: is no true signature"):
        inspect_bundle(bundle, Trust(chain=(tmp_path / "other.pem",)))
    (bundle / "report.html").write_text("x")
    reseal(bundle)
    with pytest.raises(IntegrityError, match=r"report\.html: is not what was signed"):
        inspect_bundle(bundle, Trust(chain=root))
