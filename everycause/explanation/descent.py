"""Gradient descent with momentum on many affine maps at once: the same iterates as step by step, with few passes over the weights.

Every map sees a handful of images per step, so its gradient has a low rank, and reading and writing all weights, their
gradients and their velocities in each step costs far more than the arithmetic. Here the weights stay as they are for a block
of steps; what the steps of a block do to each other passes through the images' inner products, a few numbers, and the block
is applied to the weights at its end. With velocity V, gradient G, rate η and momentum μ, at step t of a block

    V_t = μ^t V_0 + Σ_{s<t} μ^{t−1−s} G_s,    W_t = W_0 − η [ (μ + … + μ^t) V_0 + Σ_{s<t} (1 + … + μ^{t−1−s}) G_s ]

which is torch.optim.SGD, rearranged. Source: ours; a test holds it against the optimizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.9


def series(steps: float | Tensor) -> float | Tensor:
    """1 + μ + … + μ^{steps−1}."""
    return (1 - MOMENTUM**steps) / (1 - MOMENTUM)


@dataclass
class Descent:
    """Affine maps on their way down. The last input is the constant 1, so that the last column is the bias."""

    weight: Float[Tensor, "maps rows inputs"]
    velocity: Float[Tensor, "maps rows inputs"]
    rate: float

    @classmethod
    def begin(cls, weight: Float[Tensor, "maps rows inputs"], rate: float) -> "Descent":
        """At rest."""
        return cls(weight.clone(), torch.zeros_like(weight), rate)

    def block(self, inputs: Sequence[Float[Tensor, "_ _ inputs"]], slope: Callable[[int, Tensor], Tensor]) -> None:
        """Some steps. `inputs` holds the images of each, for all maps together (first size 1) or for each map its own.

        `slope` gives the derivative of a step's loss with respect to what the maps say of its images, maps × images × rows.

        Raises:
            FloatingPointError: a slope is not finite; its argument is the number of the step.
        """
        device, count = self.weight.device, len(self.weight)
        sizes = [one.shape[1] for one in inputs]
        step_of = torch.arange(len(sizes), dtype=torch.float64, device=device).repeat_interleave(torch.tensor(sizes, device=device))
        together = torch.cat(list(inputs), dim=1)
        shared, products = together.expand(count, -1, -1), together @ together.transpose(1, 2)
        still, drift = shared.bmm(self.weight.transpose(1, 2)), shared.bmm(self.velocity.transpose(1, 2))
        slopes, begin = torch.empty_like(still), 0
        for step, size in enumerate(sizes):
            rows = slice(begin, begin + size)
            said = still[:, rows]
            if step:
                said = said - self.rate * MOMENTUM * series(step) * drift[:, rows]
                earlier = products[:, rows, :begin] * (self.rate * series(step - step_of[:begin]).to(products))
                said = torch.baddbmm(said, earlier.expand(count, -1, -1), slopes[:, :begin], alpha=-1)
            slopes[:, rows] = slope(step, said)
            begin += size
        if not bool(slopes.sum().isfinite()) and bool((wrong := ~slopes.isfinite()).any()):  # the sum first: one pass
            raise FloatingPointError(int(step_of[wrong.any(dim=2).any(dim=0)][0]))
        self._apply(slopes, together, len(sizes) - step_of, len(sizes))

    def _apply(self, slopes: Tensor, together: Tensor, left: Tensor, steps: int) -> None:
        """The end of a block of steps; `left` is the number of steps from each image to the end."""
        count, turned = len(self.weight), slopes.transpose(1, 2)
        self.weight.add_(self.velocity, alpha=-self.rate * MOMENTUM * series(steps))
        moved = together * series(left).to(together)[:, None]
        self.weight.baddbmm_(turned, moved.expand(count, -1, -1), alpha=-self.rate)
        pushed = together * (MOMENTUM ** (left - 1)).to(together)[:, None]
        self.velocity.baddbmm_(turned, pushed.expand(count, -1, -1), beta=MOMENTUM**steps)
