"""How often one run reads what it works with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_tree, training_rows, write_tiny_study

from lancet_pipeline.config.study import Architecture
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.models.loading import new_model, save_model
from lancet_pipeline.store.artifacts import ArtifactStore

COUNTED = """
import hashlib, json, os, sys
from collections import Counter
from pathlib import Path
from lancet_pipeline import cli
from lancet_pipeline.lineage import sources as inputs

hashed, parsed = Counter(), Counter()
file_digest, read_samples = hashlib.file_digest, inputs.read_samples

def counted_digest(file, *arguments):
    hashed[os.fstat(file.fileno()).st_ino] += 1
    return file_digest(file, *arguments)

def counted_samples(source, **settings):
    parsed[Path(source.path).stem] += 1
    return read_samples(source, **settings)

hashlib.file_digest, inputs.read_samples = counted_digest, counted_samples
cli.app(sys.argv[2:], standalone_mode=False)
Path(sys.argv[1]).write_text(json.dumps({"hashed": hashed, "parsed": parsed}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict[str, dict[str, int]], dict[str, Path]]:
    """What a run from a checkpoint counted, by inode and by source, and the folders of its models."""
    root = tmp_path_factory.mktemp("reading")
    tree, texts = tiny_tree(), [text for row in training_rows() for text in (row["prompt"], row["response"])]
    model = tree["model"]
    tokenizer = train_tokenizer(texts, model["architecture"]["vocab_size"])
    blank = new_model(Architecture(**model.pop("architecture")), tokenizer, max_length=64, seed=0)
    save_model(blank, tokenizer, root / "checkpoint")
    tree["model"] = {**model, "source": "finetune", "checkpoint": str(root / "checkpoint")}
    tree["evaluation"]["references"] = ["retrain_clean"]
    study = write_tiny_study(root / "study", tree)
    command = [sys.executable, "-c", COUNTED, root / "counts.json", "run", study, "--home", root / "home"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    store, lineage = ArtifactStore(root / "home"), last_run(ArtifactStore(root / "home"), "tiny")
    models = {
        name: store.folder("tiny", name, lineage[name]["version"])
        for name in ("base_model", "reference_models", "corrected_model")
    }
    return json.loads((root / "counts.json").read_text()), {"checkpoint": root / "checkpoint", **models}


def test_one_run_parses_each_source_once(run):
    counts, _ = run
    assert counts["parsed"] == dict.fromkeys(("train", "probes", "harmful", "ood", "benign", "utility"), 1)


def test_one_run_hashes_each_model_once(run):
    counts, models = run
    files = {name: list(folder.rglob("*.safetensors")) for name, folder in models.items()}
    found = {name: [counts["hashed"].get(str(file.stat().st_ino), 0) for file in files[name]] for name in files}
    assert found == {name: [1] for name in models}
