"""The graph of a study, without an orchestrator: what each asset reads, and the version that follows from it.

A version is a hash of the asset's name and code version, the part of the study that it reads, and the versions of
its inputs; sources are versioned by content. So versions are known before anything runs, the same inputs give the
same version, and one changed sample changes exactly the versions of what depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from lancet_pipeline.config.study import CorrectionSettings, JudgeSettings, Origin, Study
from lancet_pipeline.files import digest


@dataclass(frozen=True)
class Stage:
    """One asset: `inputs` are sources or other stages, `settings` dotted paths into the study.

    optional: further paths, which count only where the study departs from their defaults, so that a study without them keeps
    its version.
    """

    name: str
    group: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    code_version: str = "1"
    optional: tuple[str, ...] = ()

    def settings_of(self, study: Study) -> dict[str, Any]:
        """The part of a study that it reads, JSON-ready."""
        chosen = study.settings_at(self.optional)
        changed = {path: value for path, value in chosen.items() if value != study.default_at(path)}
        return study.settings_at(self.settings) | changed

    @property
    def names_study(self) -> bool:
        """Whether its output holds the study's name, so that no other study can take it over."""
        return self.group == "governance"


@dataclass(frozen=True)
class Source:
    """What a study reads from outside. setting: of a table, its dotted path in the study. rows: what the table holds; samples
    need their responses."""

    name: str
    description: str
    setting: str = ""
    rows: Literal["prompts", "samples", "paraphrases", "replacements", ""] = ""

    @property
    def part(self) -> str:
        """Short name of a table: that of its setting."""
        return self.setting.rpartition(".")[2]

    def origin(self, study: Study) -> Origin | None:
        """Where a table comes from; None for what is no table, or one that the study leaves out."""
        return attrgetter(self.setting)(study) if self.setting else None


_SOURCES = (
    Source("training_data", "What the model learns from, safe and unsafe together.", "data.train", "samples"),
    Source(
        "replacements",
        "Good answers to prompts of training samples whose own are bad; empty where the study names none.",
        "correction.replacements",
        "replacements",
    ),
    Source(
        "checkpoint",
        "The model that training starts from, or that is taken as given; empty for one trained from scratch.",
    ),
    Source("probe_prompts", "Prompts that elicit the undesirable behaviour.", "data.probes", "prompts"),
    Source("harmful_prompts", "Held-out prompts of the same kind as the probes.", "data.harmful", "prompts"),
    Source("ood_prompts", "Prompts whose source and wording the training data never had.", "data.ood", "prompts"),
    Source(
        "paraphrases",
        "Other wordings of harmful prompts; empty where the study names none.",
        "evaluation.paraphrases",
        "paraphrases",
    ),
    Source("benign_prompts", "Harmless prompts near the sensitive ones.", "data.benign", "prompts"),
    Source("utility_responses", "Held-out safe responses.", "data.utility", "samples"),
    Source(
        "judge",
        "The word list, model or version of bandit that judges, and the labels it must agree with; empty for a judge that ships.",
    ),
    Source(
        "embedding_model", "The model whose embeddings tell how alike texts are; empty for another `influence.method`."
    ),
    Source("judge_labels", "The human labels that the judge is compared with; empty where there are none."),
)
SOURCES = {source.name: source for source in _SOURCES}
TABLES = {name: source for name, source in SOURCES.items() if source.setting}
"""The sources that are tables of samples."""


def _of(section: str, names: str) -> tuple[str, ...]:
    """The dotted paths of some settings of a section."""
    return tuple(f"{section}.{name}" for name in names.split())


_MODEL = (*_of("model", "source revision architecture training dtype"), "seed")
_TEXT = _of("data", "max_length chat_template")
_REUSE = ("model.reuse",)
_METHOD = ("influence.method",)
_COMPARED = ("base_model", "corrected_model", "reference_models")
# Files and models of a judge count by their content, which the sources `judge` and `judge_labels` stand for.
_BY_CONTENT = {"words", "model", "revision", "validation"}
_JUDGE = tuple(f"evaluation.judge.{name}" for name in JudgeSettings.model_fields if name not in _BY_CONTENT)
_CORRECTION = tuple(f"correction.{name}" for name in CorrectionSettings.model_fields if name != "replacements")
_JUDGED = (*_JUDGE, *_of("evaluation", "max_new_tokens sampled temperature references"), "seed")
_GATES = (
    *_of(
        "evaluation",
        "gates max_countering_harm max_harm_ratio max_perplexity_ratio max_over_refusal_increase max_benign_harm_increase",
    ),
    *_of(
        "evaluation",
        "max_benign_rate_fall max_garbled_rate max_opening_increase max_imbalance max_category_divergence max_category_fall",
    ),
)
_FITTED = _of("linfac", "units factors eigenvalue_correction labels factor_samples max_dim")
_SCORED = (*_of("linfac", "damping normalisation refinement"), "data.max_length", "seed")
REPORTS = ("harmlessness_report", "ood_report", "utility_report")

_STAGES = (
    Stage(
        "prepared_data",
        "data",
        ("training_data", "checkpoint"),
        (*_TEXT, "data.shard_size", "data.train.overlength", *_of("model", "source revision architecture")),
        optional=_REUSE,
    ),
    Stage("base_model", "model", ("prepared_data", "checkpoint"), _MODEL, optional=_REUSE),
    Stage("reference_models", "model", ("prepared_data", "checkpoint"), (*_MODEL, "evaluation.references")),
    Stage("undesirable_outputs", "model", ("base_model", "probe_prompts", "judge"), ("queries", *_JUDGE), "4"),
    Stage("linfac_factors", "influence", ("base_model", "prepared_data"), (*_FITTED, "seed"), "4", _REUSE),
    Stage(
        "influence_scores",
        "influence",
        ("linfac_factors", "undesirable_outputs", "base_model", "prepared_data", "embedding_model"),
        (*_SCORED, *_of("linfac", "query_groups")),
        "6",
        (*_REUSE, *_METHOD),
    ),
    Stage(
        "pareto_pairs",
        "selection",
        ("influence_scores", "prepared_data", "replacements", "judge"),
        ("pareto", "seed", *_JUDGE),
        "4",
        _METHOD,
    ),
    Stage(
        "corrected_model",
        "correction",
        ("pareto_pairs", "base_model", "prepared_data"),
        (*_CORRECTION, *_of("pareto", "pairing minimum"), "seed"),
        "6",
    ),
    Stage(
        "harmlessness_report",
        "evaluation",
        (*_COMPARED, "harmful_prompts", "paraphrases", "judge"),
        (*_JUDGED, "data.max_length"),
        "6",
    ),
    Stage("ood_report", "evaluation", (*_COMPARED, "ood_prompts", "judge"), (*_JUDGED, "data.max_length"), "6"),
    Stage(
        "utility_report",
        "evaluation",
        (*_COMPARED, "benign_prompts", "utility_responses", "judge"),
        (*_JUDGED, "data.max_length", "data.utility.overlength"),
        "7",
    ),
    Stage(
        "output_traces",
        "influence",
        (
            *("base_model", "corrected_model", "prepared_data", "linfac_factors", "undesirable_outputs"),
            *("influence_scores", "pareto_pairs", "harmlessness_report", "ood_report", "judge", "embedding_model"),
        ),
        ("governance.traced_outputs", "queries.max_new_tokens", *_JUDGE, *_SCORED),
        optional=_METHOD,
    ),
    Stage(
        "audit_bundle",
        "governance",
        (
            *("prepared_data", "undesirable_outputs", "influence_scores", "pareto_pairs", "corrected_model"),
            *(*REPORTS, "output_traces", "judge_labels"),
        ),
        (
            *("governance", "description", "evaluation", "influence", "linfac", "pareto", "correction"),
            *("queries", "model", "seed"),
        ),
        "5",
    ),
    Stage("registered_model", "governance", ("audit_bundle", "corrected_model", *REPORTS), _GATES, "3"),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _STAGES}
"""Every asset, in an order in which inputs come first."""


def versions(study: Study, source_versions: Mapping[str, str]) -> dict[str, str]:
    """Version of every source and stage of a study: 64 hex digits each."""
    known = {name: source_versions[name] for name in SOURCES}
    for stage in STAGES.values():
        known[stage.name] = digest(
            {
                "asset": stage.name,
                "code_version": stage.code_version,
                "settings": stage.settings_of(study),
                "inputs": {name: known[name] for name in stage.inputs},
            }
        )
    return known


def upstream(*names: str) -> tuple[str, ...]:
    """The stages that `names` need, themselves included, inputs first.

    Raises:
        KeyError: a name is no stage.
    """
    needed = {STAGES[name].name for name in names}
    for stage in reversed(STAGES.values()):
        if stage.name in needed:
            needed.update(stage.inputs)
    return tuple(stage for stage in STAGES if stage in needed)
