"""Losses on logits, each a scalar; sums of them by name, such as `dice+bce`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.support.errors import UnetlibError, brief

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over all pixels.

    `logits` and `masks` (0 or 1): (N, 1, H, W). The same as `BCELoss` of the sigmoid, computed on
    logits so that it neither overflows nor loses its gradient far from 0.
    """
    return F.binary_cross_entropy_with_logits(logits, masks)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Return 1 minus the soft Dice, pooled over all pixels of the batch.

    `logits` and `masks` (0 or 1): (N, 1, H, W). The 1 added above and below the line makes the
    loss 0, not 0/0, for an empty mask that is predicted empty.

    Source: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, section 3, here without squares.
    """
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * masks).sum()
    return 1 - (2 * overlap + 1) / (probabilities.sum() + masks.sum() + 1)


def focal(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean focal loss: cross-entropy weighted by `(1 - p)**gamma`, `p` the probability of the truth.

    `logits` and `masks` (0 or 1): (N, 1, H, W). With `gamma` 0 it is `bce`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()


LOSSES: dict[str, Loss] = {"bce": bce, "dice": dice, "focal": focal}


def get_loss(name: str) -> Loss:
    """Return the loss of that name, or the sum of several joined by `+`; raises `UnetlibError` for an unknown one."""
    names = [part.strip() for part in name.split("+")]
    if unknown := [part for part in names if part not in LOSSES]:
        raise UnetlibError(
            f"there is no loss named {brief(unknown[0])}; {', '.join(LOSSES)} or a sum such as dice+bce was expected."
        )
    terms = [LOSSES[part] for part in names]

    def total(logits: Tensor, masks: Tensor) -> Tensor:
        return torch.stack([term(logits, masks) for term in terms]).sum()

    return total
