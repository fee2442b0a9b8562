"""Bytes that every asset needs: on the device, in the host's memory, and on disk afterwards."""

from dataclasses import dataclass

from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.models.likelihood import LOGITS
from lancet_pipeline.scale.shapes import sketched
from lancet_pipeline.scale.work import ACTIVATIONS_A_LAYER, DAMPINGS, TRACED, Counts, adapter_parameters, unit_elements

ROW_BYTES = 2500
"""Host memory of one sample as rows and dictionaries hold it, its tokens apart."""
TOKEN_BYTES = 12
SCORE_BYTES = 95
"""Of a sample in the table of scores, and as much in the journal: 249 kB and 224 kB for 2,400 samples."""
STORED_TOKEN_BYTES = 3.2
ANSWER_BYTES = 60
LIBRARIES = 9e8
"""Host memory of the process before it holds any data or model."""


@dataclass(frozen=True)
class Bytes:
    device: float
    host: float
    disk: float


def factor_elements(counts: Counts) -> float:
    """Elements of both sides of every unit's factors."""
    limit = counts.study.linfac.max_dim
    units = counts.shape.units(counts.study.linfac.units)
    return counts.shape.layers * sum(sketched(s, limit) ** 2 + sketched(a, limit) ** 2 for s, a in units)


def activations(counts: Counts, tokens: float, head_tokens: float, *, kept: bool, recomputed: bool = False) -> float:
    """Of one batch: of every layer where a backward pass follows (`kept`), of one layer otherwise; and its logits, as far as
    they are held at once. `recomputed`: layers keep their input alone, but for the one at work."""
    shape = counts.shape
    a_token = (ACTIVATIONS_A_LAYER * shape.width + 3 * shape.ffn) * counts.element
    whole = shape.layers if kept and not recomputed else 1
    inputs = shape.layers * shape.width * counts.element if recomputed else 0
    logits = min(head_tokens * shape.vocabulary, LOGITS)
    return tokens * (a_token * whole + inputs) + logits * 4 * (3 if kept else 1)


def moment_bytes(states: str, element: int) -> int:
    """Of both moments of one trained parameter."""
    return 2 if states == "8bit" else 2 * element


def sizes(counts: Counts) -> dict[str, Bytes]:
    """By asset. Batches are taken at their fullest: compute.batch_tokens, or sequences of data.max_length in training."""
    study, shape, data = counts.study, counts.shape, counts.data
    longest, packed = study.data.max_length, study.compute.batch_tokens
    share = data.response / data.tokens
    weights = float(shape.parameters * counts.element)
    table = data.samples * (ROW_BYTES + TOKEN_BYTES * data.tokens)
    host = LIBRARIES + table
    # Weights in device memory come through the host.
    judge = 0.0 if counts.judge is None else 2.0 * counts.judge.parameters
    trained = weights
    if (training := study.model.training) is not None:
        tokens, moments = training.batch_size * longest, moment_bytes(training.optimizer_states, counts.element)
        trained = 2 * weights + moments * shape.parameters
        trained += activations(counts, tokens, tokens * share, kept=True, recomputed=counts.recomputed)
    passed = activations(counts, packed, packed * share, kept=True)
    basis = 4 * factor_elements(counts)
    matrices = 4 * unit_elements(counts) * (1 + counts.groups)
    candidates = 4 * min(TRACED, DAMPINGS * unit_elements(counts)) if study.linfac.damping == "auto" else 0.0
    generated = weights + judge + packed * 2 * shape.layers * shape.values * counts.element
    chunk = min(float(TRACED), counts.traced * unit_elements(counts))

    settings = study.correction
    of_step = (2 * settings.pairs_per_step + settings.retain_per_step) * longest
    trainable = shape.parameters if settings.lora is None else adapter_parameters(counts)
    frozen = 0.0 if settings.lora is None else weights
    corrected = frozen + (8.0 + moment_bytes(settings.optimizer_states, 4)) * trainable
    corrected += activations(counts, of_step, of_step * share, kept=True, recomputed=counts.recomputed)
    retained = min(settings.steps * settings.retain_per_step, 0.6 * data.samples) * data.response * shape.vocabulary * 4

    found = {
        "prepared_data": Bytes(0, host, data.samples * data.tokens * STORED_TOKEN_BYTES + 2e5),
        "base_model": Bytes(trained, host + weights, weights),
        "reference_models": Bytes(
            trained if study.evaluation.references else 0, host + weights, weights * len(study.evaluation.references)
        ),
        "undesirable_outputs": Bytes(generated, LIBRARIES + weights + judge, 2e4),
        "linfac_factors": Bytes(weights + passed + 3 * basis, host + weights, basis),
        "influence_scores": Bytes(
            weights + passed + basis + matrices + candidates,
            host + weights + data.samples * 4 * SCORE_BYTES,
            data.samples * 2 * (SCORE_BYTES + 8 * (counts.groups - 1)),
        ),
        "pareto_pairs": Bytes(0, host + data.samples * 4 * SCORE_BYTES, 3e4 + 20 * data.samples),
        "corrected_model": Bytes(corrected, host + weights + 4.0 * trainable + retained, weights),
        "output_traces": Bytes(
            weights + passed + basis + 2 * 4 * chunk, host + weights + data.samples * SCORE_BYTES, 2e3 * counts.traced
        ),
        "audit_bundle": Bytes(0, host, 1.2e6 + 20 * data.samples),
        "registered_model": Bytes(0, LIBRARIES, weights),  # the registry's own copy
    }
    for name in REPORTS:
        prompts = {"harmlessness_report": data.harmful, "ood_report": data.ood, "utility_report": data.benign}[name]
        answers = prompts * counts.models * (1 + study.evaluation.sampled)
        length = study.evaluation.max_new_tokens
        found[name] = Bytes(
            generated, LIBRARIES + weights + judge + answers * ROW_BYTES, 3e4 + answers * (ANSWER_BYTES + length)
        )
    return found
