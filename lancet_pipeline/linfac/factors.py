"""Kronecker factors of the Gauss-Newton matrix: what they hold, their damped inverse, and their file."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lancet_pipeline.config.study import FactorKind, LabelKind, LinfacSettings, UnitKind
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.linfac.placement import is_crowded
from lancet_pipeline.linfac.units import Unit
from lancet_pipeline.models.loading import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SETTINGS = LinfacSettings()


@dataclass(frozen=True)
class LinfacConfig:
    """Settings of LinFAC.

    units: the granularity, see `find_units`.
    factors: `sequence` sums outer products of whole-sequence modular gradients; `token` those of single tokens, as
        classic K-FAC does.
    eigenvalue_correction: replaces the products of eigenvalues by the mean squared modular gradient along each pair of
        eigenvectors, at the cost of a second pass (George et al. 2018, EK-FAC).
    labels: `sampled` from the model (true Fisher, equal to Gauss-Newton here) or `true` (empirical Fisher).
    damping: rho; lambda = rho x the mean eigenvalue over all units, one lambda for all of them. Only what follows the fit
        depends on it: see `Factors.damped` and `damping.choose_damping`.
    max_dim: of a side wider than this, of inputs or of gradients, that many leading eigenvectors are kept, and all else has
        one eigenvalue, their mean (`eigen`).
    seed: of sampled labels and of sketches.
    """

    units: UnitKind = _SETTINGS.units
    factors: FactorKind = _SETTINGS.factors
    eigenvalue_correction: bool = _SETTINGS.eigenvalue_correction
    labels: LabelKind = _SETTINGS.labels
    damping: float = 0.1
    max_dim: int = _SETTINGS.max_dim
    seed: int = 0

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise InputError(f"LinfacConfig: damping = {self.damping}: must be positive")
        if self.max_dim < 1:
            raise InputError(f"LinfacConfig: max_dim = {self.max_dim}: must be at least 1")

    @staticmethod
    def of(settings: LinfacSettings, seed: int) -> "LinfacConfig":
        """What a study says of the fit; its damping comes later."""
        named = {field.name for field in fields(LinfacConfig)} - {"damping"}
        return LinfacConfig(**settings.model_dump(include=named), seed=seed)


@dataclass(frozen=True)
class KroneckerFactor:
    """G_hat = A (x) S of one unit, as eigenpairs: vectors [d_s, d_s] and [d_a, d_a], values [d_s] and [d_a], float32.

    Of a side wider than `max_dim` = k the vectors are [d, k], and the values [1 + k] begin with that of their complement.
    `corrected` stands in for the products of eigenvalues where the factors were fitted with eigenvalue correction.
    """

    gradient_values: torch.Tensor
    gradient_vectors: torch.Tensor
    input_values: torch.Tensor
    input_vectors: torch.Tensor
    corrected: torch.Tensor | None = None

    def eigenvalues(self) -> torch.Tensor:
        """Curvature along each pair of eigenvectors and complements, [(1 +) k_s, (1 +) k_a]."""
        return torch.outer(self.gradient_values, self.input_values) if self.corrected is None else self.corrected

    def dimensions(self) -> torch.Tensor:
        """Of the space that each of `eigenvalues` belongs to: 1, but for complements."""
        sides = (self.gradient_values, self.gradient_vectors), (self.input_values, self.input_vectors)
        gradient, inputs = (torch.ones_like(values) for values, _ in sides)
        for ones, (_, vectors) in zip((gradient, inputs), sides, strict=True):
            ones[0] += len(vectors) - len(ones)
        return torch.outer(gradient, inputs)

    @staticmethod
    def parts(values: torch.Tensor, vectors: torch.Tensor) -> list[torch.Tensor]:
        """Values [..., d] in the complement of vectors [d, k], where there is one, and rotated into them [..., k]."""
        rotated = values.float() @ vectors
        return [rotated] if vectors.shape[0] == vectors.shape[1] else [values.float() - rotated @ vectors.T, rotated]

    def energies(self, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> torch.Tensor:
        """Squared norm of what M_b = sum_t ds_bt a_bt^T has in the space of each of `eigenvalues`, [B, (1 +) k_s, (1 +) k_a]."""
        block = self.to(inputs_bta.device)
        rows = []
        for left in (gradients := block.parts(gradients_bts, block.gradient_vectors)):
            row = []
            for right in (inputs := block.parts(inputs_bta, block.input_vectors)):
                squares = (left.mT @ right).square_()
                squares = squares if left is gradients[-1] else squares.sum(-2, keepdim=True)
                row.append(squares if right is inputs[-1] else squares.sum(-1, keepdim=True))
            rows.append(torch.cat(row, -1))
        return torch.cat(rows, -2)

    def to(self, device: torch.device) -> "KroneckerFactor":
        return KroneckerFactor(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class FactorHealth:
    finite: bool
    lowest_eigenvalue: float
    orthonormality_error: float


@dataclass(frozen=True)
class Factors:
    """Fitted factors of every unit, in the order of `units`.

    model: fingerprint of the model they were fitted on. reliabilities: rho -> estimated correlation of scores with those that
    unlimited sequences to fit on would give (`reliability`); empty where nothing was held out of the fit.
    """

    config: LinfacConfig
    units: tuple[Unit, ...]
    blocks: tuple[KroneckerFactor, ...]
    mean_eigenvalue: float
    sequences: int
    model: str
    reliabilities: dict[float, float]

    @property
    def reliability(self) -> float:
        """At the present rho, between the values it was estimated at; not a number where it was not estimated."""
        if not self.reliabilities:
            return math.nan
        known = sorted(self.reliabilities)
        return float(
            np.interp(math.log(self.config.damping), np.log(known), [self.reliabilities[rho] for rho in known])
        )

    @property
    def damping_value(self) -> float:
        """lambda."""
        return max(self.config.damping * self.mean_eigenvalue, 1e-30)

    def damped(self, damping: float) -> "Factors":
        """The same factors with another rho."""
        return replace(self, config=replace(self.config, damping=damping))

    def to(self, device: torch.device | str) -> "Factors":
        """The factors on a device, as far as it has room for them (`placement`); the others come to it when they are used."""
        device = torch.device(device)
        return replace(self, blocks=tuple(b if is_crowded(device) else b.to(device) for b in self.blocks))

    def require(self, model: "PreTrainedModel") -> None:
        """Raises:
        InputError: the factors were fitted on another model.
        """
        if self.model != fingerprint(model):
            raise InputError("factors: fitted on another model than the one given; fit them on it")

    def only(self, indices: Sequence[int]) -> "Factors":
        """The factors of some of the units."""
        return replace(self, units=tuple(self.units[i] for i in indices), blocks=tuple(self.blocks[i] for i in indices))

    def precondition(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """(G_hat + lambda I)^-1 applied to modular gradients [G, d_s, d_a] of unit `index`, in its eigenbasis."""
        return self.precondition_each(index, gradient, [self.config.damping])[0]

    def precondition_each(self, index: int, gradient: torch.Tensor, dampings: Sequence[float]) -> list[torch.Tensor]:
        """The same under each of several values of rho, for one rotation into the eigenbasis."""
        block = self.blocks[index].to(gradient.device)
        lift, vectors = block.gradient_vectors, block.input_vectors
        rows = lift.T @ gradient
        rest = gradient - lift @ rows if lift.shape[0] > lift.shape[1] else None
        rotated = rows @ vectors, None if rest is None else rest @ vectors
        found = []
        for rho in dampings:
            weights = 1 / (block.eigenvalues() + self.damped(rho).damping_value)
            of_rest, of_kept = weights.split([len(weights) - lift.shape[1], lift.shape[1]])
            solved = lift @ _weighted(rows, rotated[0], of_kept, vectors)
            if rest is not None and rotated[1] is not None:
                solved += _weighted(rest, rotated[1], of_rest, vectors)
            found.append(solved)
        return found

    def squared_norm(self, index: int, inputs_bta: torch.Tensor, gradients_bts: torch.Tensor) -> torch.Tensor:
        """M^T (G_hat + lambda I)^-1 M of the modular gradients of unit `index`, M_b = sum_t ds_bt a_bt^T: [B]."""
        block = self.blocks[index].to(inputs_bta.device)
        energies = block.energies(inputs_bta, gradients_bts)
        return (energies / (block.eigenvalues() + self.damping_value)).flatten(1).sum(1)

    def health(self) -> "FactorHealth":
        """What the numeric checks look at."""
        finite, lowest, error = True, float("inf"), 0.0
        for block in self.blocks:
            finite = finite and all(bool(torch.isfinite(tensor).all()) for tensor in block.tensors().values())
            lowest = min(lowest, block.gradient_values.min().item(), block.input_values.min().item())
            for vectors in (block.gradient_vectors, block.input_vectors):
                identity = torch.eye(vectors.shape[1], device=vectors.device)
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
        """Write `factors.safetensors`, settings and a checksum of the tensors in its header."""
        from safetensors.torch import save_file

        tensors = {
            f"{index}.{field}": tensor.cpu().contiguous()
            for index, block in enumerate(self.blocks)
            for field, tensor in block.tensors().items()
        }
        header = {
            "config": json.dumps(asdict(self.config)),
            "units": json.dumps([asdict(unit) for unit in self.units]),
            "mean_eigenvalue": repr(self.mean_eigenvalue),
            "sequences": str(self.sequences),
            "model": self.model,
            "reliabilities": json.dumps(list(self.reliabilities.items())),
            "sha256": _checksum(tensors),
        }
        save_file(tensors, folder / "factors.safetensors", metadata=header)

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "Factors":
        """Raises:
        IntegrityError: the file is truncated or altered.
        """
        from safetensors import SafetensorError, safe_open

        path = folder / "factors.safetensors"
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError as error:
            raise IntegrityError(f"{path}: truncated, or no file of factors ({error}); fit them again") from None
        if header.get("sha256") != _checksum(tensors):
            raise IntegrityError(f"{path}: its tensors are not those that were written; fit them again")
        units = tuple(Unit(**unit) for unit in json.loads(header["units"]))
        fields: list[dict[str, torch.Tensor]] = [{} for _ in units]
        for key, tensor in tensors.items():
            index, field = key.split(".")
            fields[int(index)][field] = tensor
        return Factors(
            LinfacConfig(**json.loads(header["config"])),
            units,
            tuple(KroneckerFactor(**one) for one in fields),
            float(header["mean_eigenvalue"]),
            int(header["sequences"]),
            header["model"],
            dict(json.loads(header["reliabilities"])),
        ).to(device)


def _weighted(rows: torch.Tensor, rotated: torch.Tensor, weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Rows [..., r, d], `rotated` into eigenvectors [d, k], by weights [r, k] there; or [r, 1 + k], of which the first is that
    of their complement."""
    if vectors.shape[0] == vectors.shape[1]:
        return (rotated * weights) @ vectors.T
    rest = weights[:, :1]
    return rows * rest + (rotated * (weights[:, 1:] - rest)) @ vectors.T


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
