"""A study that does not fit is refused with the field, the value and the remedy."""

import pytest
import yaml
from conftest import tiny_tree

from lancet_pipeline.config.loading import PACKAGED_STUDIES, find_study, load_study
from lancet_pipeline.errors import InputError


def changed(path: str, value) -> dict:
    tree = tiny_tree()
    node = tree
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pareto.alpha", 1.4, r"pareto\.alpha = 1\.4: must be in \(0, 1\)"),
        ("pareto.alhpa", 0.2, r"pareto\.alhpa: unknown key; did you mean 'alpha'\?"),
        ("correctoin", {}, "did you mean 'correction'"),
        ("model.training.epochs", -1, r"model\.training\.epochs = -1: must be greater than 0"),
        ("model.source", "finetune", "source: finetune needs checkpoint"),
        ("correction.method", "magic", r"correction\.method = \"magic\": must be 'ibo'"),
        ("influence.method", "bm52", r"influence\.method = \"bm52\": must be 'linfac', .*'bm25', "),
        ("data.train", {"path": "a", "hub": "b"}, "exactly one of path, hub, builtin"),
        ("evaluation.judge", {"name": "lexicon"}, "name: lexicon needs words"),
        ("evaluation.judge", {"name": "classifier", "model": "a/b"}, "name: classifier needs harmful_labels"),
        ("evaluation.judge", {"name": "guard", "model": "a/b", "threshold": 1}, "name: guard takes no threshold"),
        ("evaluation.judge", {"minimum_agreement": 0.9}, "minimum_agreement needs validation"),
        ("name", "no spaces", r"name = \"no spaces\""),
        ("seed", "many", r"seed = \"many\": must be a valid integer"),
    ],
)
def test_bad_settings_are_named(tmp_path, path, value, message):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(InputError, match=message) as caught:
        load_study(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b\n", "key 'name' stands twice"),
        (b"name: [", "not valid YAML"),
        (b"- a\n", "must be a mapping"),
        (b"name: \xff\n", "byte 6: not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_study(tmp_path / "bad.yaml")


def test_unknown_study_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'demo'"):
        find_study("dmeo", [PACKAGED_STUDIES])


@pytest.mark.parametrize("path", sorted(PACKAGED_STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_studies_are_valid_and_named_after_their_file(path):
    assert load_study(path).name == path.stem
