"""The work of every asset of a study, counted from shapes (docs/scaling.md has the formulas).

B samples of T tokens, R of them the response; P parameters in the layers, H in the output embedding, L layers. A forward pass over a
sequence is 2 P T + 2 H R + 4 L d T^2 operations; a training pass three times that; an activation-only backward pass once more.
"""

import math
from dataclasses import dataclass

from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.linfac.influence import default_budget, unlabelled_budget
from lancet_pipeline.models.memory import LARGE_MODEL
from lancet_pipeline.scale.shapes import Shape, batches, sketched
from lancet_pipeline.scale.workload import Workload

ACTIVATIONS_A_LAYER = 16
"""Activations of the width of the stream that a token leaves in a layer for the backward pass, those of the ffn apart."""
SELECTED = 0.2
"""Share of the samples on the driving and countering side together, at most; the Pareto rule rarely takes more."""
EIGH = 25.0
"""Operations of a symmetric eigendecomposition over the cube of its side."""
DAMPINGS = 8 * 4
"""Candidates of damping times folds of the queries, each a group."""
TRACED = 2**28
"""Elements of query matrices held at once, in tracing and in choosing the damping."""
GUARD_TOKENS = 16
SELF_BLEU = 200


@dataclass
class Work:
    """What an asset does. flops: operations of dense products. bytes: memory traffic besides. visits: calls of one layer, forwards
    and backwards. rows: samples, answers or tables handled one by one. kind: which efficiency its products have."""

    kind: str
    flops: float = 0.0
    bytes: float = 0.0
    visits: float = 0.0
    rows: float = 0.0

    def add(self, other: "Work") -> "Work":
        return Work(
            self.kind,
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.visits + other.visits,
            self.rows + other.rows,
        )


@dataclass(frozen=True)
class Counts:
    """Numbers that several assets share."""

    shape: Shape
    data: Workload
    study: Study
    judge: Shape | None = None

    @property
    def models(self) -> int:
        return 2 + len(self.study.evaluation.references)

    @property
    def queries(self) -> int:
        return min(self.study.queries.maximum, self.data.probes)

    @property
    def element(self) -> int:
        """Bytes of a stored weight."""
        return 2 if self.study.model.dtype == "bfloat16" else 4

    @property
    def factor_samples(self) -> int:
        return min(self.data.samples, self.study.linfac.factor_samples or default_budget(self.data.samples))

    @property
    def recomputed(self) -> bool:
        """Whether training and correction compute activations again in the backward pass."""
        setting = self.study.compute.activation_checkpointing
        return self.shape.parameters >= LARGE_MODEL if setting == "auto" else setting

    @property
    def traced(self) -> int:
        """Outputs that are traced one by one: the queries, and harmful answers of two reports."""
        limit = self.study.governance.traced_outputs
        return self.queries + min(limit, self.data.harmful) + min(limit, self.data.ood)

    @property
    def groups(self) -> int:
        by = self.study.linfac.query_groups
        return {"none": 1, "query": self.queries, "cluster": self.study.linfac.query_clusters, "category": 14}[by]

    def forward(self, sequences: float, tokens: float, head_tokens: float, batch: float) -> Work:
        """One forward pass without gradients, in batches of `batch` sequences."""
        shape = self.shape
        attention = 4 * shape.layers * shape.width * tokens**2
        flops = sequences * (2 * shape.body * tokens + 2 * shape.head * head_tokens + attention)
        traffic = sequences * tokens * shape.layers * (ACTIVATIONS_A_LAYER * shape.width + 3 * shape.ffn) * 4
        traffic += sequences * head_tokens * shape.vocabulary * 12
        return Work("forward", flops, traffic, math.ceil(max(1.0, sequences) / batch) * (shape.layers + 1))

    def passes_of(self, kind: str, factor: float, one: Work) -> Work:
        """`factor` forward passes' work: 3 for training, 4 with activations computed again, 2 for an activation-only backward
        pass."""
        return Work(kind, factor * one.flops, factor * one.bytes, factor * one.visits)

    def packed(self, tokens: float) -> float:
        """Sequences in a batch of compute.batch_tokens."""
        return max(1.0, self.study.compute.batch_tokens // max(1.0, tokens))

    def generation(self, prompts: float, prompt_tokens: float, new_tokens: int) -> Work:
        """Greedy answers, the weights read once for every token of a batch."""
        shape, size = self.shape, max(1.0, self.study.compute.batch_tokens // (2 * prompt_tokens + new_tokens))
        rounds = math.ceil(max(1.0, prompts) / size)
        one = self.forward(prompts, prompt_tokens, 1, size)
        token_flops = 2 * (shape.body + shape.head) + 4 * shape.layers * shape.width * (prompt_tokens + new_tokens / 2)
        weights = shape.parameters * self.element
        cache = prompts * new_tokens * (prompt_tokens + new_tokens / 2) * 2 * shape.layers * shape.values * self.element
        return Work(
            "forward",
            one.flops + prompts * new_tokens * token_flops,
            one.bytes + rounds * new_tokens * weights + cache,
            one.visits + rounds * new_tokens * (shape.layers + 1),
            prompts,
        )

    def judged(self, answers: float, new_tokens: int) -> Work:
        """A model that judges, if any: a guard reads the exchange and writes its verdict, others read it once."""
        if self.judge is None:
            return Work("forward")
        tokens = self.data.tokens - self.data.response + new_tokens
        judging = Counts(self.judge, self.data, self.study)
        if self.study.evaluation.judge.name == "guard":
            found = judging.generation(answers, tokens + 200, GUARD_TOKENS)  # the guard's own instructions
        else:
            found = judging.forward(answers, tokens, 0, judging.packed(tokens))
        return Work("forward", found.flops, found.bytes, found.visits)


def training(counts: Counts, samples: float) -> Work:
    settings = counts.study.model.training
    if settings is None or samples <= 0:
        return Work("training")
    seen = settings.epochs * samples
    tokens, data = counts.data.tokens, counts.data
    head = data.response if settings.loss_on == "response" else tokens
    work = counts.passes_of("training", 3 + counts.recomputed, counts.forward(seen, tokens, head, settings.batch_size))
    work.bytes += math.ceil(seen / settings.batch_size) * optimiser_bytes(counts.shape.parameters, counts.element)
    return work


def optimiser_bytes(parameters: float, element: int) -> float:
    """Traffic of one step of AdamW: gradients cleared, read for the norm, clipped and used; weights and two moments updated."""
    return 12 * parameters * element


def factors(counts: Counts) -> Work:
    data, settings, shape = counts.data, counts.study.linfac, counts.shape
    n, tokens = counts.factor_samples, counts.data.tokens
    work = counts.passes_of("factors", 2, counts.forward(n, tokens, data.response, counts.packed(tokens)))
    for s, a in shape.units(settings.units):
        ds, da = sketched(s, settings.max_dim), sketched(a, settings.max_dim)
        direct = tokens * ds * da + ds**2 * da + ds * da**2
        through = 2 * tokens**2 * (da + ds) + tokens * (da**2 + ds**2)
        products = 2 * min(direct, through) if settings.factors == "sequence" else 2 * tokens * (ds**2 + da**2)
        sketching = 2 * tokens * ((s * ds if s > ds else 0) + (a * da if a > da else 0))
        # Two eigendecompositions, and the halves rotated into their bases for the reliability.
        decompositions = EIGH * (ds**3 + da**3) + 16 * (ds**3 + da**3)
        work.flops += shape.layers * (n * (products + sketching) + decompositions)
        work.bytes += shape.layers * batches(n, tokens, counts.study.compute.batch_tokens) * 16 * (ds**2 + da**2)
    if settings.eigenvalue_correction:
        work.flops *= 2
    return work


def contraction(counts: Counts, groups: float, tokens: float) -> float:
    """Operations that one sequence takes beside the pass itself: its products with `groups` queries, and its norm."""
    total = 0.0
    for s, a in counts.shape.units(counts.study.linfac.units):
        total += 2 * tokens * s * a  # the pooled query
        total += 2 * min(tokens**2 * (s + a), tokens * s * a + s * a)
        if groups > 1:
            total += 2 * s * a * min(groups * tokens, tokens + groups)
    return counts.shape.layers * total


def scoring(counts: Counts) -> Work:
    data, tokens = counts.data, counts.data.tokens
    settings = counts.study.linfac
    own = 1.0 if settings.normalisation == "self_influence" else 0.0
    unlabelled = unlabelled_budget(data.samples) + 2 * counts.queries if settings.damping == "auto" else 0
    sequences = data.samples * (1 + own) + unlabelled + 3 * counts.queries
    work = counts.passes_of("scoring", 2, counts.forward(sequences, tokens, data.response, counts.packed(tokens)))
    work.flops += data.samples * contraction(counts, counts.groups, tokens)
    if own:
        work.flops += data.samples * rotation(counts)
    work.flops += rotation(counts) * counts.groups
    if settings.damping == "auto":
        affordable = min(1.0, TRACED / max(1.0, DAMPINGS * unit_elements(counts)))
        work.flops += affordable * (unlabelled * contraction(counts, DAMPINGS, tokens) + DAMPINGS * rotation(counts))
    if settings.refinement is not None:
        steps = settings.refinement.steps * settings.refinement.samples
        work.flops += steps * 2 * counts.forward(1, tokens, data.response, 1).flops * counts.groups
    work.rows = data.samples
    return work


def unit_elements(counts: Counts) -> float:
    """Elements of the modular gradients of one query, over all units."""
    return counts.shape.layers * sum(s * a for s, a in counts.shape.units(counts.study.linfac.units))


def rotation(counts: Counts) -> float:
    """Operations that take one modular gradient into the eigenbasis and back."""
    limit = counts.study.linfac.max_dim
    units = [(sketched(s, limit), sketched(a, limit)) for s, a in counts.shape.units(counts.study.linfac.units)]
    return counts.shape.layers * sum(4 * s * a * (s + a) for s, a in units)


def correction(counts: Counts) -> Work:
    settings, data = counts.study.correction, counts.data
    tokens, response = data.tokens, data.response
    paired, kept = settings.steps * 2 * settings.pairs_per_step, settings.steps * settings.retain_per_step
    passes = 2.2 if settings.lora is not None else 3
    per_step = 2 * settings.pairs_per_step + settings.retain_per_step
    step = counts.forward(paired + kept, tokens, response, per_step / 2)
    work = counts.passes_of("correction", passes + counts.recomputed, step)
    trained = counts.shape.parameters if settings.lora is None else adapter_parameters(counts)
    work.bytes += settings.steps * optimiser_bytes(trained, 4)
    looks = 1 + settings.steps // settings.check_every
    watched = looks * settings.retain_validation
    once = min(paired, SELECTED * data.samples) + min(kept, 0.6 * data.samples)
    return work.add(counts.forward(watched + once, tokens, response, counts.packed(tokens)))


def adapter_parameters(counts: Counts) -> int:
    lora = counts.study.correction.lora
    rank = lora.rank if lora is not None else 0
    return counts.shape.layers * sum(rank * (s + a) for s, a in counts.shape.units("linear"))


def answering(counts: Counts, prompts: int, paraphrases: int = 0) -> Work:
    evaluation = counts.study.evaluation
    prompt_tokens = counts.data.tokens - counts.data.response
    rounds = [prompts] * (1 + evaluation.sampled) + [paraphrases] * (paraphrases > 0)
    work = Work("forward")
    for asked in rounds * counts.models:
        work = work.add(counts.generation(asked, prompt_tokens, evaluation.max_new_tokens))
    return work.add(counts.judged(sum(rounds) * counts.models, evaluation.max_new_tokens))


def traces(counts: Counts) -> Work:
    """Every chunk of outputs scores the selected samples once more, each output a group of its own."""
    data, tokens = counts.data, counts.data.tokens
    chunk = max(1.0, TRACED // unit_elements(counts))
    chunks, selected = math.ceil(counts.traced / chunk), SELECTED * data.samples
    work = counts.passes_of(
        "scoring",
        2,
        counts.forward(chunks * selected + 10 * counts.traced, tokens, data.response, counts.packed(tokens)),
    )
    work.flops += selected * chunks * contraction(counts, min(chunk, counts.traced), tokens)
    work.flops += counts.traced * rotation(counts)
    # Each output is a query of its own (a pass over one sequence), with its kept samples' tokens.
    work.visits += 2 * counts.traced * (counts.shape.layers + 1)
    work = work.add(counts.generation(counts.queries, tokens - data.response, counts.study.queries.max_new_tokens))
    work.rows = counts.traced
    return work


def works(counts: Counts) -> dict[str, Work]:
    """The work of every asset, in the order of the graph."""
    data, study = counts.data, counts.study
    prompt_tokens = data.tokens - data.response
    answers = counts.generation(data.probes, prompt_tokens, study.queries.max_new_tokens)
    utility = answering(counts, data.benign).add(
        counts.passes_of(
            "forward",
            counts.models,
            counts.forward(data.utility, data.tokens, data.response, counts.packed(data.tokens)),
        )
    )
    utility.rows += counts.models * min(SELF_BLEU, data.benign) ** 2 / 20
    found = {
        "prepared_data": Work("forward", rows=data.samples),
        "base_model": training(counts, data.samples),
        "reference_models": training(counts, data.samples * (1 - data.unsafe))
        if study.evaluation.references
        else Work("training"),
        "undesirable_outputs": answers.add(counts.judged(data.probes, study.queries.max_new_tokens)),
        "linfac_factors": factors(counts),
        "influence_scores": scoring(counts),
        "pareto_pairs": Work("forward", rows=data.samples),
        "corrected_model": correction(counts),
        "harmlessness_report": answering(counts, data.harmful, data.paraphrases),
        "ood_report": answering(counts, data.ood),
        "utility_report": utility,
        "output_traces": traces(counts),
        "audit_bundle": Work("forward", rows=data.samples),
        "registered_model": Work("forward", bytes=2 * counts.shape.parameters * counts.element),
    }
    return {name: found[name] for name in STAGES}
