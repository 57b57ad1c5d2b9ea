"""Numbers of 16 bits: a network under autocast, where that is asked for. Weights and results stay float32.

bfloat16 has the range of float32 and 8 bits of precision; float16 has 11 bits and a narrow range, so that training with
it scales the loss. Both are faster on GPUs with tensor cores.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which convolutions and matrix products run in this precision; float32 leaves everything as it is."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)


def in_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """A network that runs in this precision and gives float32; with float32 it is the network itself."""
    return network if precision == "float32" else _Reduced(network, precision)


class _Reduced(nn.Module):
    """A network under autocast."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, images: Tensor, *others: Any) -> Tensor:
        with autocast(images.device, self.precision):
            return self.network(images, *others).float()
