"""What IBO descends: a ranking loss over influential pairs and a Bregman divergence on the indifferent rest."""

from collections.abc import Callable

import torch


def ranking_loss(
    preferred_gain: torch.Tensor, dispreferred_gain: torch.Tensor, weights: torch.Tensor, beta: float
) -> torch.Tensor:
    """-mean(eps log sigmoid(beta (r(z-) - r(z+)))), with r the gain in log-probability over the uncorrected model.

    All tensors [P] float32; arXiv 2412.16451, L_COR.
    """
    margin = beta * (preferred_gain - dispreferred_gain)
    return -(weights * torch.nn.functional.logsigmoid(margin)).mean()


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
