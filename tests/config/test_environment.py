"""Variables are declared in one place, documented, and refused without being shown."""

import re
from pathlib import Path

import pytest

from lancet_pipeline.config.environment import VARIABLES, deployment
from lancet_pipeline.errors import InputError


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s3://key:hush@bucket/prefix", "holds a password"),
        ("s3://bucket/prefix?secret=hush", "holds a password or options"),
        ("bucket/prefix", "must be a URL"),
        ("s3://", "must be a URL"),
        ("sftp://hush/prefix", "sftp:// is no store .* known ones: s3, s3a, gs, .*file"),
    ],
)
def test_a_url_that_does_not_fit_is_refused_and_not_shown(value, message):
    with pytest.raises(InputError, match=message) as caught:
        deployment({"LANCET_ARTIFACTS": value})
    assert "hush" not in str(caught.value)


def test_every_variable_that_the_code_names_is_declared_in_one_place():
    root = Path(__file__).parents[2]
    files = [path for name in ("lancet_pipeline", "assets", "resources") for path in (root / name).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"\bLANCET_[A-Z0-9_]+\b", path.read_text(encoding="utf-8"))}
    assert named == {name for name in VARIABLES if name.startswith("LANCET_")}


def test_every_variable_is_documented():
    docs = Path(__file__).parents[2] / "docs"
    text = "".join((docs / name).read_text(encoding="utf-8") for name in ("deployment.md", "governance.md"))
    assert [name for name, description in VARIABLES.items() if name not in text or not description] == []
