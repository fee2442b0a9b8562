"""What a study reads from outside: its sources, validated and versioned by content before anything runs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lancet_pipeline.data.readers import read_rows, read_samples
from lancet_pipeline.data.schema import content_hash
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.paraphrases import check_paraphrases, read_paraphrases
from lancet_pipeline.files import sha256
from lancet_pipeline.models.loading import check_checkpoint, check_files
from lancet_pipeline.models.memory import require_memory_packages
from lancet_pipeline.study import JudgeSettings, Study

if TYPE_CHECKING:
    from lancet_pipeline.evaluation.judges import Judge

_TABLES = {
    "training_data": ("train", True),
    "probe_prompts": ("probes", False),
    "harmful_prompts": ("harmful", False),
    "ood_prompts": ("ood", False),
    "benign_prompts": ("benign", False),
    "utility_responses": ("utility", True),
}


def read_source(study: Study, name: str) -> pa.Table:
    """The validated samples of one source asset, or its paraphrases. Raises InputError with file, row and remedy."""
    if name == "paraphrases":
        return read_paraphrases(study.evaluation.paraphrases)
    field, responses = _TABLES[name]
    return read_samples(getattr(study.data, field), responses=responses)


def source_versions(study: Study, model_directories: Sequence[Path]) -> dict[str, str]:
    """Content version of every source of a study; reading them validates them all.

    Raises:
        InputError: the first source that does not fit, evaluation prompts that the training data or the probes hold,
            paraphrases of prompts that are not evaluated, or a setting that needs a package which is not installed.
    """
    require_memory_packages(study)
    tables = {name: read_source(study, name) for name in (*_TABLES, "paraphrases")}
    _check_held_out(tables)
    check_paraphrases(tables["paraphrases"], tables["harmful_prompts"], study.evaluation.paraphrases)
    versions = {name: content_hash(table) for name, table in tables.items()}
    versions["checkpoint"] = checkpoint_version(study, model_directories)
    versions["judge"] = judge_version(study, model_directories)
    return versions


def source_version(study: Study, name: str, model_directories: Sequence[Path]) -> str:
    """Content version of one source."""
    if name == "checkpoint":
        return checkpoint_version(study, model_directories)
    if name == "judge":
        return judge_version(study, model_directories)
    return content_hash(read_source(study, name))


def unchanged(source: str, planned: str, found: str) -> None:
    """Raises InputError where the content `found` of a source is not that which a run was planned for."""
    if found != planned:
        raise InputError(
            f"{source}: changed since this run began (version {planned[:16]}, now {found[:16]}); nothing was written of it, "
            "run again to take the new content"
        )


def find_checkpoint(checkpoint: str, model_directories: Sequence[Path]) -> str:
    """A local directory for `checkpoint` where there is one (its path, or its last part below `model_directories`);
    the name itself, for the hub, otherwise."""
    if Path(checkpoint).is_absolute():
        return checkpoint
    for directory in model_directories:
        if (directory / checkpoint.rpartition("/")[2]).is_dir():
            return str((directory / checkpoint.rpartition("/")[2]).absolute())
    return checkpoint


def checkpoint_version(study: Study, model_directories: Sequence[Path]) -> str:
    """Hash of a checkpoint's configuration, tokenizer and weights; of the commit for one on the hub."""
    if study.model.checkpoint is None:
        return _digest(["none"])
    return _model_version(
        "model.checkpoint", study.model.checkpoint, study.model.revision, model_directories, check_checkpoint
    )


def study_judge(study: Study, model_directories: Sequence[Path], device: str = "cpu") -> "Judge":
    """The judge of a study; its model is looked for as a checkpoint is (`find_checkpoint`)."""
    from lancet_pipeline.evaluation.judges import make_judge

    return make_judge(_local(study.evaluation.judge, model_directories), device)


def judge_version(study: Study, model_directories: Sequence[Path]) -> str:
    """Hash of what a judge reads: its word list or model, and the human labels where a minimum agreement is asked.

    Raises:
        InputError: a word list, a model or labels that cannot be used.
    """
    judge = _local(study.evaluation.judge, model_directories)
    parts: list = []
    if judge.words is not None:
        from lancet_pipeline.evaluation.judges import read_lexicon

        read_lexicon(Path(judge.words))
        parts.append(sha256(Path(judge.words)))
    if judge.model is not None:

        def check(folder: Path) -> None:
            from transformers import AutoConfig

            from lancet_pipeline.evaluation.model_judges import check_labels

            check_files(folder, "evaluation.judge.model")
            check_labels(judge, AutoConfig.from_pretrained(folder))

        parts.append(_model_version("evaluation.judge.model", judge.model, judge.revision, model_directories, check))
    if judge.minimum_agreement is not None and judge.validation is not None:
        rows = [json.dumps(row, sort_keys=True, default=str) for row in read_rows(judge.validation)]
        parts.append(_digest(rows))
    return _digest(parts or ["none"])


def _local(judge: JudgeSettings, model_directories: Sequence[Path]) -> JudgeSettings:
    if judge.model is None:
        return judge
    return judge.model_copy(update={"model": find_checkpoint(judge.model, model_directories)})


def _model_version(
    setting: str,
    name: str,
    revision: str | None,
    model_directories: Sequence[Path],
    check: Callable[[Path], None],
) -> str:
    found = find_checkpoint(name, model_directories)
    if not Path(found).is_absolute():
        return _digest([found, _hub_commit(setting, found, revision, model_directories)])
    folder = Path(found)
    check(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja", ".model"})
    return _digest([[path.name, sha256(path)] for path in files])


def _check_held_out(tables: dict[str, pa.Table]) -> None:
    """Evaluation on prompts that the model was trained on, or that chose the samples, would flatter the result."""
    for name, column in (("harmful_prompts", "prompt"), ("ood_prompts", "prompt"), ("paraphrases", "paraphrase")):
        prompts = set(tables[name][column].to_pylist())
        for other in ("training_data", "probe_prompts"):
            shared = prompts & set(tables[other]["prompt"].to_pylist())
            if shared:
                raise InputError(
                    f"{name}: {len(shared)} prompts stand in {other} too (one: {min(shared)[:60]!r}); "
                    "hold them out, or take disjoint `rows` of the file"
                )


def _hub_commit(setting: str, name: str, revision: str | None, model_directories: Sequence[Path]) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision).sha or ""
    except Exception as error:  # the hub client raises a dozen types of its own
        looked = ", ".join(str(directory / name.rpartition("/")[2]) for directory in model_directories)
        raise InputError(
            f"{setting} = {name}: not in {looked}, and the hub did not give it ({type(error).__name__}); "
            "put the checkpoint there, or check name and connection"
        ) from error


def _digest(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
