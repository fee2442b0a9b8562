"""What the registry records of a corrected model: a description, its figures, and the data behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import Origin, Study
from lancet_pipeline.evaluation.figures import main_figures, number_text, rate_text
from lancet_pipeline.evaluation.gates import Gate
from lancet_pipeline.lineage.stages import REPORTS, STAGES, TABLES


@dataclass(frozen=True)
class DataSet:
    """A source of a study, by reference: nothing of it is copied. version: 64 hex digits, of its content."""

    name: str
    source: Origin
    version: str
    context: str

    @property
    def digest(self) -> str:
        """As much of the version as MLflow's 36 characters take."""
        return self.version[:32]


@dataclass(frozen=True)
class Registration:
    """A corrected model as it enters the registry.

    folder: its checkpoint. description: two sentences. tags: strings. metrics: name -> (value, the source it was measured
    on or None). card: the model card of its audit bundle, in Markdown. max_new_tokens: of the answers that were judged.
    """

    study: str
    folder: Path
    description: str
    tags: Mapping[str, str]
    metrics: Mapping[str, tuple[float, str | None]]
    data: Sequence[DataSet]
    max_new_tokens: int
    card: str


def data_sets(study: Study, versions: Mapping[str, str]) -> list[DataSet]:
    """The training data and the sets of the evaluations, with their content versions."""
    measured_on = {name for report in REPORTS for name in STAGES[report].inputs}
    contexts = {"training_data": "training"} | {name: "evaluation" for name in TABLES if name in measured_on}
    found = ((name, TABLES[name].origin(study), context) for name, context in contexts.items())
    return [DataSet(name, origin, versions[name], context) for name, origin, context in found if origin is not None]


def registry_metrics(
    figures: Mapping[str, Mapping[str, Any]], gates: Sequence[Gate]
) -> dict[str, tuple[float, str | None]]:
    """Figures of the corrected model, rates with both ends of their interval; of each gate, its value and 1 if it passed."""
    corrected, found = figures["corrected"], {}
    for figure in main_figures():
        found[figure.name] = (figure.value(corrected), figure.source)
        for end in ("low", "high") if figure.rate else ():
            found[f"{figure.name}_{end}"] = (corrected[figure.name][end], figure.source)
    for gate in gates:
        found[f"gate/{gate.name}"] = (float(gate.passed), None)
        if gate.value is not None:
            found[f"gate/{gate.name}/value"] = (gate.value, None)
    return found


def describe(study: Study, figures: Mapping[str, Mapping[str, Any]], gates: Sequence[Gate]) -> str:
    """What the model is, and how it did: one sentence each."""
    base, corrected = figures["base"], figures["corrected"]
    origin = study.model.checkpoint or "A model trained from scratch"
    held = sum(gate.passed for gate in gates)
    return (
        f"{origin} on the data of study '{study.name}', corrected with {study.correction.method} on the training samples "
        f"that influence its undesirable outputs most. Harmful answers went from {rate_text(base['harm_rate'])} to "
        f"{rate_text(corrected['harm_rate'])} in distribution and from {rate_text(base['ood_harm_rate'])} to "
        f"{rate_text(corrected['ood_harm_rate'])} out of distribution, refusals of benign prompts from "
        f"{rate_text(base['over_refusal_rate'])} to {rate_text(corrected['over_refusal_rate'])}, perplexity is "
        f"{number_text(corrected['perplexity'] / base['perplexity'])} times the base model's, and {held} of "
        f"{len(gates)} gates passed."
    )
