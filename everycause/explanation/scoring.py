"""What a model says of masked images: batches of one shape, so that no image's result depends on the others.

One forward pass of a candidate counts 1. A gradient counts 3: the pass itself and a backward pass, which was measured at
1.3 to 2.4 forward passes (reports/log.md).
"""

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from everycause.explanation.objectives import Logits, Objective
from everycause.explanation.regions import MaskedImages
from everycause.hooks import evaluating
from everycause.models import Classifier
from everycause.shapes import Bool, Float, Int64

GRADIENT = 3
"""Forward passes that a gradient counts as."""
Precision = Literal["float32", "bfloat16"]


class Scorer:
    """A classifier, made fast for the search or left exactly as it is stored.

    Args:
        classifier: The model; it is not changed.
        batch_size: Masked images per forward pass; every pass has this many.
        fast: Fold batch normalization into the convolutions where the network can be traced.
        precision: bfloat16 runs under autocast.
        compiled: torch.compile, which pays when there are many thousand images.
    """

    def __init__(
        self,
        classifier: Classifier,
        batch_size: int,
        fast: bool = False,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        self.classifier = classifier
        self.batch_size = batch_size
        self.network: nn.Module = folded(classifier) if fast else classifier.network
        self.precision = precision
        if compiled:
            self.network = torch.compile(self.network, dynamic=False)

    def logits(
        self, masking: MaskedImages, owner: Int64[Tensor, "candidates"], kept: Bool[Tensor, "candidates regions"]
    ) -> Float[Tensor, "candidates classes"]:
        """Logits of image `owner` with only the regions `kept` shown."""
        results = []
        with torch.inference_mode(), evaluating(self.classifier):
            for rows in self._padded(len(owner)):
                results.append(self._forward(masking.shown(owner[rows], kept[rows].float())))
        return torch.cat(results)[: len(owner)].clone()

    def set_logits(
        self,
        masking: MaskedImages,
        owner: Int64[Tensor, "candidates"],
        removed: Bool[Tensor, "candidates regions"],
        objective: Objective,
    ) -> Logits:
        """What an objective asks of candidate sets."""
        alone = self.logits(masking, owner, removed) if objective.passes == 2 else None
        return Logits(self.logits(masking, owner, ~removed), alone)

    def gradients(
        self,
        masking: MaskedImages,
        removed: Float[Tensor, "images regions"],
        labels: Int64[Tensor, "images"],
        runner_up: Int64[Tensor, "images"],
        objective: Objective,
    ) -> Float[Tensor, "images regions"]:
        """The derivative of the objective by how far each region is removed, at a soft state in [0, 1]."""
        everyone, results = torch.arange(len(removed), device=removed.device), []
        with evaluating(self.classifier), torch.enable_grad():
            for rows in self._padded(len(removed)):
                owner = everyone[rows]
                sides = (1 - removed[rows], removed[rows])[: objective.passes]
                shown = [masking.shown(owner, kept).requires_grad_() for kept in sides]
                said = Logits(self._forward(shown[0]), self._forward(shown[1]) if len(shown) == 2 else None)
                gradients = torch.autograd.grad(objective.value(said, labels[rows], runner_up[rows]).sum(), shown)
                difference = (
                    masking.images[owner]
                    if masking.baseline is None
                    else masking.images[owner] - masking.baseline[owner]
                )
                signed = -gradients[0] if len(gradients) == 1 else gradients[1] - gradients[0]
                results.append(masking.summed(owner, (signed * difference).sum(dim=1)))
        return torch.cat(results)[: len(removed)]

    def _forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.network(images.contiguous(memory_format=torch.channels_last)).float()

    def _padded(self, count: int) -> Iterator[Tensor]:
        """Chunks of exactly `batch_size` row numbers; the last one is filled up with copies of the last row."""
        device = self.classifier.device
        for start in range(0, count, self.batch_size):
            yield torch.arange(start, start + self.batch_size, device=device).clamp_max(count - 1)


def folded(classifier: Classifier) -> nn.Module:
    """A copy of the network with batch normalization folded into the convolutions; a plain copy where it cannot be traced."""
    network = copy.deepcopy(classifier.network).eval().requires_grad_(False)
    try:
        return fuse(network).to(memory_format=torch.channels_last)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return network  # control flow that depends on the input: nothing is lost but speed
