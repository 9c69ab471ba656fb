"""Several processes that train as one: the same batches, the same statistics, the same steps.

`torchrun` starts them. Every process runs the network on its share of each batch; what a single process would compute
from the whole batch is summed over all of them: the statistics of batch norm, the loss, the gradients, the counts of
validation. So they give the result of one process but for rounding, and a run may go on with another number of them.
"""

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the whole batch, of which every process has a share, (N, C, H, W).

    PyTorch's own `SyncBatchNorm` needs a GPU. Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised; in training over all processes, in evaluation by the running statistics."""
        if not self.training:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        sums = [y.sum((0, 2, 3), dtype=torch.float64) for y in (x, x.to(wide).square())]
        number = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        *sums, number = _Sum.apply(torch.cat([*sums, number])).split([x.shape[1], x.shape[1], 1])
        mean = sums[0] / number
        variance = sums[1] / number - mean.square()
        with torch.no_grad():
            unbiased = variance * number / (number - 1)
            for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(now.to(running), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale.to(wide)[:, None, None] + shift.to(wide)[:, None, None]).to(x.dtype)


def share_statistics(model: nn.Module) -> None:
    """Let every batch norm of a network use the statistics of the whole batch; weights and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def share(fabric: Fabric, batch: Tensor) -> Tensor:
    """Return the rows of a batch (N, ...) that this process computes; all of them where it is alone."""
    return batch.tensor_split(fabric.world_size)[fabric.global_rank]


def gather(fabric: Fabric, rows: Tensor, number: int) -> Tensor:
    """Return the `number` rows of all processes in the order of the batch, from the share of each.

    The gradient of a loss of them, taken by every process and averaged, is that of one process.
    """
    if fabric.world_size == 1:
        return rows
    place = torch.arange(number, device=rows.device).tensor_split(fabric.world_size)[fabric.global_rank]
    return _Sum.apply(rows.new_zeros(number, *rows.shape[1:]).index_copy(0, place, rows))


def any_of(fabric: Fabric, flag: bool) -> bool:
    """Tell whether a flag is set in any process, the same in all of them."""
    return flag if fabric.world_size == 1 else bool(_Sum.apply(torch.tensor(int(flag), device=fabric.device)))
