"""A diffusion prior that costs nothing, for tests."""

import torch
from torch import nn

from everycause.explanation.prior import DiffusionPrior
from everycause.explanation.prior_training import training_scheduler


class Toy(nn.Module):
    """A smooth denoiser that depends on the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.convolution(images)) * (1 + step[:, None, None, None] / 1000)


def toy_prior(tau: int = 3, chain: int = 50, eta: float = 1.0, **options: object) -> DiffusionPrior:
    return DiffusionPrior(Toy(), training_scheduler(), chain, tau, eta, **options)
