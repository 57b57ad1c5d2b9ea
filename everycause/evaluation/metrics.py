"""Every number of the results table, from stored predictions."""

from everycause.data.codes import Code
from everycause.data.shifts import erasure_name
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.evaluation.ood import Predictions


def metrics(predictions: Predictions, code: Code | None) -> dict[str, float]:
    """All metrics by name, accuracies and shares in [0, 1]; the causal ones only where the code is known."""
    result = {f"accuracy/{view}": float(predictions.correct(view).double().mean()) for view in predictions.logits if not view.startswith("erasures/")}
    for view in predictions.family("corruptions"):
        _, corruption, _ = view.split("/")
        result[f"accuracy/corruptions/{corruption}"] = float(predictions.correctness(f"corruptions/{corruption}").mean())
    if predictions.family("corruptions"):
        result["accuracy/corruptions"] = float(predictions.correctness("corruptions").mean())
    if code is not None:
        result |= causal_metrics(predictions, code)
    return result


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
    result |= {f"optimum/swaps/{size}": code.swap_optimum(size) for size in (1, 2) if f"swaps/{size}" in predictions.logits}
    test, independent = (float(predictions.correct(view).double().mean()) for view in ("test", "scene_shift/independent"))
    return result | {"scene_gap": test - independent, "worst_group": worst_group(predictions)}


def worst_group(predictions: Predictions) -> float:
    """The lowest accuracy over class × (scene conforms, scene opposed), each group of the size of a class."""
    assert predictions.conforms is not None
    labels = predictions.labels["test"]
    conforming = predictions.correct("test")[predictions.conforms], labels[predictions.conforms]
    opposed = predictions.correct("scene_shift/opposed"), labels
    return min(float(correct[own == label].double().mean()) for correct, own in (conforming, opposed) for label in own.unique())
