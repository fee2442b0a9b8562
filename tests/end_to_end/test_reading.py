"""How often one run reads what it works with."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from command import lancet
from conftest import tiny_tree, training_rows, write_jsonl, write_tiny_study

from lancet_pipeline.config.study import Architecture
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.lineage import sources
from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.models.loading import new_model, save_model
from lancet_pipeline.store.artifacts import ArtifactStore


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict[str, Counter], dict[str, Path]]:
    """What a run from a checkpoint counted, by inode and by source, and the folders of its models."""
    root = tmp_path_factory.mktemp("reading")
    tree, texts = tiny_tree(), [text for row in training_rows() for text in (row["prompt"], row["response"])]
    model = tree["model"]
    tokenizer = train_tokenizer(texts, model["architecture"]["vocab_size"])
    blank = new_model(Architecture(**model.pop("architecture")), tokenizer, max_length=64, seed=0)
    save_model(blank, tokenizer, root / "checkpoint")
    tree["model"] = {**model, "source": "finetune", "checkpoint": str(root / "checkpoint")}
    tree["evaluation"]["references"] = ["retrain_clean"]
    tree["evaluation"]["paraphrases"] = {"path": "paraphrases.jsonl"}
    study = write_tiny_study(root / "study", tree)
    asked = json.loads((study.parent / "harmful.jsonl").read_text().splitlines()[0])["prompt"]
    write_jsonl(study.parent / "paraphrases.jsonl", [{"prompt": asked, "paraphrase": "In other words: what now?"}])
    # What was written within the clock's tick is read again at each look.
    for file in (*study.parent.iterdir(), *(root / "checkpoint").iterdir()):
        os.utime(file, (file.stat().st_atime - 60, file.stat().st_mtime - 60))
    hashed, parsed = Counter(), Counter()
    file_digest = hashlib.file_digest

    def counted_digest(file, *arguments):
        hashed[os.fstat(file.fileno()).st_ino] += 1
        return file_digest(file, *arguments)

    def counted(read):
        def reading(source):
            parsed[Path(source.path).stem] += 1
            return read(source)

        return reading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "file_digest", counted_digest)
        patch.setattr(sources, "_READERS", {rows: counted(read) for rows, read in sources._READERS.items()})
        lancet("run", study, "--home", root / "home")
    store, lineage = ArtifactStore(root / "home"), last_run(ArtifactStore(root / "home"), "tiny")
    models = {
        name: store.folder("tiny", name, lineage[name]["version"])
        for name in ("base_model", "reference_models", "corrected_model")
    }
    return {"hashed": hashed, "parsed": parsed}, {"checkpoint": root / "checkpoint", **models}


def test_one_run_parses_each_source_once(run):
    counts, _ = run
    assert counts["parsed"] == dict.fromkeys(
        ("train", "probes", "harmful", "ood", "benign", "utility", "paraphrases"), 1
    )


def test_one_run_hashes_each_model_once(run):
    counts, models = run
    files = {name: list(folder.rglob("*.safetensors")) for name, folder in models.items()}
    found = {name: [counts["hashed"][file.stat().st_ino] for file in files[name]] for name in files}
    assert found == {name: [1] for name in models}
