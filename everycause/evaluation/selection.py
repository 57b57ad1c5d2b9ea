"""What a sweep may maximize: measures of validation images, never of a test split."""

from collections.abc import Callable

from everycause.data.dataset import DataParams
from everycause.data.split import Split
from everycause.data.validation_erasures import validation_erasures
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.inference import logits_of, logits_of_images
from everycause.model import Classifier
from everycause.training.objective import accuracy


def validation_causes(classifier: Classifier, data: DataParams, threads: int) -> dict[str, float]:
    """Completeness and the reliance on each part, from erasures of validation images.

    Raises:
        ValueError: the data are not rendered.
    """
    accuracies = {parts: accuracy(logits_of_images(classifier, images), labels) for parts, images, labels in validation_erasures(data, threads)}
    assert data.code is not None
    shares = reliance(accuracies, data.code.length)
    measures = {"completeness": completeness_score(profile(accuracies, data.code), data.code.num_classes), "effective_causes": effective_causes(shares)}
    return measures | {f"reliance/{part}": share for part, share in enumerate(shares)}


def validation_completeness(classifier: Classifier, data: DataParams, _validation: Split, threads: int) -> float:
    """The completeness score on erasures of validation images.

    Raises:
        ValueError: the data are not rendered.
    """
    return validation_causes(classifier, data, threads)["completeness"]


def validation_accuracy(classifier: Classifier, _data: DataParams, validation: Split, _threads: int) -> float:
    """Accuracy on the validation split."""
    return accuracy(logits_of(classifier, validation), validation.labels)


RULES: dict[str, Callable[[Classifier, DataParams, Split, int], float]] = {
    "validation completeness": validation_completeness,
    "validation accuracy": validation_accuracy,
}


def rules_of(classifier: Classifier, data: DataParams, validation: Split, threads: int) -> dict[str, float]:
    """Every measure that can be had of these data, by the rule's name."""
    return {name: rule(classifier, data, validation, threads) for name, rule in RULES.items() if data.code is not None or name == "validation accuracy"}
