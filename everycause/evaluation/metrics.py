"""Every number of the results table, from stored predictions."""

import torch
from torch import Tensor

from codebirds.codes import Code
from everycause.data.corruptions import group_of
from everycause.data.shifts import erasure_name
from everycause.errors import UserError
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.evaluation.predictions import Predictions
from everycause.shapes import Bool, Float, Int64

# MERGED DOC: """The numbers that published benchmarks ask for, from stored scores.
#
# mCE: for each corruption the errors over all severities, over AlexNet's; the mean of the fifteen in percent. Its errors are
# those of the source's own network, so the name is kept for the released images of ImageNet-C.
# Sources: arXiv 1903.12261 (mCE), 1706.04599 (expected calibration error), 1911.08731 (worst group, adjusted mean).
# """


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
        UserError: it is not the fifteen corruptions.
    """
    if set(errors) != set(ALEXNET):
        raise UserError(
            f"mCE is over the fifteen corruptions of ImageNet-C, and {len(errors)} were measured: set evaluation.corruptions to all of them"
        )
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


TOP = 5


def metrics(predictions: Predictions, code: Code | None) -> dict[str, float]:
    """All metrics by name, accuracies and shares in [0, 1] (mCE in percent); the causal ones only where the code is known."""
    result = {
        f"accuracy/{view}": float(predictions.correct(view).double().mean())
        for view in predictions.logits
        if not view.startswith("erasures/")
    }
    for view in (view for view in predictions.logits if view.count("/") < 2 and not view.startswith("erasures/")):
        scores, labels = predictions.scores(view), predictions.labels[view]
        result |= {
            f"macro/{view}": macro(predictions.correct(view), labels),
            f"calibration_error/{view}": calibration_error(scores, labels),
        }
        if scores.shape[1] > TOP:
            result[f"top5/{view}"] = top(scores, labels, TOP)
    if predictions.family("corruptions"):
        result |= corruption_metrics(predictions)
    if "renditions" in predictions.among:
        result |= rendition_metrics(predictions)
    if predictions.groups is not None:
        by_group = group_accuracies(predictions.correct("test"), predictions.groups)
        result |= {"worst_group": min(by_group.values())} | {
            f"group/{group}": value for group, value in by_group.items()
        }
    if code is not None:
        result |= causal_metrics(predictions, code)
    return result


def corruption_metrics(predictions: Predictions) -> dict[str, float]:
    """Accuracy per corruption, per group and over all; mCE for the released images alone."""
    names = list(dict.fromkeys(view.split("/")[1] for view in predictions.family("corruptions")))
    by_name = {name: float(predictions.correctness(f"corruptions/{name}").mean()) for name in names}
    result = {f"accuracy/corruptions/{name}": value for name, value in by_name.items()}
    result["accuracy/corruptions"] = sum(by_name.values()) / len(by_name)
    for group in dict.fromkeys(group_of(name) for name in names):
        members = [value for name, value in by_name.items() if group_of(name) == group]
        result[f"corruption_group/{group}"] = sum(members) / len(members)
    if predictions.released and set(names) == set(ALEXNET) and len(predictions.family("corruptions")) == 75:
        errors, clean = (
            {name: 1 - value for name, value in by_name.items()},
            1 - float(predictions.correct("test").double().mean()),
        )
        result |= {"mce": mean_corruption_error(errors), "relative_mce": mean_corruption_error(errors, clean)}
    return result


def rendition_metrics(predictions: Predictions) -> dict[str, float]:
    """The clean accuracy on ImageNet-R's classes, among these alone, and what is lost from there."""
    classes = predictions.among["renditions"]
    rows = torch.isin(predictions.labels["test"], classes)
    clean = classes[predictions.logits["test"][rows][:, classes].argmax(dim=1)] == predictions.labels["test"][rows]
    accuracy = float(clean.double().mean())
    return {
        "accuracy/test_200": accuracy,
        "rendition_gap": accuracy - float(predictions.correct("renditions").double().mean()),
    }


def causal_metrics(predictions: Predictions, code: Code) -> dict[str, float]:
    """Completeness, reliance and scene measures."""
    subsets = [parts for size in range(code.length + 1) for parts in code.subsets(size)]
    accuracies = {parts: float(predictions.correct(erasure_name(parts)).double().mean()) for parts in subsets}
    curve = profile(accuracies, code)
    shares = reliance(accuracies, code.length)
    result = {"completeness": completeness_score(curve, code.num_classes), "effective_causes": effective_causes(shares)}
    for erased in range(code.length):
        result[f"erasures/{erased}/mean"] = curve.mean[erased]
        result[f"erasures/{erased}/worst"] = curve.worst[erased]
        result[f"erasures/{erased}/optimum"] = curve.optimum[erased]
    result |= {f"reliance/{part}": share for part, share in enumerate(shares)}
    result |= {
        f"optimum/swaps/{size}": code.swap_optimum(size) for size in (1, 2) if f"swaps/{size}" in predictions.logits
    }
    test, independent = (
        float(predictions.correct(view).double().mean()) for view in ("test", "scene_shift/independent")
    )
    return result | {"scene_gap": test - independent, "worst_group": worst_group(predictions)}


def worst_group(predictions: Predictions) -> float:
    """The lowest accuracy over class × (scene conforms, scene opposed), each group of the size of a class."""
    assert predictions.conforms is not None
    labels = predictions.labels["test"]
    conforming = predictions.correct("test")[predictions.conforms], labels[predictions.conforms]
    opposed = predictions.correct("scene_shift/opposed"), labels
    return min(
        float(correct[own == label].double().mean()) for correct, own in (conforming, opposed) for label in own.unique()
    )
