"""Logits and gradients of masked images, in batches of one shape.

Every forward pass has the same number of images, so that no image's result depends on which others are searched with it
(with `padded` off, passes are as large as what is asked, which is right for a single image).

Cost is counted in forward passes. One forward pass of a candidate counts 1. A gradient counts 3: the pass itself and a
backward pass, which was measured at 1.3 to 2.4 forward passes (reports/log.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from everycause.explanation.objectives import Logits, Objective
from everycause.explanation.regions import MaskedImages
from everycause.networks import evaluating, folded
from everycause.precision import Precision, autocast
from everycause.shapes import Bool, Float, Int64

GRADIENT = 3
"""Forward passes that a gradient counts as."""


class Scorer:
    """A network that scores masked images: an accelerated copy for the search, or the network exactly as it is stored.

    Args:
        network: Any module that maps normalized images to logits; it is not changed.
        batch_size: Masked images per forward pass.
        device: Where the network lies; found from its parameters where it is not given.
        fast: Use a copy with batch normalization folded into the convolutions, where the network can be traced. Without
            it the network itself is used, in true float32 (no TF32).
        precision: bfloat16 and float16 run under autocast.
        compiled: Use torch.compile, which pays from some ten thousand images on.
        padded: Fill every pass up to `batch_size` with copies of its last row.
    """

    def __init__(
        self,
        network: nn.Module,
        batch_size: int,
        device: torch.device | None = None,
        fast: bool = False,
        precision: Precision = "float32",
        compiled: bool = False,
        padded: bool = True,
    ) -> None:
        first = next((value for value in network.parameters() if value.is_floating_point()), torch.zeros(0))
        self.device, self.dtype = device or first.device, first.dtype
        self.batch_size, self.precision, self.padded, self.fast = batch_size, precision, padded, fast
        self.network: nn.Module = folded(network) if fast else network
        if compiled:
            self.network = torch.compile(self.network, dynamic=False)

    def output(self, images: Float[Tensor, "batch 3 height width"]) -> Any:
        """Whatever the network returns for normalized images."""
        with torch.no_grad(), evaluating(self.network), true_float32(not self.fast):
            return self.network(images.to(self.dtype))

    def has_gradients(self, images: Float[Tensor, "batch 3 height width"]) -> bool:
        """Whether logits can be derived by the images: some networks detach their output or compute in numpy."""
        leaf = images.clone().requires_grad_()
        try:
            with evaluating(self.network), torch.enable_grad():
                return torch.autograd.grad(self._forward(leaf.clone()).sum(), leaf)[0] is not None
        except Exception:  # the network is foreign code
            return False

    def logits(
        self, masking: MaskedImages, owner: Int64[Tensor, "candidates"], kept: Bool[Tensor, "candidates regions"]
    ) -> Float[Tensor, "candidates classes"]:
        """Logits of image number `owner` with every region but those in `kept` removed."""
        results = []
        # no_grad, not inference_mode: a network that caches tensors in its forward pass must stay trainable afterwards
        with torch.no_grad(), evaluating(self.network), true_float32(not self.fast):
            for rows in self._chunks(len(owner)):
                results.append(self._forward(masking.composed(owner[rows], kept[rows].float())))
        return torch.cat(results)[: len(owner)].clone()

    def set_logits(
        self,
        masking: MaskedImages,
        owner: Int64[Tensor, "candidates"],
        removed: Bool[Tensor, "candidates regions"],
        objective: Objective,
    ) -> Logits:
        """The logits of candidate sets that an objective reads."""
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
        """The derivative of the objective by the removal of each region, at a soft state with removals in [0, 1]."""
        everyone, results = torch.arange(len(removed), device=removed.device), []
        with evaluating(self.network), torch.enable_grad():
            for rows in self._chunks(len(removed)):
                owner = everyone[rows]
                sides = (1 - removed[rows], removed[rows])[: objective.passes]
                images = [masking.composed(owner, kept).requires_grad_() for kept in sides]
                # clones: a network may change its input in place, which autograd forbids for the images themselves
                first, *second = [self._forward(image.clone()) for image in images]
                logits = Logits(first, second[0] if second else None)
                gradients = torch.autograd.grad(objective.value(logits, labels[rows], runner_up[rows]).sum(), images)
                difference = masking.images[owner]
                if masking.baseline is not None:
                    difference = difference - masking.baseline[owner]
                signed = -gradients[0] if len(gradients) == 1 else gradients[1] - gradients[0]
                results.append(masking.summed_over_regions(owner, (signed * difference).sum(dim=1)))
        return torch.cat(results)[: len(removed)]

    def _forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            return self.network(images.to(self.dtype).contiguous(memory_format=torch.channels_last)).float()

    def _chunks(self, count: int) -> Iterator[Tensor]:
        """Row numbers, at most `batch_size` at a time; where passes are padded, the last row is repeated."""
        for start in range(0, count, self.batch_size):
            end = start + self.batch_size if self.padded else min(start + self.batch_size, count)
            yield torch.arange(start, end, device=self.device).clamp_max(count - 1)


@contextmanager
def true_float32(wanted: bool = True) -> Iterator[None]:
    """Switch TF32 off on CUDA within the block, and restore the switches afterwards.

    cuDNN convolutions use TF32 by default: their 10-bit mantissa moves logits by about 1e-3, enough to turn a near tie.
    """
    if not wanted or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
