"""What corrections descend: losses on influential samples, and what holds a model still on the indifferent rest.

Every method reads the same step: responses of both sides of some pairs and of some indifferent samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from lancet_pipeline.config.study import CorrectionSettings


@dataclass(frozen=True)
class Responses:
    """Responses of one side of a step's pairs, all [P] float32: summed log-probabilities under the model and under the
    uncorrected one, and numbers of tokens."""

    logps: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    @property
    def gain(self) -> torch.Tensor:
        """r(z) = log pi_theta(z_r|z_p) - log pi_s(z_r|z_p), [P]."""
        return self.logps - self.reference

    @property
    def nll(self) -> torch.Tensor:
        """Negative log-likelihood of a token, over all responses: scalar."""
        return -self.logps.sum() / self.tokens.sum()

    def of(self, chosen: torch.Tensor) -> "Responses":
        """Those that `chosen`, [P] bool, says."""
        return Responses(self.logps[chosen], self.reference[chosen], self.tokens[chosen])


@dataclass(frozen=True)
class Pairs:
    """Both sides of a step's pairs (one a method does not read is None), and the weights of the pairs, [P]. written: which of
    the preferred responses a person wrote, [P] bool; None where there is none."""

    preferred: Responses | None
    dispreferred: Responses | None
    weights: torch.Tensor
    written: torch.Tensor | None = None

    def margin(self) -> float:
        """How much the model moved the way it should: mean gain of what is preferred less that of what is not."""
        gains = [
            sign * side.gain.mean().item() for sign, side in ((1, self.preferred), (-1, self.dispreferred)) if side
        ]
        return sum(gains)


def ranking_loss(
    preferred_gain: torch.Tensor, dispreferred_gain: torch.Tensor, weights: torch.Tensor, beta: float
) -> torch.Tensor:
    """-mean(eps log sigmoid(beta (r(z-) - r(z+)))), with r the gain in log-probability over the uncorrected model.

    All tensors [P] float32; arXiv 2412.16451, L_COR. With labelled pairs and weights of 1 this is DPO's loss (arXiv
    2305.18290, equation 7).
    """
    return -(weights * logsigmoid(beta * (preferred_gain - dispreferred_gain))).mean()


def _ibo(pairs: Pairs, settings: CorrectionSettings) -> torch.Tensor:
    gains = [
        side.gain / side.tokens if settings.length_normalised else side.gain
        for side in (_preferred(pairs), _driving(pairs))
    ]
    loss = ranking_loss(gains[0], gains[1], pairs.weights, settings.beta)
    # A ranking is content with an answer that is only less unlikely than the other; a written one is to be said.
    return loss if pairs.written is None else loss + _preferred(pairs).of(pairs.written).nll


def _pbo(pairs: Pairs, settings: CorrectionSettings) -> torch.Tensor:
    """Proximal Bregman objective (arXiv 2209.05364, equation 6), pointwise: likelihood of each countering sample up, of
    each driving one down, per token."""
    preferred, dispreferred = _preferred(pairs), _driving(pairs)
    return (pairs.weights * (dispreferred.logps / dispreferred.tokens - preferred.logps / preferred.tokens)).mean()


def _npo(pairs: Pairs, settings: CorrectionSettings) -> torch.Tensor:
    """Negative preference optimisation: -2/beta log sigmoid(-beta r(z+)) (arXiv 2404.05868, equation 3)."""
    return -2 / settings.beta * logsigmoid(-settings.beta * _driving(pairs).gain).mean()


def _simnpo(pairs: Pairs, settings: CorrectionSettings) -> torch.Tensor:
    """NPO without a reference, per token, at reward margin 0 (arXiv 2410.07163, equation 4)."""
    driving = _driving(pairs)
    return -2 / settings.beta * logsigmoid(-settings.beta * driving.logps / driving.tokens).mean()


def _preferred(pairs: Pairs) -> Responses:
    assert pairs.preferred is not None
    return pairs.preferred


def _driving(pairs: Pairs) -> Responses:
    assert pairs.dispreferred is not None
    return pairs.dispreferred


@dataclass(frozen=True)
class Method:
    """A correction: its loss on pairs, the sides of them that it reads, and what it does with indifferent samples:
    `divergence` holds the model still on them, `likelihood` trains on them.

    labelled: the pairs come from labels (is_safe), not from influence.
    """

    loss: Callable[[Pairs, CorrectionSettings], torch.Tensor]
    sides: tuple[Literal["preferred", "dispreferred"], ...] = ("preferred", "dispreferred")
    retain: Literal["divergence", "likelihood"] | None = None
    labelled: bool = False


METHODS: dict[str, Method] = {
    "ibo": Method(_ibo, retain="divergence"),
    "pbo": Method(_pbo, retain="divergence"),
    "ga": Method(lambda pairs, _: -_driving(pairs).nll, ("dispreferred",)),
    "graddiff": Method(lambda pairs, _: -_driving(pairs).nll, ("dispreferred",), "likelihood"),
    "npo": Method(_npo, ("dispreferred",), "likelihood"),
    "simnpo": Method(_simnpo, ("dispreferred",), "likelihood"),
    "task_vector": Method(lambda pairs, _: _driving(pairs).nll, ("dispreferred",)),
    "dpo": Method(_ibo, labelled=True),
    "sft_safe": Method(lambda pairs, _: _preferred(pairs).nll, ("preferred",), labelled=True),
}


def logsumexp_divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bregman divergence of U = logsumexp on logits [n, vocab]: KL(reference || model) of each row, [n]."""
    reference_logps = reference.log_softmax(-1)
    return (reference_logps.exp() * (reference_logps - logits.log_softmax(-1))).sum(-1)


def euclidean_divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bregman divergence of U = half the squared norm, on centred logits [n, vocab] (a shift of all changes nothing): [n]."""
    difference = logits - reference
    return 0.5 * (difference - difference.mean(-1, keepdim=True)).square().sum(-1)


GENERATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "logsumexp": logsumexp_divergence,
    "euclidean": euclidean_divergence,
}
