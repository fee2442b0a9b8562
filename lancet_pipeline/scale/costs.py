"""What every asset of a study does and needs: passes over its tokens, and bytes (docs/scaling.md)."""

import math
from typing import NamedTuple

from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.stages import REPORTS, STAGES
from lancet_pipeline.linfac.damping import ELEMENTS
from lancet_pipeline.linfac.influence import default_budget
from lancet_pipeline.linfac.traces import QUERY_ELEMENTS
from lancet_pipeline.models.likelihood import LOGITS
from lancet_pipeline.models.memory import LARGE_MODEL
from lancet_pipeline.scale.decoder import Decoder, Gradients
from lancet_pipeline.scale.workload import Workload

SELECTED = 0.2
"""Share of the samples on the driving and countering side together, at most; the Pareto rule rarely takes more."""
EIGH = 41.0
"""Operations of a symmetric eigendecomposition, and of those of halves for the reliability, over the cube of the side."""
GUARD_PROMPT, GUARD_TOKENS = 200, 16
"""Tokens of a guard's own instructions, and of its verdict."""
ROW_BYTES, TOKEN_BYTES, LIBRARIES = 2500, 12, 9e8
"""In host memory: of one sample as rows and dictionaries hold it, of one of its tokens, of the process before it holds any."""
STORED_TOKEN, SCORE, ANSWER = 3.2, 95, 60
"""Bytes on disk: of a token, of a sample in the table of scores (and in the journal), of an answer beside its tokens."""


class Work(NamedTuple):
    """flops: operations of dense products. bytes: memory traffic. rows: samples, answers or tables handled one by one. kind: which
    efficiency the products have."""

    kind: str
    flops: float = 0.0
    bytes: float = 0.0
    rows: float = 0.0

    def plus(self, other: "Work") -> "Work":
        return Work(self.kind, self.flops + other.flops, self.bytes + other.bytes, self.rows + other.rows)

    def times(self, factor: float) -> "Work":
        return Work(self.kind, factor * self.flops, factor * self.bytes, factor * self.rows)


class Costs:
    """adapters: parameters that a correction trains. factor_bytes: of all factors. gradient: elements of a query over all units.
    rotation: operations that take one into the eigenbasis and back. recomputed: activations, in training and correction."""

    def __init__(self, study: Study, data: Workload, model: Decoder, judge: Decoder | None = None) -> None:
        self.study, self.data, self.model, self.judge = study, data, model, judge
        linfac, lora, again = study.linfac, study.correction.lora, study.compute.activation_checkpointing
        self.prompt, self.models = data.tokens - data.response, 2 + len(study.evaluation.references)
        self.weights = model.parameters * (2.0 if study.model.dtype == "bfloat16" else 4.0)
        self.recomputed = model.parameters >= LARGE_MODEL if again == "auto" else again
        self.queries = min(study.queries.maximum, data.probes)
        by = {"none": 2, "query": self.queries, "cluster": 2, "category": 14}
        self.groups = by[linfac.query_groups]
        traced = study.governance.traced_outputs
        self.traced = self.queries + min(traced, data.harmful) + min(traced, data.ood)
        self.factor_samples = min(data.samples, linfac.factor_samples or default_budget(data.samples))
        self.units = model.units(linfac.units)
        self.sides = [(min(s, linfac.max_dim), min(a, linfac.max_dim)) for s, a in self.units]
        widths = zip(self.units, self.sides, strict=True)  # vectors are as long as a side is wide
        self.factor_bytes = 4.0 * model.layers * sum(s * kept_s + a * kept_a for (s, a), (kept_s, kept_a) in widths)
        self.gradient = model.layers * sum(s * a for s, a in self.units)
        self.rotation = model.layers * sum(4.0 * s * a * (s + a) for s, a in self.sides)
        ranks = model.layers * sum(s + a for s, a in model.units("linear"))
        self.adapters = lora.rank * ranks if lora else model.parameters

    def passes(
        self,
        kind: str,
        sequences: float,
        gradients: Gradients = "none",
        *,
        tokens: float | None = None,
        read: float | None = None,
        again: bool = False,
    ) -> Work:
        """Over sequences of the samples' length whose responses are read, unless told otherwise. `again`: activations are
        computed twice."""
        tokens, read = tokens or self.data.tokens, self.data.response if read is None else read
        flops = self.model.flops(tokens, read, gradients) + again * self.model.flops(tokens, read, "none")
        moved = tokens * self.model.layers * self.model.activations + read * self.model.config.vocab_size * 12
        walks = {"none": 1, "activations": 2, "parameters": 3}[gradients] + again
        return Work(kind, sequences * flops, sequences * walks * moved)

    def answers(self, prompts: float, prompt_tokens: float, new_tokens: int) -> Work:
        """A pass over prompts and answers; every token of a batch reads the weights once more. Batches are of equal lengths."""
        length = prompt_tokens + new_tokens
        steps = math.ceil(prompts / max(1.0, self.study.compute.batch_tokens // length)) * new_tokens
        whole = self.passes("forward", prompts, tokens=length, read=new_tokens)
        return whole.plus(Work("forward", 0.0, steps * self.weights, prompts))

    def judged(self, answers: float, new_tokens: int) -> Work:
        """A model that judges, if any: a guard reads the exchange and writes its verdict, others read it once."""
        if self.judge is None:
            return Work("forward")
        tokens, judging = self.prompt + new_tokens, Costs(self.study, self.data, self.judge)
        if self.study.evaluation.judge.name == "guard":
            return judging.answers(answers, tokens + GUARD_PROMPT, GUARD_TOKENS)._replace(rows=0.0)
        return judging.passes("forward", answers, tokens=tokens, read=0)

    def training(self, samples: float) -> Work:
        if (settings := self.study.model.training) is None:
            return Work("training")
        seen, read = settings.epochs * samples, self.data.tokens if settings.loss_on == "sequence" else None
        work = self.passes("training", seen, "parameters", read=read, again=self.recomputed)
        return work.plus(Work("training", bytes=seen / settings.batch_size * 12 * self.weights))  # AdamW's numbers

    def factors(self) -> Work:
        """Sums of outer products of every token, as wide as max_dim, and their decompositions."""
        flops = sum(EIGH * (s**3 + a**3) for s, a in self.sides) * self.model.layers
        flops += 2 * self.factor_samples * self.data.tokens * self.factor_bytes / 4
        work = self.passes("factors", self.factor_samples, "activations").plus(Work("factors", flops))
        return work.times(2 if self.study.linfac.eigenvalue_correction else 1)

    def contraction(self, groups: float) -> float:
        """Operations that one sequence takes beside the pass itself: its products with queries, pooled and by group, and its
        norm."""
        tokens = self.data.tokens
        return 2 * self.gradient * (2 * tokens + (min(groups * tokens, tokens + groups) if groups > 1 else 0))

    def scoring(self) -> Work:
        settings, samples = self.study.linfac, self.data.samples
        own = settings.normalisation == "self_influence"
        work = self.passes("scoring", samples * (1 + own) + 3 * self.queries, "activations")
        flops = samples * (self.contraction(self.groups) + own * self.rotation) + self.groups * self.rotation
        if settings.refinement is not None:
            products = 2 * settings.refinement.steps * settings.refinement.samples * self.groups
            flops += products * self.model.flops(self.data.tokens, self.data.response, "none")
        return work.plus(Work("scoring", flops))

    def correction(self) -> Work:
        settings, samples = self.study.correction, self.data.samples
        paired, kept = settings.steps * 2 * settings.pairs_per_step, settings.steps * settings.retain_per_step
        gradients: Gradients = "activations" if settings.lora else "parameters"
        work = self.passes("correction", paired + kept, gradients, again=self.recomputed)
        watched = (1 + settings.steps // settings.check_every) * settings.retain_validation
        once = min(paired, SELECTED * samples) + min(kept, 0.6 * samples)  # the uncorrected model
        work = work.plus(self.passes("correction", watched + once))
        return work.plus(Work("correction", bytes=settings.steps * 12 * 4 * self.adapters))

    def report(self, prompts: int, paraphrases: int = 0) -> Work:
        settings = self.study.evaluation
        asked = prompts * (1 + settings.sampled) + paraphrases
        work = self.answers(asked, self.prompt, settings.max_new_tokens).times(self.models)
        return work.plus(self.judged(self.models * asked, settings.max_new_tokens))

    def traces(self) -> Work:
        """Every chunk of outputs scores the selected samples once more, each output a group of its own."""
        at_once, selected = max(1.0, QUERY_ELEMENTS // self.gradient), SELECTED * self.data.samples
        chunks = math.ceil(self.traced / at_once)
        work = self.passes("scoring", chunks * selected + 10 * self.traced, "activations")
        flops = selected * chunks * self.contraction(min(at_once, self.traced)) + self.traced * self.rotation
        answers = self.answers(self.queries, self.prompt, self.study.queries.max_new_tokens)
        return work.plus(answers).plus(Work("scoring", flops))._replace(rows=0.0)

    def work(self) -> dict[str, Work]:
        """By asset, in the order of the graph."""
        data, length = self.data, self.study.queries.max_new_tokens
        return dict.fromkeys(STAGES, Work("forward", rows=data.samples)) | {
            "base_model": self.training(data.samples),
            "reference_models": self.training(data.samples * (1 - data.unsafe) * (self.models > 2)),
            "undesirable_outputs": self.answers(data.probes, self.prompt, length).plus(
                self.judged(data.probes, length)
            ),
            "linfac_factors": self.factors(),
            "influence_scores": self.scoring(),
            "corrected_model": self.correction(),
            "harmlessness_report": self.report(data.harmful, data.paraphrases),
            "ood_report": self.report(data.ood),
            "utility_report": self.report(data.benign).plus(self.passes("forward", data.utility).times(self.models)),
            "output_traces": self.traces(),
            "registered_model": Work("forward", bytes=2 * self.weights),
        }

    def held(self, tokens: float, *, again: bool = False) -> float:
        """Device memory of a batch of `tokens` for its backward pass: activations of all layers, or (`again`) their inputs and
        one layer's; and its logits with their gradients, as far as they are held at once."""
        inputs = self.model.layers * self.model.config.hidden_size * self.weights / self.model.parameters
        kept = self.model.activations + inputs if again else self.model.layers * self.model.activations
        logits = tokens * self.data.response / self.data.tokens * self.model.config.vocab_size
        return tokens * kept + 12 * min(logits, LOGITS)

    def bytes(self) -> dict[str, tuple[float, float, float]]:
        """By asset: on a device, in host memory, on disk. Batches are at their fullest: compute.batch_tokens, or sequences of
        data.max_length in training."""
        study, data, model, weights = self.study, self.data, self.model, self.weights
        training, correction, longest = study.model.training, study.correction, study.data.max_length
        table = LIBRARIES + data.samples * (ROW_BYTES + TOKEN_BYTES * data.tokens)
        loaded, scores = table + weights, data.samples * SCORE  # weights come through the host
        trained = weights
        if training is not None:
            moments = 2 * model.parameters if training.optimizer_states == "8bit" else 2 * weights
            trained += weights + moments + self.held(training.batch_size * longest, again=self.recomputed)
        matrix, passed = 4.0 * self.gradient, weights + self.held(study.compute.batch_tokens) + self.factor_bytes
        candidates = min(4.0 * ELEMENTS, 32 * matrix) if study.linfac.damping == "auto" else 0.0
        queried = max(2 * matrix, candidates)  # more groups are scored in chunks that fit
        chunk = max(matrix, min(4.0 * QUERY_ELEMENTS, self.traced * matrix))
        of_step = (2 * correction.pairs_per_step + correction.retain_per_step) * longest
        corrected = (10 if correction.optimizer_states == "8bit" else 16) * self.adapters
        corrected += self.held(of_step, again=self.recomputed) + (weights if correction.lora else 0)
        logits = min(correction.steps * correction.retain_per_step, 0.6 * data.samples) * data.response
        retained = 4 * (self.adapters + logits * model.config.vocab_size)
        answered = weights + (2.0 * self.judge.parameters if self.judge else 0)
        found = {
            "prepared_data": (0, table, data.samples * data.tokens * STORED_TOKEN + 2e5),
            "base_model": (trained, loaded, weights),
            "reference_models": (trained * (self.models > 2), loaded, weights * (self.models - 2)),
            "undesirable_outputs": (answered, LIBRARIES + answered, 2e4),
            "linfac_factors": (passed + 2 * self.factor_bytes, loaded, self.factor_bytes),
            "influence_scores": (passed + queried, loaded + 4 * scores, scores * 2 + 16 * data.samples * self.groups),
            "pareto_pairs": (0, table + 4 * scores, 3e4 + 20 * data.samples),
            "corrected_model": (corrected, loaded + retained, weights),
            "output_traces": (passed + 2 * chunk, loaded + scores, 2e3 * self.traced),
            "audit_bundle": (0, table, 1.2e6 + 20 * data.samples),
            "registered_model": (0, LIBRARIES, weights),  # the registry's own copy
        }
        for name, prompts in zip(REPORTS, (data.harmful, data.ood, data.benign), strict=True):
            answers = prompts * self.models * (1 + study.evaluation.sampled)
            disk = 3e4 + answers * (ANSWER + study.evaluation.max_new_tokens)
            found[name] = (answered, LIBRARIES + answered + answers * ROW_BYTES, disk)
        return found
