"""A training step divided among processes: the loss and the gradient of the whole batch, as if one process computed it.

Every process draws the whole step, so that order, augmentation and counterfactual images are those of one process. It
sends every K-th image through the network; the outputs of all images are gathered, and every process computes the same
loss from them, whatever objective it is. Batch normalization takes the statistics of the whole batch.

Gradients follow one rule: each process goes backward from its own copy of the loss. The weights before an exchange then
get gradients whose sum is K times the right one, those behind it K right ones: the mean over K is right for both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import FunctionCtx
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from everycause import ranks
from everycause.errors import UserError
from everycause.shapes import Float


def check_divisible(batch_size: int) -> None:
    """Refuse more processes than a step has images.

    Raises:
        UserError: there are more.
    """
    if ranks.count() > batch_size:
        raise UserError(
            f"{ranks.count()} processes share a batch_size of {batch_size}: lower run.processes to {batch_size} or less"
        )


def own_rows(inputs: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "own 3 height width"]:
    """The images of this process: every K-th."""
    if ranks.count() == 1:
        return inputs
    return inputs[ranks.number() :: ranks.count()].contiguous(memory_format=torch.channels_last)


def all_rows(own: Float[Tensor, "own features"], total: int) -> Float[Tensor, "batch features"]:
    """What all processes have computed for their images, in the order of the `total` images, in float32."""
    exact = own.float()
    return exact if ranks.count() == 1 else _AllRows.apply(exact, total, ranks.number(), ranks.count())


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of an optimizer's parameters by their means over the processes."""
    if ranks.count() == 1:
        return
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    if not gradients:
        return
    together = torch.cat([one.reshape(-1) for one in gradients])
    distributed.all_reduce(together)
    together /= ranks.count()
    for one, mean in zip(gradients, together.split([one.numel() for one in gradients]), strict=True):
        one.copy_(mean.view(one.shape))


@contextmanager
def whole_batch_statistics() -> Iterator[None]:
    """Within the block batch normalization in training mode takes the statistics of the images of all processes."""
    if ranks.count() == 1:
        yield
        return
    with _WholeBatch():
        yield


class _WholeBatch(TorchFunctionMode):
    """Catches torch's batch_norm, through which the layers of torch and of timm go alike.

    torch's SyncBatchNorm works on GPUs alone, and replaces layers of a network that must be saved as it is.
    """

    def __torch_function__(
        self, function: Callable, types: Any, arguments: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is batch_norm and named.get("training"):
            return normalized_together(*arguments, **named)
        return function(*arguments, **named)


def normalized_together(
    values: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Batch normalization by mean and variance over the images of all processes; arguments are those of batch_norm."""
    assert training
    places = [0, *range(2, values.ndim)]
    with torch.no_grad():
        exact = values.float()
        local = torch.cat([exact.sum(dim=places), exact.new_full((1,), values.numel() / values.shape[1])])
        distributed.all_reduce(local)
        number, mean = local[-1], local[:-1] / local[-1]
        squares = (exact - _by_channel(mean, values)).square().sum(dim=places)
        distributed.all_reduce(squares)
        variance = squares / number
        if running_mean is not None and running_variance is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = squares / (number - 1).clamp_min(1)
            running_variance.lerp_(unbiased.to(running_variance.dtype), momentum)
    scale = torch.ones_like(mean) if weight is None else weight
    return _Normalized.apply(
        values, scale, torch.zeros_like(mean) if bias is None else bias, mean, variance, number, eps
    )


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel, shaped to be combined with activations."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


class _Normalized(torch.autograd.Function):
    """Batch normalization by statistics of all processes, and its derivative, which needs two sums of all processes."""

    @staticmethod
    def forward(
        context: FunctionCtx, values: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
        number: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        inverse = (variance + eps).rsqrt()
        context.save_for_backward(values, weight, mean, inverse, number)
        return batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, inverse, number = context.saved_tensors
        places = [0, *range(2, values.ndim)]
        exact = gradient.float()
        standard = (values.float() - _by_channel(mean, values)) * _by_channel(inverse, values)
        own = torch.stack([exact.sum(dim=places), (exact * standard).sum(dim=places)])
        whole = own.clone()
        distributed.all_reduce(whole)
        rest = exact - _by_channel(whole[0] / number, values) - standard * _by_channel(whole[1] / number, values)
        changed = (rest * _by_channel(weight * inverse, values)).to(values.dtype)
        return changed, own[1].to(weight.dtype), own[0].to(weight.dtype), None, None, None, None


class _AllRows(torch.autograd.Function):
    """Rows of all processes; backward, each process's copy of the loss adds the same gradient to its own rows."""

    @staticmethod
    def forward(context: Any, own: Tensor, total: int, number: int, count: int) -> Tensor:
        context.number, context.count = number, count
        most = -(-total // count)
        padded = torch.nn.functional.pad(own, (0, 0, 0, most - len(own))).contiguous()
        parts = [torch.empty_like(padded) for _ in range(count)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[context.number :: context.count] * context.count, None, None, None
