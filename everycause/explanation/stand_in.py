"""What stands in for a removed region while the search looks for it."""

from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.data.batches import normalized
from everycause.data.split import Images, Split
from everycause.explanation.masking import Masking
from everycause.model import Classifier

FillName = Literal["mean", "zeros", "blur", "background"]


def others(split: Split, index: Tensor, fill: FillName) -> Images | None:
    """For the fill `background` another image of the split for each, the same one every time."""
    return split.read(((index + len(split) // 2 + 1) % len(split)).numpy()) if fill == "background" else None


def masked(
    classifier: Classifier, images: Images, partition: Int64[Tensor, "partitions height width"], regions: int, fill: FillName, stand_in: Images | None = None
) -> Masking:
    """Images with their partitions and what stands in for removed regions, on the classifier's device; `stand_in` is what the fill `background` shows."""
    if fill == "zeros":
        stand_in = torch.zeros_like(images)
    if fill == "blur":
        side = images.shape[-1] // 4
        stand_in = gaussian_blur(images, kernel_size=[2 * side + 1, 2 * side + 1], sigma=[side / 2, side / 2])
    shown = None if stand_in is None else normalized(stand_in, classifier.statistics, classifier.device)
    return Masking(normalized(images, classifier.statistics, classifier.device), partition.to(classifier.device), regions, shown)
