"""Reading a layer's output, and switching a network to evaluation mode, without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def recording(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of `layer` at each forward pass within the block; the hook is removed at its end."""
    outputs: list[Tensor] = []
    # identity through a view: an in-place activation behind the layer would otherwise change the recorded tensor
    handle = layer.register_forward_hook(lambda _module, _inputs, output: _kept(outputs, output))
    try:
        yield outputs
    finally:
        handle.remove()


def _kept(outputs: list[Tensor], output: Tensor) -> Tensor:
    """Record the output and hand a copy of it on, which layers behind may overwrite."""
    outputs.append(output)
    return output.clone()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode within the block; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
