"""The commands on bundles: what they print, and their exit codes."""

import json
from pathlib import Path

from command import lancet

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.governance.keys import create_keys, fingerprint, load_public_key


def test_verify_without_a_key_says_what_that_is_worth(pristine: Path, signing: Signing) -> None:
    told = lancet("verify", pristine).stdout
    assert fingerprint(load_public_key(pristine / "public_key.pem")) in told
    assert "only as good as the comparison of this fingerprint" in told


def test_verify_with_the_key_another_key_and_no_key(pristine: Path, signing: Signing, tmp_path: Path) -> None:
    public = signing.private_key.with_suffix(".pub")  # type: ignore[union-attr]
    other = create_keys(tmp_path / "other.pem")
    keys = {public: 0, other: 1, pristine / "study.json": 2}
    right, wrong, none = (lancet("verify", pristine, "--key", key, code=code) for key, code in keys.items())
    assert "only as good" not in right.stdout
    for key in (public, other):
        assert fingerprint(load_public_key(key)) in wrong.stderr
    assert "no public key" in none.stderr


def test_keys_are_created_once_and_shown(tmp_path: Path) -> None:
    lancet("keys", "show", "--home", tmp_path, code=2)
    made = lancet("keys", "create", "--home", tmp_path)
    shown = lancet("keys", "show", "--home", tmp_path)
    told = fingerprint(load_public_key(tmp_path / "keys" / "signing_key.pub"))
    assert told in made.stdout
    assert told in shown.stdout
    assert "PRIVATE" not in made.stdout + shown.stdout
    lancet("keys", "create", "--home", tmp_path, code=2)


def test_diff_prints_json_and_names_a_broken_bundle(pristine: Path, bundle: Path) -> None:
    done = lancet("diff", pristine, bundle, "--json")
    assert json.loads(done.stdout)["stages"] == []
    (bundle / "lineage.json").write_text("{}")
    broken = lancet("diff", pristine, bundle, code=1)
    assert "lineage.json" in broken.stderr


def test_bundle_of_a_study_that_was_not_run_is_an_input_error(tmp_path: Path) -> None:
    done = lancet("bundle", "demo", "--home", tmp_path / "home", "--out", tmp_path / "out", code=2)
    assert "lancet run demo" in done.stderr
    assert not (tmp_path / "out").exists()


def test_run_whose_signing_key_is_missing_stops_before_anything_is_computed(tiny_study: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    gone = {"LANCET_SIGNING_KEY": str(tmp_path / "gone.pem")}
    done = lancet("run", tiny_study, "--home", home, code=2, settings=gone)
    assert "gone.pem: no such file" in done.stderr
    assert not (home / "artifacts").exists()
