"""What a study reads from outside: its sources, validated and versioned by content before anything runs."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from lancet_pipeline.config.experiment import is_variant
from lancet_pipeline.config.study import DataSource, Study
from lancet_pipeline.correction.replacements import check_replacements, read_replacements
from lancet_pipeline.data.expected_answers import expected_answers
from lancet_pipeline.data.readers import data_files, describe, read_rows, read_samples
from lancet_pipeline.data.schema import content_hash
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.gates import prompts_needed
from lancet_pipeline.evaluation.judges import located_judge
from lancet_pipeline.evaluation.judges.expected import READS
from lancet_pipeline.evaluation.paraphrases import check_paraphrases, read_paraphrases
from lancet_pipeline.files import digest, sha256, state
from lancet_pipeline.lineage.stages import SOURCES, TABLES
from lancet_pipeline.models.loading import check_checkpoint, check_files, find_checkpoint
from lancet_pipeline.models.memory import require_memory_packages

_READERS = {
    "prompts": read_samples,
    "samples": partial(read_samples, responses=True),
    "paraphrases": read_paraphrases,
    "replacements": read_replacements,
}
"""By what the rows of a source are."""

_HARM = ("probe_prompts", "harmful_prompts", "ood_prompts")
"""Prompts whose answers are judged for harm."""


def read_source(study: Study, name: str) -> pa.Table:
    """The validated rows of one source asset. Raises InputError with file, row and remedy."""
    return versioned_source(study, name)[0]


def versioned_source(study: Study, name: str) -> tuple[pa.Table, str]:
    """As `read_source`, with the version of that very content."""
    source = TABLES[name].origin(study)
    if source is None:  # only paraphrases and replacements may be left out
        table = (read_replacements if name == "replacements" else read_paraphrases)(None)
        return table, content_hash(table)
    read = _read.__wrapped__ if source.hub else _read  # only reading it says what the hub holds
    required = READS if name in _HARM and study.evaluation.judge.name == "expected" else ()
    return read(source.model_dump_json(), TABLES[name].rows, required, _look(Path(source.path)) if source.path else ())


def too_few_prompts(study: Study) -> list[str]:
    """Gates that cannot pass because the study has too few prompts for their limits, a sentence each. What lies on the hub is not
    looked at."""
    told = []
    for name, (gate, needed) in prompts_needed(study.evaluation).items():
        source = TABLES[name].origin(study)
        if source is None or source.hub:
            continue
        rows = versioned_source(study, name)[0].num_rows
        if needed is None or rows < needed:
            wanted = "no number of them is enough" if needed is None else f"{needed} are needed"
            told.append(f"gate {gate} cannot be shown to pass with {rows} {name.replace('_', ' ')}: {wanted}")
    return told


@lru_cache(maxsize=len(TABLES))  # what one run reads
def _read(source: str, rows: str, required: Sequence[str], look: tuple) -> tuple[pa.Table, str]:
    """Samples and version of a source (as JSON), read again only where a `look` at its files differs. required: columns of
    expected answers that every prompt must have."""
    read = partial(_READERS[rows], required=required) if required else _READERS[rows]
    table = read(DataSource.model_validate_json(source))
    return table, content_hash(table)


def _look(path: Path) -> tuple:
    files = data_files(path) if path.is_dir() else [path]
    return tuple((file.name, *state(file)) for file in files if file.is_file())


def source_versions(study: Study, model_directories: Sequence[Path]) -> dict[str, str]:
    """Content version of every source of a study; reading them validates them all.

    Raises:
        InputError: the first source that does not fit, evaluation prompts that the training data or the probes hold,
            paraphrases of prompts that are not evaluated, replacements of samples that there are not, or a setting that needs a package which is not installed.
    """
    require_memory_packages(study)
    tables, versions = {}, {}
    for name in TABLES:
        tables[name], versions[name] = versioned_source(study, name)
    _check_held_out(tables)
    check_paraphrases(tables["paraphrases"], tables["harmful_prompts"], study.evaluation.paraphrases)
    check_replacements(tables["replacements"], tables["training_data"], study.correction.replacements)
    for name in SOURCES.keys() - TABLES.keys():
        versions[name] = source_version(study, name, model_directories)
    return versions


def source_version(study: Study, name: str, model_directories: Sequence[Path]) -> str:
    """Content version of one source."""
    if name == "checkpoint":
        return checkpoint_version(study, model_directories)
    if name == "judge":
        return judge_version(study, model_directories)
    if name == "judge_labels":
        return labels_version(study)
    if name == "embedding_model":
        return embedding_version(study, model_directories)
    return versioned_source(study, name)[1]


def observed(
    name: str,
    studies: Iterable[str],
    load: Callable[[str], Study],
    model_directories: Sequence[Path],
    warn: Callable[[str], None],
) -> dict[str, str]:
    """Content version of one source in every study, variants apart; `warn` hears of those in which it cannot be read."""
    found = {}
    for study in studies:
        if is_variant(study):
            continue
        try:
            found[study] = source_version(load(study), name, model_directories)
        except InputError as error:  # one study's broken file hides no other study's data
            warn(str(error))
    return found


def unchanged(source: str, planned: str, found: str) -> None:
    """Raises InputError where the content `found` of a source is not that which a run was planned for."""
    if found != planned:
        raise InputError(
            f"{source}: changed since this run began (version {planned[:16]}, now {found[:16]}); nothing was written of it, "
            "run again to take the new content"
        )


def checkpoint_version(study: Study, model_directories: Sequence[Path]) -> str:
    """Hash of a checkpoint's configuration, tokenizer and weights; of the commit for one on the hub."""
    model = study.model
    if model.checkpoint is None:
        return digest(["none"])
    return _model_version("model.checkpoint", model.checkpoint, model.revision, model_directories, check_checkpoint)


def judge_version(study: Study, model_directories: Sequence[Path]) -> str:
    """Hash of what a judge reads: its word list, model or version of bandit, and the human labels where a minimum agreement is asked.

    Raises:
        InputError: a word list, a model or labels that cannot be used, or bandit is not installed.
    """
    judge = located_judge(study, model_directories)
    parts: list = []
    if judge.name == "bandit":
        from lancet_pipeline.evaluation.judges.code import bandit_version

        parts.append(f"bandit {bandit_version()}")
    if judge.words is not None:
        from lancet_pipeline.evaluation.judges.phrases import read_lexicon

        read_lexicon(Path(judge.words))
        parts.append(sha256(Path(judge.words)))
    if judge.model is not None:

        def check(folder: Path) -> None:
            from transformers import AutoConfig

            from lancet_pipeline.evaluation.judges.models import check_labels

            check_files(folder, "evaluation.judge.model")
            check_labels(judge, AutoConfig.from_pretrained(folder))

        parts.append(_model_version("evaluation.judge.model", judge.model, judge.revision, model_directories, check))
    if judge.minimum_agreement is not None:
        parts.append(labels_version(study))
    return digest(parts or ["none"])


def embedding_version(study: Study, model_directories: Sequence[Path]) -> str:
    """As `checkpoint_version`, of the model that embeds texts."""
    if study.influence.method != "embeddings":
        return digest(["none"])
    setting = "influence.embedding_model"
    check = partial(check_files, setting=setting)
    return _model_version(setting, study.influence.embedding_model, None, model_directories, check)


def labels_version(study: Study) -> str:
    """Hash of the human labels that the judge is compared with. Raises InputError where they cannot be read, or lack the
    answers that the judge expects."""
    judge = study.evaluation.judge
    if judge.validation is None:
        return digest([json.dumps("none")])
    rows = list(read_rows(judge.validation))
    for number, row in enumerate(rows if judge.name == "expected" else (), start=1):
        expected_answers(row, describe(judge.validation), number, READS)
    return digest([json.dumps(row, sort_keys=True, default=str) for row in rows])


def _model_version(
    setting: str, name: str, revision: str | None, directories: Sequence[Path], check: Callable[[Path], None]
) -> str:
    folder = Path(find_checkpoint(name, directories))
    if folder.is_absolute():
        check(folder)
        files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja", ".model"})
        return digest([[path.name, sha256(path)] for path in files])
    try:
        return digest([name, hub_commit("model", name, revision)])
    except Exception as error:  # the hub client raises a dozen types of its own
        looked = ", ".join(str(directory / name.rpartition("/")[2]) for directory in directories)
        raise InputError(
            f"{setting} = {name}: not in {looked}, and the hub did not give it ({type(error).__name__}); "
            "put the checkpoint there, or check name and connection"
        ) from error


def hub_commit(kind: str, name: str, revision: str | None) -> str:
    """The commit of a revision of a `dataset` or `model`, from the hub; raises what its client raises."""
    from huggingface_hub import HfApi

    return HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=5).sha or ""


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
