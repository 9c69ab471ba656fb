"""Scalar losses on logits, and their sums by name, such as `dice+bce`.

`logits` and `masks` (0 or 1) are (N, K, H, W), or (N, K, D, H, W), with one channel for each of K regions.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.checks import require_shape
from unetlib.support.errors import UnetlibError, brief

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over all pixels and regions.

    It equals `BCELoss` of the sigmoid, but computed on logits it neither overflows nor loses its gradient far from 0.
    """
    return F.binary_cross_entropy_with_logits(logits, masks)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Return 1 minus the soft Dice, pooled over the pixels of the batch; the mean over several regions.

    The 1 in numerator and denominator makes the loss 0, not 0/0, for an empty mask that is predicted empty.

    Source: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, section 3, here without squares.
    """
    pairs = zip(torch.sigmoid(logits).split(1, dim=1), masks.split(1, dim=1), strict=True)
    return torch.stack([1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1) for p, mask in pairs]).mean()


def focal(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean focal loss over all pixels and regions: cross-entropy weighted by `(1 - p)**gamma`.

    `p` is the predicted probability of the true class. With `gamma` 0 the loss equals `bce`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()


LOSSES: dict[str, Loss] = {"bce": bce, "dice": dice, "focal": focal}


def over_levels(loss: Loss) -> Loss:
    """Return a loss that also takes logits of several levels (N, levels, K, H, W), each of half the weight of the last.

    Source: Isensee et al., "nnU-Net", Nature Methods 18, 2021; there the masks are reduced, here the logits enlarged.
    """

    def mean(logits: Tensor, masks: Tensor) -> Tensor:
        levels = logits.unbind(1) if getattr(logits, "ndim", 0) > masks.ndim else (logits,)
        losses = torch.stack([loss(level, masks) for level in levels])
        weights = 0.5 ** torch.arange(len(levels), device=losses.device)
        return (losses * weights).sum() / weights.sum()

    return mean


def get_loss(name: str, deep_supervision: bool = False) -> Loss:
    """Return the loss of that name, or the sum of several joined by `+`; raises `UnetlibError` for an unknown one."""
    names = [part.strip() for part in str(name).split("+")]
    if unknown := [part for part in names if part not in LOSSES]:
        raise UnetlibError(
            f"there is no loss named {brief(unknown[0])}; {', '.join(LOSSES)} or a sum such as dice+bce was expected."
        )
    terms = [LOSSES[part] for part in names]

    def total(logits: Tensor, masks: Tensor) -> Tensor:
        require_shape(logits, masks.shape)
        return torch.stack([term(logits, masks) for term in terms]).sum()

    return over_levels(total) if deep_supervision else total
