"""The sums over data that factors are made of: passes that any engine can run."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.linfac.eigen import Side, probe_matrix
from lancet_pipeline.linfac.factors import KroneckerFactor, LinfacConfig
from lancet_pipeline.linfac.placement import settled
from lancet_pipeline.linfac.units import Labels, Unit, squared_norms, sum_over
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Products = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
MOST_PIECES = 16
"""Sums of a whole model are large, and as many are under way at once."""


@dataclass
class UnitSums:
    """Sums of outer products of one unit, kept apart for every other sequence: two halves, whose disagreement tells how far
    the sample sufficed.

    unit: its index. products: for each half the sums [d_s, d_s] and [d_a, d_a], of a wide side their products with its probe
    matrix, and the traces of both [2]; or None before its first sequence. sequences, tokens: of each half.
    """

    unit: int
    products: list[Products | None] = field(default_factory=lambda: [None, None])
    sequences: list[int] = field(default_factory=lambda: [0, 0])
    tokens: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, half: int, products: Products, sequences: int, tokens: int) -> None:
        held = self.products[half]
        if held is None:
            gradients, inputs, traces = settled(*products)
            self.products[half] = gradients, inputs, traces
        else:
            for total, part in zip(held, products, strict=True):
                total.add_(part.to(total.device))
        self.sequences[half] += sequences
        self.tokens[half] += tokens

    def merge(self, later: "UnitSums") -> None:
        """Add the sums of the sequences that follow; where those so far are odd in number, their halves change places."""
        first = sum(self.sequences) % 2
        for half, products in enumerate(later.products):
            if products is not None:
                self.add((half + first) % 2, products, later.sequences[half], later.tokens[half])

    def factors(self, config: LinfacConfig, half: int | None = None) -> tuple[Side, Side]:
        """S and A of all sequences or of one half of them."""
        halves = [half] if half is not None else [0, 1]
        parts = [products for h in halves if (products := self.products[h]) is not None]
        sequences, tokens = (sum(counts[h] for h in halves) for counts in (self.sequences, self.tokens))
        (gradients, inputs, traces), *others = parts
        for part in others:  # each may be on the device or the host
            gradients, inputs, traces = (
                one + other.to(one.device) for one, other in zip((gradients, inputs, traces), part, strict=True)
            )
        of_gradients, of_inputs = traces.tolist()
        scale = of_gradients if config.factors == "sequence" else tokens
        scale = max(scale, torch.finfo(torch.float32).tiny)
        return Side(gradients / sequences, of_gradients / sequences), Side(inputs / scale, of_inputs / scale)


@dataclass(frozen=True)
class OuterProducts:
    """The pass that sums the outer products of every unit."""

    units: tuple[Unit, ...]
    config: LinfacConfig
    most_pieces = MOST_PIECES

    def __call__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch]) -> Iterator[UnitSums]:
        sums = {unit: UnitSums(index) for index, unit in enumerate(self.units)}
        seen, backoff = 0, Backoff()
        for batch in batches:
            batch = batch.to(model.device)

            def add(
                part: slice, unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor, batch=batch, seen=seen
            ) -> None:
                inputs, gradients = inputs.float(), gradients.float()
                attention = batch.attention_mask[part].bool()
                halves = [slice(half, None, 2) for half in range(min(2, len(attention)))]
                products = [self._products(inputs[rows], gradients[rows], attention[rows]) for rows in halves]
                for half, (rows, one) in enumerate(zip(halves, products, strict=True)):
                    place, attended = (half + seen + part.start) % 2, attention[rows]
                    sums[unit].add(place, one, len(attended), int(attended.sum()))

            sum_over(model, batch, self.units, add, backoff, label_choice(self.config))
            seen += len(batch)
        yield from sums.values()

    def _products(self, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor, attended_bt: torch.Tensor) -> Products:
        of_gradients, of_inputs = (self._probe(values) for values in (gradients_bts, inputs_bta))
        if self.config.factors == "sequence":
            products = sequence_outer_products(inputs_bta, gradients_bts, of_inputs, of_gradients)
            whole = [matrix for matrix in products if matrix.shape[0] == matrix.shape[1]]
            trace = whole[0].trace() if whole else squared_norms(inputs_bta, gradients_bts).sum()
            return *products, trace.repeat(2)
        gradients, inputs = gradients_bts.flatten(0, 1), inputs_bta[attended_bt]
        products = token_outer_product(gradients, of_gradients), token_outer_product(inputs, of_inputs)
        return *products, torch.stack([gradients.square().sum(), inputs.square().sum()])

    def _probe(self, values: torch.Tensor) -> torch.Tensor | None:
        return probe_matrix(values.shape[-1], self.config.max_dim, self.config.seed, values.device)

    def to_table(self, part: UnitSums) -> pa.Table:
        halves = [
            {
                "sequences": n,
                "tokens": t,
                "widths": None if p is None else [matrix.shape[-1] for matrix in p],
                "products": None if p is None else [_bytes(matrix) for matrix in p],
            }
            for n, t, p in zip(part.sequences, part.tokens, part.products, strict=True)
        ]
        half = pa.struct(
            [
                ("sequences", pa.int64()),
                ("tokens", pa.int64()),
                ("widths", pa.list_(pa.int64())),
                ("products", pa.large_list(pa.large_binary())),
            ]
        )
        return pa.table({"unit": [part.unit], "halves": pa.array([halves], pa.large_list(half))})

    def from_table(self, table: pa.Table) -> Iterator[UnitSums]:
        for row in table.to_pylist():
            found = UnitSums(row["unit"])
            for half, part in enumerate(row["halves"]):
                if part["products"] is not None:
                    gradient, inputs, traces = (
                        _matrix(content, (-1, width))
                        for content, width in zip(part["products"], part["widths"], strict=True)
                    )
                    found.add(half, (gradient, inputs, traces[0]), part["sequences"], part["tokens"])
            yield found


@dataclass(frozen=True)
class SquaredProjections:
    """The pass that sums the squared modular gradients in the space of each of a block's eigenvalues, for each unit by its
    index."""

    units: tuple[Unit, ...]
    blocks: tuple[KroneckerFactor, ...]
    config: LinfacConfig
    most_pieces = MOST_PIECES

    def __call__(self, model: "PreTrainedModel", batches: Iterable[TokenBatch]) -> Iterator[tuple[int, torch.Tensor]]:
        squares = [torch.zeros_like(block.eigenvalues()) for block in self.blocks]
        places = {unit: index for index, unit in enumerate(self.units)}

        def add(_part: slice, unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
            block, total = self.blocks[places[unit]], squares[places[unit]]
            total += block.energies(inputs, gradients).sum(0).to(total.device)

        backoff = Backoff()
        for batch in batches:
            sum_over(model, batch, self.units, add, backoff, label_choice(self.config))
        yield from enumerate(squares)

    def to_table(self, part: tuple[int, torch.Tensor]) -> pa.Table:
        unit, total = part
        return pa.table({"unit": [unit], "squares": pa.array([_bytes(total)], pa.large_binary())})

    def from_table(self, table: pa.Table) -> Iterator[tuple[int, torch.Tensor]]:
        for row in table.to_pylist():
            yield row["unit"], _matrix(row["squares"], self.blocks[row["unit"]].eigenvalues().shape)


def label_choice(config: LinfacConfig) -> Labels | None:
    """What `backward_pass` takes as `labels`."""
    if config.labels == "true":
        return None
    return lambda logits, batch, rows: sample_labels(logits, batch, config.seed, rows)


def token_outer_product(vectors_nd: torch.Tensor, probe_dk: torch.Tensor | None = None) -> torch.Tensor:
    """sum_n v_n v_n^T, [d, d]; times the probe matrix where there is one, [d, k]."""
    return vectors_nd.T @ (vectors_nd if probe_dk is None else vectors_nd @ probe_dk)


def sequence_outer_products(
    inputs_bta: torch.Tensor,
    gradients_bts: torch.Tensor,
    input_probe: torch.Tensor | None = None,
    gradient_probe: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_b M_b M_b^T [d_s, d_s] and sum_b M_b^T M_b [d_a, d_a], with M_b = sum_t ds_bt a_bt^T; each times its probe matrix where
    there is one, [d, k].

    M^T M = a^T (ds ds^T) a needs no M; the cheaper of the two contractions is taken from the shapes.
    """
    _, length, width_a = inputs_bta.shape
    width_s = gradients_bts.shape[-1]
    kept_a, kept_s = (
        width if probe is None else probe.shape[1]
        for width, probe in ((width_a, input_probe), (width_s, gradient_probe))
    )
    direct = length * width_s * width_a + width_s * width_a * (kept_s + kept_a)
    through_tokens = 2 * length**2 * (width_a + width_s) + length * (width_a * kept_a + width_s * kept_s)
    if direct <= through_tokens:
        modular_bsa = gradients_bts.mT @ inputs_bta
        stacked_rows = modular_bsa.transpose(0, 1).flatten(1)
        return token_outer_product(stacked_rows.T, gradient_probe), token_outer_product(
            modular_bsa.flatten(0, 1), input_probe
        )
    token_gradients_btu = gradients_bts @ gradients_bts.mT
    token_inputs_btu = inputs_bta @ inputs_bta.mT
    gradients_btk = gradients_bts if gradient_probe is None else gradients_bts @ gradient_probe
    inputs_btk = inputs_bta if input_probe is None else inputs_bta @ input_probe
    gradient_outer = gradients_bts.flatten(0, 1).T @ (token_inputs_btu @ gradients_btk).flatten(0, 1)
    input_outer = inputs_bta.flatten(0, 1).T @ (token_gradients_btu @ inputs_btk).flatten(0, 1)
    return gradient_outer, input_outer


def sample_labels(logits: torch.Tensor, batch: TokenBatch, seed: int, rows: slice = slice(None)) -> torch.Tensor:
    """One label for each of the loss positions `rows` from the model's own distribution, given there: [n] int64.

    The uniform draws of a sequence are seeded by its tokens, so that they do not depend on the batch it is in.
    """
    draws = []
    for ids, attended, mask in zip(batch.input_ids, batch.attention_mask, batch.loss_mask[:, 1:], strict=True):
        tokens = ids[attended.bool()].cpu().numpy().tobytes()
        digest = hashlib.sha256(seed.to_bytes(8, "little") + tokens).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        draws.append(torch.rand(int(mask.sum()), generator=generator))
    uniform = torch.cat(draws)[rows].to(logits.device)
    cumulative = logits.softmax(-1).cumsum(-1)
    picked = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return picked.clamp_max(logits.shape[-1] - 1)


def _bytes(matrix: torch.Tensor) -> bytes:
    return matrix.float().cpu().contiguous().numpy().tobytes()


def _matrix(content: bytes, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.float32).copy()).view(*shape)
