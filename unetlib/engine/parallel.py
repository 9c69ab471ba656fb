"""Several processes that train as one: the same batches, the same statistics, the same steps.

`torchrun` starts them. Every process runs the network on its own rows of each batch. What one process would compute
from the whole batch is summed over all of them: the statistics of batch norm, the loss, the gradients, the counts of
validation. The result is that of one process, apart from rounding, and another number of processes may resume a run.
"""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from unetlib.support.errors import UnetlibError


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is summed, too."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)


class _SharedNorm(torch.autograd.Function):
    """Batch norm with given statistics and their gradient; PyTorch's own kernels are 1.4 x faster on 2 processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *statistics: Any) -> Tensor:
        mean, variance, ctx.number, eps = statistics
        mean, scale = mean.to(weight), (variance + eps).rsqrt().to(weight)
        ctx.save_for_backward(x, weight, mean, scale)
        return F.batch_norm(x, mean, variance.to(weight), weight, bias, eps=eps) if len(x) else x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        sums = weight.new_zeros(2, len(weight), dtype=torch.float64)  # over all but the channels: of g x^, of g
        if len(x):
            inputs = gradient, x, weight, None, None, mean, scale
            sums = torch.stack(torch.ops.aten.native_batch_norm_backward(*inputs, True, 0.0, [False, True, True])[1:])
        own, total = sums.to(weight), sums.to(torch.float64, copy=True)
        distributed.all_reduce(total)
        by_x, plain = (total / ctx.number).to(weight)
        slope = weight * scale
        shift = slope * (by_x * scale * mean - plain)
        a, b, c = (part.view(-1, *[1] * (x.dim() - 2)) for part in (slope, -slope * by_x * scale, shift))
        return (gradient * a).add_(x * b).add_(c).to(x.dtype), own[0], own[1], None, None, None, None


class SharedBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) with the statistics of the whole batch, of which every process holds some rows.

    PyTorch's own `SyncBatchNorm` needs a GPU. Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Take slices and volumes alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised: in training over all processes, in evaluation by the running statistics."""
        if not self.training:
            return super().forward(x)
        mean, variance, number = self._statistics(x.detach())
        for running, now in ((self.running_mean, mean), (self.running_var, variance * number / (number - 1))):
            running.lerp_(now.to(running), self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return _SharedNorm.apply(x, self.weight, self.bias, mean, variance, number, self.eps)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance (biased) and number of the values of every channel, over all processes, in float64."""
        sums = x.new_zeros(3, x.shape[1], dtype=torch.float64)
        if len(x):
            weight, bias = self.weight.detach(), self.bias.detach()  # else statistics of bf16 input would be in bf16
            _, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self.eps)
            mean, square = mean.double(), scale.double() ** -2 - self.eps + mean.double().square()
            sums = torch.stack([mean, square, torch.ones_like(mean)]) * (x.numel() // x.shape[1])
        distributed.all_reduce(sums)
        mean, square = sums[:2] / sums[2]
        return mean, square - mean.square(), sums[2]


def share_statistics(model: nn.Module) -> None:
    """Let every batch norm of a network use the statistics of the whole batch; weights and names do not change.

    Norms over each sample alone (instance, group, layer) need nothing. Raises `UnetlibError` for a norm over the batch
    that cannot be shared: of other kinds, without weights, or without a running average of fixed momentum.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or (isinstance(module, _InstanceNorm) and not module.track_running_stats):
            continue
        complete = module.affine and module.track_running_stats and module.momentum is not None
        if type(module) not in (nn.BatchNorm2d, nn.BatchNorm3d) or not complete:
            raise UnetlibError(
                f"the network's layer {name or 'itself'}, {module}, computes its statistics from the samples of one "
                "process, and torchrun starts several. Train in one process, or use BatchNorm2d or BatchNorm3d with "
                "their usual arguments, or a norm over each sample, such as GroupNorm."
            )
        module.__class__ = SharedBatchNorm


def own_rows(fabric: Fabric, batch: Tensor) -> Tensor:
    """Return the rows of a batch (N, ...) that this process computes; all rows if it is the only one."""
    return batch.tensor_split(fabric.world_size)[fabric.global_rank]


def gather(fabric: Fabric, rows: Tensor, number: int) -> Tensor:
    """Return the `number` rows of a whole batch, in order, from the `rows` of each process.

    The gradient of a loss on them, averaged over the processes, equals that of one process.
    """
    if fabric.world_size == 1:
        return rows
    place = own_rows(fabric, torch.arange(number, device=rows.device))
    return _Sum.apply(rows.new_zeros(number, *rows.shape[1:]).index_copy(0, place, rows))


def any_of(fabric: Fabric, flag: bool) -> bool:
    """Tell whether a flag is set in any process; all of them get the same answer."""
    return flag if fabric.world_size == 1 else bool(_Sum.apply(torch.tensor(int(flag), device=fabric.device)))
