"""The numbers of the results table, computed from stored predictions.

mCE: for each corruption the error over all severities, divided by that of AlexNet; the mean over the fifteen, in
percent. Its errors depend on the published images, so the name is used for the released images of ImageNet-C alone.

Sources: arXiv 1903.12261 (mCE), 1706.04599 (expected calibration error), 1911.08731 (worst group).
"""

from math import isnan, nan

import torch
from sklearn.metrics import recall_score
from torch import Tensor

from codebirds.birds import erasure_name
from codebirds.codes import Code
from everycause.data.corruptions import group_of
from everycause.errors import UserError
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.evaluation.predictions import Answers, Predictions
from everycause.shapes import Bool, Int64

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Mean error of AlexNet over the five severities of each corruption of ImageNet-C, from arXiv 1903.12261."""
ALEXNET_CLEAN = 0.435
"""Error of AlexNet on the clean validation images."""
BINS = 15
"""Bins of the expected calibration error."""
TOP = 5
"""k of the top-k accuracy; it is given where there are more than k classes."""


def metrics(predictions: Predictions, code: Code | None) -> dict[str, float]:
    """All metrics by name: accuracies and shares in [0, 1], mCE in percent. The causal ones need the code."""
    views = [view for view in predictions.views if not view.startswith("erasures/")]
    result = {f"accuracy/{view}": predictions.accuracy(view) for view in views}
    for view in (view for view in views if view.count("/") < 2):
        answered = predictions.views[view]
        result[f"macro/{view}"] = mean_recall(answered.predicted, answered.labels)
        result[f"calibration_error/{view}"] = calibration_error(answered)
        if predictions.classes > TOP:
            result[f"top5/{view}"] = top_accuracy(answered, TOP)
    if predictions.family("corruptions"):
        result |= corruption_metrics(predictions)
    if "renditions" in predictions.among:
        result |= rendition_metrics(predictions)
    if predictions.groups is not None:
        by_group = group_accuracies(predictions.correct("test"), predictions.groups)
        result["worst_group"] = min(by_group.values())
        result |= {f"group/{group}": value for group, value in by_group.items()}
    if code is not None:
        result |= causal_metrics(predictions, code)
    return result


def mean_recall(prediction: Int64[Tensor, "images"], labels: Int64[Tensor, "images"]) -> float:
    """The mean recall of the classes that occur among the labels, also called balanced accuracy."""
    return float(recall_score(labels, prediction, labels=labels.unique(), average="macro"))


def top_accuracy(answered: Answers, count: int) -> float:
    """The share of images whose label is among the `count` largest logits."""
    return float((answered.rank < count).double().mean())


def calibration_error(answered: Answers) -> float:
    """The expected calibration error: |accuracy − mean confidence| in bins of equal width, weighted by their images."""
    confidence = answered.confidence
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, answered.correct.double() - confidence)
    return float(gap.abs().sum() / len(confidence))


def group_accuracies(correct: Bool[Tensor, "images"], groups: Int64[Tensor, "images"]) -> dict[int, float]:
    """The accuracy of each group that occurs."""
    return {int(group): float(correct[groups == group].double().mean()) for group in groups.unique()}


def corruption_metrics(predictions: Predictions) -> dict[str, float]:
    """Accuracy per corruption, per group of corruptions and over all; mCE for the released images alone."""
    names = list(dict.fromkeys(view.split("/")[1] for view in predictions.family("corruptions")))
    by_name = {name: float(predictions.correctness(f"corruptions/{name}").mean()) for name in names}
    result = {f"accuracy/corruptions/{name}": value for name, value in by_name.items()}
    result["accuracy/corruptions"] = sum(by_name.values()) / len(by_name)
    for group in dict.fromkeys(group_of(name) for name in names):
        members = [value for name, value in by_name.items() if group_of(name) == group]
        result[f"corruption_group/{group}"] = sum(members) / len(members)
    if predictions.released and set(names) == set(ALEXNET) and len(predictions.family("corruptions")) == 75:
        errors = {name: 1 - value for name, value in by_name.items()}
        clean = 1 - predictions.accuracy("test")
        result |= {"mce": mean_corruption_error(errors), "relative_mce": mean_corruption_error(errors, clean)}
    return result


def mean_corruption_error(errors: dict[str, float], clean: float | None = None) -> float:
    """mCE in percent, from each corruption's mean error over the five severities; relative mCE with the clean error.

    Raises:
        UserError: the corruptions are not the fifteen of ImageNet-C.
    """
    if set(errors) != set(ALEXNET):
        raise UserError(
            f"mCE is over the fifteen corruptions of ImageNet-C, and {len(errors)} were measured: "
            "set evaluation.corruptions to all of them"
        )
    ours, theirs = (0.0, 0.0) if clean is None else (clean, ALEXNET_CLEAN)
    return 100 * sum((errors[name] - ours) / (ALEXNET[name] - theirs) for name in ALEXNET) / len(ALEXNET)


def rendition_metrics(predictions: Predictions) -> dict[str, float]:
    """The clean accuracy on the 200 classes of ImageNet-R, with answers among these alone, and the loss from there."""
    assert predictions.compared is not None
    labels = predictions.labels("test")
    rows = torch.isin(labels, predictions.among["renditions"])
    accuracy = float((predictions.compared == labels)[rows].double().mean())
    return {"accuracy/test_200": accuracy, "rendition_gap": accuracy - predictions.accuracy("renditions")}


def causal_metrics(predictions: Predictions, code: Code) -> dict[str, float]:
    """Completeness, the reliance on each part, and how much the scene matters."""
    subsets = [parts for size in range(code.length + 1) for parts in code.subsets(size)]
    accuracies = {parts: predictions.accuracy(erasure_name(parts)) for parts in subsets}
    curve = profile(accuracies, code)
    shares = reliance(accuracies, code.length)
    result = {"completeness": completeness_score(curve, code.num_classes), "effective_causes": effective_causes(shares)}
    for erased in range(code.length):
        result[f"erasures/{erased}/mean"] = curve.mean[erased]
        result[f"erasures/{erased}/worst"] = curve.worst[erased]
        result[f"erasures/{erased}/optimum"] = curve.optimum[erased]
    result |= {f"reliance/{part}": share for part, share in enumerate(shares)}
    sizes = [size for size in (1, 2) if f"swaps/{size}" in predictions.views]
    result |= {f"optimum/swaps/{size}": code.swap_optimum(size) for size in sizes}
    gap = predictions.accuracy("test") - predictions.accuracy("scene_shift/independent")
    own = {"scene_gap": gap, "counter_gap": counter_gap(predictions), "worst_group": worst_group(predictions)}
    return result | {name: value for name, value in own.items() if not isnan(value)}


def counter_gap(predictions: Predictions) -> float:
    """How much accuracy the same birds lose when their usual scene becomes an unusual one, a mean over classes.

    Source: CounterAnimal (Wang et al., NeurIPS 2024, arXiv 2403.11497), accuracy on usual minus unusual backgrounds.
    There the photographs differ, here only the scene does. NaN where no test image shows its class's own scene.
    """
    assert predictions.conforms is not None
    lost = predictions.correct("test").double() - predictions.correct("scene_shift/opposed").double()
    labels = predictions.labels("test")
    means = [lost[predictions.conforms & (labels == label)] for label in labels.unique()]
    known = [float(values.mean()) for values in means if len(values)]
    return sum(known) / len(known) if known else nan


def worst_group(predictions: Predictions) -> float:
    """The lowest accuracy of a class whose scene conforms, or is opposed. All groups have the size of a class."""
    assert predictions.conforms is not None
    labels = predictions.labels("test")
    conforming = predictions.correct("test")[predictions.conforms], labels[predictions.conforms]
    opposed = predictions.correct("scene_shift/opposed"), labels
    return min(
        float(correct[own == label].double().mean()) for correct, own in (conforming, opposed) for label in own.unique()
    )
