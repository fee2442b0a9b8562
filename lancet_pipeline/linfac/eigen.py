"""Eigenpairs of the sums that factors are made of: all of them, or the leading ones of a side too wide to be decomposed.

A side of width d above `max_dim` = k is summed as its product A Omega [d, k] with a fixed random orthonormal Omega. The leading
pairs come of it by the Nystrom approximation of a streamed matrix (Tropp, Yurtsever, Udell and Cevher 2017, "Fixed-rank
approximation of a positive-semidefinite matrix from streaming data", algorithm 3): one pass over the data, d k numbers in memory, and
of the order of d k^2 operations, never a d x d matrix. What they leave out is kept as its mean eigenvalue, known from the trace.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch

from lancet_pipeline.errors import LancetError


@dataclass(frozen=True)
class Side:
    """A positive semidefinite matrix [d, d], or its product [d, k] with the probe matrix of that width; and its trace."""

    product: torch.Tensor
    trace: float


def probe_matrix(width: int, max_dim: int, seed: int, device: torch.device) -> torch.Tensor | None:
    """Orthonormal [width, max_dim], the same for all units of that width; None where a side is decomposed whole."""
    return None if width <= max_dim else _drawn(width, max_dim, seed, device)


def eigenpairs(side: Side, seed: int, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, rising, and orthonormal vectors [d, k] of a side, float32.

    Where k < d, the values [1 + k] begin with the mean eigenvalue of all that the vectors leave out.

    Raises:
        LancetError: no eigenvalues are found, also in float64; names `place`.
    """
    width, kept = side.product.shape
    probe = probe_matrix(width, kept, seed, side.product.device)
    if probe is None:
        return _eigh(side.product, place)
    shift = side.product.norm().clamp_min(torch.finfo(torch.float32).tiny) * 1e-6
    shifted = side.product + shift * probe
    values, vectors = _eigh(probe.T @ shifted, place)
    inverse_root = vectors / values.clamp_min(shift / 2).sqrt()
    basis, triangle = torch.linalg.qr(
        shifted @ inverse_root
    )  # A's approximation is (basis triangle) times its transpose
    values, vectors = _eigh(triangle @ triangle.T, place)
    values = (values - shift).clamp_min(0)
    rest = max(side.trace - values.sum().item(), 0.0) / (width - kept)
    return torch.cat([values.new_tensor([rest]), values]), basis @ vectors


def _eigh(matrix: torch.Tensor, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 does not always converge where eigenvalues are equal or wide apart: float64 on the host is tried then, and a shift
    of the diagonal, which leaves the vectors as they are."""
    matrix = (matrix + matrix.T) / 2
    for attempt in range(3):
        tried = matrix if attempt == 0 else matrix.double().cpu()
        if attempt == 2:
            tried = tried + 1e-7 * tried.diagonal().abs().max() * torch.eye(len(tried), dtype=tried.dtype)
        try:
            values, vectors = torch.linalg.eigh(tried)
        except torch.linalg.LinAlgError:
            continue
        values, vectors = values.to(matrix), vectors.to(matrix)
        # Rounding can leave zero eigenvalues slightly negative; a clearly negative one is a defect and stays visible.
        rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
        return torch.where(values.abs() <= rounding, values.clamp_min(0), values), vectors
    raise LancetError(
        f"{place}: its factor [{len(matrix)}, {len(matrix)}] has no eigenvalues that float32 or float64 finds; "
        "check that its sums are finite, or set linfac.max_dim below its width"
    )


@lru_cache(maxsize=8)
def _drawn(width: int, max_dim: int, seed: int, device: torch.device) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:{width}:{max_dim}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.linalg.qr(torch.randn(width, max_dim, generator=generator)).Q.to(device)
