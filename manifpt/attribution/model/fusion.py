"""Late fusion: the weight of the head of each space, fitted on validation images.

The fused probability is proportional to the product of the heads' probabilities, each to the power
of its weight (a logarithmic opinion pool; Genest & Zidek, Statistical Science 1986). A weight is
also the inverse temperature of its head (Guo et al., ICML 2017), so the pool is calibrated.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss, softplus

STEPS = 100


def fused_log_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """Return N x classes log-probabilities of N x heads x classes logits and the heads' weights."""
    each = log_softmax(logits, 2)
    return log_softmax((each * weights[:, None]).sum(1), 1)


def fit_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the weights, one a head, that give N x heads x classes logits the least loss.

    Weights are positive. It is a convex problem, solved in float64.
    """
    heads = logits.shape[1]
    start = torch.log(torch.expm1(torch.full((heads,), 1.0 / heads, dtype=torch.float64)))
    raw = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([raw], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = nll_loss(fused_log_probabilities(logits.double(), softplus(raw)), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return softplus(raw.detach()).float()
