"""The Pareto rule: the few samples that drive a behaviour, the few that counter it, and the indifferent rest."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from lancet_pipeline.config.study import ParetoSettings
from lancet_pipeline.errors import InputError

CALM = 0.5
"""Of the share of influential samples in all: a group with less is none that the behaviour is about."""


@dataclass(frozen=True)
class Side:
    """One influential side: indices by falling |score|, the share of its sign's influence they carry, and the
    Hill estimate of the Pareto tail index with its 95 % interval."""

    indices: np.ndarray
    share: float
    tail_index: float
    tail_low: float
    tail_high: float

    @property
    def tail(self) -> Literal["heavy", "light", "undecided"]:
        """What the whole interval of the index says: below 2 or above it; undecided where 2 lies within."""
        return "heavy" if self.tail_high < 2 else "light" if self.tail_low > 2 else "undecided"

    def figures(self) -> dict[str, float | int | str]:
        figures = {key: value for key, value in asdict(self).items() if key != "indices"}
        return {"size": len(self.indices), **figures, "tail": self.tail}


@dataclass(frozen=True)
class Selection:
    """D+ drives the behaviour, D- counters it, D0 is indifferent to it. Disjoint."""

    positive: Side
    negative: Side
    neutral: np.ndarray

    @property
    def roles(self) -> dict[str, np.ndarray]:
        return {"driving": self.positive.indices, "countering": self.negative.indices, "neutral": self.neutral}


def select(
    scores: Sequence[float] | np.ndarray,
    settings: ParetoSettings,
    *,
    equal: bool = False,
    barred: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
) -> Selection:
    """Split samples by influence (docs/method.md, Pareto selection).

    Per sign, the smallest set of largest |scores| that carries a 1 - alpha share of that sign's influence, and at
    most alpha x N samples. D0: the lowest |score|, `neutral_ratio` times the larger side where there are as many; from
    calm groups alone where these hold as many as the larger side.

    Args:
        scores: influence, [N]; positive means driving.
        equal: take alpha x N / 2 samples on each side, or as many as have its sign, whatever share they carry: of
            similarities, whose sums say nothing.
        barred: samples that may neither counter nor be indifferent, [N] bool; no others take their place. D0 is as large as if they
            were a side too.
        groups: of each sample, such as its category, [N]. One is calm where few of its samples are influential: less than
            CALM of the share that all samples have.

    Raises:
        InputError: scores that are not finite, a side below `settings.minimum`, a light tail (not an undecided one) where
            the study says stop, or fewer indifferent samples than the larger side has.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"influence scores: {int((~np.isfinite(values)).sum())} of {len(values)} are not finite")
    sides = {}
    for name, sign in (("driving (positive)", 1.0), ("countering (negative)", -1.0)):
        side = _side(sign * values, settings.alpha, equal)
        if sign < 0 and barred is not None:
            kept = side.indices[~barred[side.indices]]
            carried = values[kept].sum() / values[values < 0].sum() if len(kept) else 0.0
            side = replace(side, indices=kept, share=float(carried))
        if len(side.indices) < settings.minimum:
            raise InputError(
                f"pareto: {len(side.indices)} {name} samples, fewer than pareto.minimum = {settings.minimum}; "
                "give more training data or queries, raise pareto.alpha, or lower the minimum"
            )
        if settings.light_tail == "stop" and side.tail == "light":
            raise InputError(
                f"pareto: the {name} influence has a light tail (Hill index {side.tail_index:.2f}, 95 % interval "
                f"{side.tail_low:.2f} to {side.tail_high:.2f}); set pareto.light_tail: report to go on all the same"
            )
        sides[sign] = side
    influential = np.concatenate([side.indices for side in sides.values()])
    if barred is not None:
        influential = np.union1d(influential, np.flatnonzero(barred))
    larger = max(len(side.indices) for side in sides.values())
    size = max(larger, 0 if barred is None else int(barred.sum()))
    rest = indifferent(values, influential, size, groups)
    if len(rest) < larger:
        raise InputError(
            f"pareto: {len(rest)} indifferent samples for {larger} influential ones; lower pareto.alpha = {settings.alpha}"
        )
    return Selection(sides[1.0], sides[-1.0], rest[: round(settings.neutral_ratio * size)])


def indifferent(
    values: np.ndarray, influential: np.ndarray, fewest: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Indices of the samples that are none of the `influential` ones, the smallest |value| first, from calm `groups` alone where
    these hold at least `fewest` (see `select`)."""
    rest = np.setdiff1d(np.arange(len(values)), influential)
    calm = rest[_calm(influential, groups)[rest]] if groups is not None else rest
    chosen = calm if len(calm) >= fewest else rest
    return chosen[np.argsort(np.abs(values[chosen]), kind="stable")]


def _calm(influential: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Whether each sample's group holds few of the `influential` ones, [N] bool."""
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    chosen = np.isin(np.arange(len(group)), influential)
    shares = np.bincount(group, weights=chosen) / np.bincount(group)
    return shares[group] < CALM * chosen.mean()


def driving(scores: np.ndarray, alpha: float = 0.2, *, equal: bool = False) -> np.ndarray:
    """Indices of the driving samples alone, the strongest first, as `select` takes them; there may be none."""
    return _side(np.asarray(scores, dtype=np.float64), alpha, equal).indices


def _side(values: np.ndarray, alpha: float, equal: bool) -> Side:
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > 0]
    ranked = values[order]
    carried = np.cumsum(ranked)
    size = min(math.floor(alpha * len(values) / (2 if equal else 1)), len(ranked))
    if size and not equal:
        size = min(size, int(np.searchsorted(carried, (1 - alpha) * carried[-1])) + 1)
    index = hill_index(ranked, size)
    half = 1.96 / math.sqrt(size) if size else math.nan
    share_carried = float(carried[size - 1] / carried[-1]) if size else 0.0
    return Side(order[:size], share_carried, index, index * (1 - half), index * (1 + half))


def hill_index(ranked: np.ndarray, count: int) -> float:
    """Hill's estimate of the tail index from the `count` largest of `ranked` (falling, positive); nan where there
    are fewer than two. A tail that is one value repeated has index infinity."""
    if count < 2 or len(ranked) < 2:
        return math.nan
    threshold = ranked[min(count, len(ranked) - 1)]
    spread = float(np.log(ranked[:count] / threshold).sum())
    return count / spread if spread > 0 else math.inf
