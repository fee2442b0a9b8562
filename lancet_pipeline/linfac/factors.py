"""Kronecker factors of the Gauss-Newton matrix from whole-sequence modular gradients."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.units import Unit, UnitKind, backward_pass, find_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LinfacConfig:
    """Settings of LinFAC.

    units: the granularity, see `find_units`.
    factors: `sequence` sums outer products of whole-sequence modular gradients; `token` those of single tokens, as
        classic K-FAC does.
    eigenvalue_correction: replaces the products of eigenvalues by the mean squared modular gradient along each pair of
        eigenvectors, at the cost of a second pass (George et al. 2018, EK-FAC).
    labels: `sampled` from the model (true Fisher, equal to Gauss-Newton here) or `true` (empirical Fisher).
    damping: rho; lambda = rho x the mean eigenvalue over all units, one lambda for all of them.
    max_dim: an input side wider than this is sketched by a fixed random orthonormal projection.
    seed: of sampled labels and of sketches.
    """

    units: UnitKind = "sublayer_output"
    factors: Literal["sequence", "token"] = "sequence"
    eigenvalue_correction: bool = False
    labels: Literal["sampled", "true"] = "sampled"
    damping: float = 1.0
    max_dim: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise InputError(f"LinfacConfig: damping = {self.damping}: must be positive")
        if self.max_dim < 1:
            raise InputError(f"LinfacConfig: max_dim = {self.max_dim}: must be at least 1")


@dataclass(frozen=True)
class KroneckerFactor:
    """G_hat = A (x) S of one unit, as eigenpairs: gradients [d_s, d_s], inputs [d_k, d_k], float32.

    d_k is d_a, or the sketch's width where the unit's input side is sketched. `corrected` [d_s, d_k] stands in for the
    products of eigenvalues where the factors were fitted with eigenvalue correction.
    """

    gradient_values: torch.Tensor
    gradient_vectors: torch.Tensor
    input_values: torch.Tensor
    input_vectors: torch.Tensor
    corrected: torch.Tensor | None = None

    def eigenvalues(self) -> torch.Tensor:
        """Curvature along each pair of eigenvectors, [d_s, d_k]."""
        return torch.outer(self.gradient_values, self.input_values) if self.corrected is None else self.corrected

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class FactorHealth:
    finite: bool
    lowest_eigenvalue: float
    orthonormality_error: float


@dataclass(frozen=True)
class Factors:
    """Fitted factors of every unit, in the order of `units`, and the one damping value lambda."""

    config: LinfacConfig
    units: tuple[Unit, ...]
    blocks: tuple[KroneckerFactor, ...]
    damping_value: float
    sequences: int

    def precondition(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """(G_hat + lambda I)^-1 applied to modular gradients [G, d_s, d_a] of unit `index`, in its eigenbasis.

        A sketched side comes back lifted to d_a, so that scoring never sees the sketch.
        """
        block = self.blocks[index]
        sketch = _sketch(gradient.shape[-1], self.config, self.units[index].name, gradient)
        gradient = gradient if sketch is None else gradient @ sketch
        rotated = block.gradient_vectors.T @ gradient @ block.input_vectors
        rotated = rotated / (block.eigenvalues() + self.damping_value)
        solved = block.gradient_vectors @ rotated @ block.input_vectors.T
        return solved if sketch is None else solved @ sketch.T

    def health(self) -> "FactorHealth":
        """What the numeric checks look at."""
        finite, lowest, error = True, float("inf"), 0.0
        for block in self.blocks:
            finite = finite and all(bool(torch.isfinite(tensor).all()) for tensor in block.tensors().values())
            lowest = min(lowest, block.gradient_values.min().item(), block.input_values.min().item())
            for vectors in (block.gradient_vectors, block.input_vectors):
                identity = torch.eye(len(vectors), device=vectors.device)
                error = max(error, (vectors.T @ vectors - identity).abs().max().item())
        return FactorHealth(finite, lowest, error)

    def spectra(self) -> dict[str, list[float]]:
        """Falling eigenvalues of both factors, averaged over the units of one kind and side."""
        groups: dict[str, list[torch.Tensor]] = {}
        for unit, block in zip(self.units, self.blocks, strict=True):
            kind = unit.name.rpartition(".")[2]
            for side, values in (("gradient", block.gradient_values), ("input", block.input_values)):
                groups.setdefault(f"{kind} {side}", []).append(values.flip(0).cpu())
        return {name: torch.stack(values).mean(0).tolist() for name, values in groups.items()}

    def save(self, folder: Path) -> None:
        """Write `factors.safetensors`, settings in its header."""
        from safetensors.torch import save_file

        tensors = {
            f"{index}.{field}": tensor.cpu().contiguous()
            for index, block in enumerate(self.blocks)
            for field, tensor in block.tensors().items()
        }
        header = {
            "config": json.dumps(asdict(self.config)),
            "units": json.dumps([asdict(unit) for unit in self.units]),
            "damping_value": repr(self.damping_value),
            "sequences": str(self.sequences),
        }
        save_file(tensors, folder / "factors.safetensors", metadata=header)

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "Factors":
        from safetensors import safe_open

        with safe_open(folder / "factors.safetensors", framework="pt", device=str(device)) as file:
            header = file.metadata()
            units = tuple(Unit(**unit) for unit in json.loads(header["units"]))
            tensors: list[dict[str, torch.Tensor]] = [{} for _ in units]
            for key in file.keys():  # noqa: SIM118  (no mapping)
                index, field = key.split(".")
                tensors[int(index)][field] = file.get_tensor(key)
            blocks = tuple(KroneckerFactor(**fields) for fields in tensors)
        return Factors(
            LinfacConfig(**json.loads(header["config"])),
            units,
            blocks,
            float(header["damping_value"]),
            int(header["sequences"]),
        )


def fit_factors(model: "PreTrainedModel", batches: Iterable[TokenBatch], config: LinfacConfig) -> Factors:
    """Kronecker factors of every unit (docs/method.md, Factors).

    Whole sequences: S = E[M M^T], A = E[M^T M] / tr(S), where no two sequences are pooled before the outer product.
    Tokens: S = E[sum_t ds_t ds_t^T], A = the mean of a_t a_t^T over tokens.

    Costs one forward and one activation-only backward pass over `batches` (two with eigenvalue correction, which
    keeps the token ids in memory), and two eigendecompositions a unit. The result does not depend on how sequences are
    batched.

    Raises:
        InputError: no batches, or an architecture whose sublayers are unknown.
    """
    units = tuple(find_units(model, config.units))
    sketches: dict[Unit, torch.Tensor | None] = {}
    sums: dict[Unit, tuple[torch.Tensor, torch.Tensor]] = {}
    attention: torch.Tensor

    def sketched(unit: Unit, inputs: torch.Tensor) -> torch.Tensor:
        if unit not in sketches:
            sketches[unit] = _sketch(inputs.shape[-1], config, unit.name, inputs)
        sketch = sketches[unit]
        return inputs.float() if sketch is None else inputs.float() @ sketch

    def add_outer_products(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        inputs, gradients = sketched(unit, inputs), gradients.float()
        if config.factors == "sequence":
            gradient_outer, input_outer = sequence_outer_products(inputs, gradients)
        else:
            flat = inputs[attention]
            gradient_outer, input_outer = token_outer_product(gradients.flatten(0, 1)), token_outer_product(flat)
        if unit in sums:
            sums[unit][0].add_(gradient_outer)
            sums[unit][1].add_(input_outer)
        else:
            sums[unit] = gradient_outer, input_outer

    if config.eigenvalue_correction:
        batches = list(batches)
    labels = None if config.labels == "true" else lambda logits, batch: sample_labels(logits, batch, config.seed)
    sequences = tokens = 0
    for batch in batches:
        attention = batch.attention_mask.bool().to(model.device)
        backward_pass(model, batch, units, add_outer_products, labels)
        sequences += len(batch.input_ids)
        tokens += int(batch.attention_mask.sum())
    if sequences == 0:
        raise InputError("fit_factors: no batches; give at least one sequence")

    blocks = []
    for unit in units:
        gradient_sum, input_sum = sums.pop(unit)
        gradient_factor = gradient_sum / sequences
        scale = sequences * gradient_factor.trace().item() if config.factors == "sequence" else tokens
        input_factor = input_sum / max(scale, torch.finfo(torch.float32).tiny)
        blocks.append(KroneckerFactor(*_eigh(gradient_factor), *_eigh(input_factor)))

    if config.eigenvalue_correction:
        squares = [torch.zeros_like(block.eigenvalues()) for block in blocks]
        places = {unit: index for index, unit in enumerate(units)}

        def add_squares(unit: Unit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
            block = blocks[places[unit]]
            rotated_inputs = sketched(unit, inputs) @ block.input_vectors
            rotated_gradients = gradients.float() @ block.gradient_vectors
            squares[places[unit]] += (rotated_gradients.mT @ rotated_inputs).square_().sum(0)

        for batch in batches:
            backward_pass(model, batch, units, add_squares, labels)
        blocks = [replace(block, corrected=total / sequences) for block, total in zip(blocks, squares, strict=True)]

    values = [block.eigenvalues() for block in blocks]
    mean = sum(value.double().sum().item() for value in values) / sum(value.numel() for value in values)
    return Factors(config, units, tuple(blocks), max(config.damping * mean, 1e-30), sequences)


def token_outer_product(vectors_nd: torch.Tensor) -> torch.Tensor:
    """sum_n v_n v_n^T, [d, d]."""
    return vectors_nd.T @ vectors_nd


def sequence_outer_products(inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_b M_b M_b^T [d_s, d_s] and sum_b M_b^T M_b [d_a, d_a], with M_b = sum_t ds_bt a_bt^T.

    M^T M = a^T (ds ds^T) a needs no M; the cheaper of the two contractions is taken from the shapes.
    """
    _, length, width_a = inputs_bta.shape
    width_s = gradients_bts.shape[-1]
    direct = length * width_s * width_a + width_s**2 * width_a + width_s * width_a**2
    through_tokens = 2 * length**2 * (width_a + width_s) + length * (width_a**2 + width_s**2)
    if direct <= through_tokens:
        modular_bsa = gradients_bts.mT @ inputs_bta
        stacked_rows = modular_bsa.transpose(0, 1).flatten(1)
        stacked_columns = modular_bsa.flatten(0, 1)
        return stacked_rows @ stacked_rows.T, stacked_columns.T @ stacked_columns
    token_gradients_btu = gradients_bts @ gradients_bts.mT
    token_inputs_btu = inputs_bta @ inputs_bta.mT
    gradient_outer = gradients_bts.flatten(0, 1).T @ (token_inputs_btu @ gradients_bts).flatten(0, 1)
    input_outer = inputs_bta.flatten(0, 1).T @ (token_gradients_btu @ inputs_bta).flatten(0, 1)
    return gradient_outer, input_outer


def sample_labels(logits: torch.Tensor, batch: TokenBatch, seed: int) -> torch.Tensor:
    """One label for each loss position from the model's own distribution: [n] int64.

    The uniform draws of a sequence are seeded by its tokens, so that they do not depend on the batch it is in.
    """
    draws = []
    for ids, attended, mask in zip(batch.input_ids, batch.attention_mask, batch.loss_mask[:, 1:], strict=True):
        tokens = ids[attended.bool()].cpu().numpy().tobytes()
        digest = hashlib.sha256(seed.to_bytes(8, "little") + tokens).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        draws.append(torch.rand(int(mask.sum()), generator=generator))
    uniform = torch.cat(draws).to(logits.device)
    cumulative = logits.softmax(-1).cumsum(-1)
    picked = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return picked.clamp_max(logits.shape[-1] - 1)


def _eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    # Rounding can leave zero eigenvalues slightly negative; a clearly negative one is a defect and stays visible.
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values.abs() <= rounding, values.clamp_min(0), values), vectors


def _sketch(width: int, config: LinfacConfig, name: str, like: torch.Tensor) -> torch.Tensor | None:
    """Orthonormal [width, max_dim] projection, the same for the same unit, width and seed; None where not needed."""
    if width <= config.max_dim:
        return None
    digest = hashlib.sha256(f"{config.seed}:{name}:{width}:{config.max_dim}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    gaussian = torch.randn(width, config.max_dim, generator=generator)
    return torch.linalg.qr(gaussian).Q.to(device=like.device, dtype=torch.float32)
