"""The numbers that published benchmarks ask for, from stored scores.

mCE: for each corruption the errors over all severities, over AlexNet's; the mean of the fifteen in percent. Its errors are
those of the source's own network, so the name is kept for the released images of ImageNet-C.
Sources: arXiv 1903.12261 (mCE), 1706.04599 (expected calibration error), 1911.08731 (worst group, adjusted mean).
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
    "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's mean error over the five severities of each corruption of ImageNet-C."""
ALEXNET_CLEAN = 0.435
"""Its error on the clean validation images."""
BINS = 15
"""Of the expected calibration error."""


def mean_corruption_error(errors: dict[str, float], clean: float | None = None) -> float:
    """mCE in percent, from each corruption's mean error over the five severities; relative mCE where the clean error is given.

    Raises:
        ValueError: it is not the fifteen corruptions.
    """
    if set(errors) != set(ALEXNET):
        raise ValueError(f"mCE is over the fifteen corruptions of ImageNet-C, and {len(errors)} were measured: set evaluation.corruptions to all of them")
    ours, theirs = (0.0, 0.0) if clean is None else (clean, ALEXNET_CLEAN)
    return 100 * sum((errors[name] - ours) / (ALEXNET[name] - theirs) for name in ALEXNET) / len(ALEXNET)


def top(scores: Float[Tensor, "images classes"], labels: Int64[Tensor, "images"], count: int) -> float:
    """The share of images whose label is among the `count` largest scores."""
    return float((scores.topk(count, dim=1).indices == labels[:, None]).any(dim=1).double().mean())


def macro(correct: Bool[Tensor, "images"], labels: Int64[Tensor, "images"]) -> float:
    """The mean of the recalls of the classes that occur."""
    hits, counts = torch.bincount(labels[correct], minlength=int(labels.max()) + 1), torch.bincount(labels)
    return float((hits[counts > 0] / counts[counts > 0]).double().mean())


def calibration_error(scores: Float[Tensor, "images classes"], labels: Int64[Tensor, "images"]) -> float:
    """How far confidence is from accuracy, bin by bin of equal width, weighted by the images in it."""
    confidence, prediction = scores.double().softmax(dim=1).max(dim=1)
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, (prediction == labels).double() - confidence)
    return float(gap.abs().sum() / len(labels))


def group_accuracies(correct: Bool[Tensor, "images"], groups: Int64[Tensor, "images"]) -> dict[int, float]:
    """The accuracy of each group that occurs."""
    return {int(group): float(correct[groups == group].double().mean()) for group in groups.unique()}
