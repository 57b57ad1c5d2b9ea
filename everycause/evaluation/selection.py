"""What a sweep may maximize: measures of validation images, never of a test split."""

from everycause.data.dataset import DataParams
from everycause.data.split import Split
from everycause.data.validation_erasures import ValidationErasures
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.inference import logits_of, logits_of_images
from everycause.model import Classifier
from everycause.training.objective import accuracy

COMPLETENESS, ACCURACY = "validation completeness", "validation accuracy"
GLANCE = 4
"""After an epoch every so many-th image is looked at, enough to tell a poor trial from a good one at a quarter of the cost."""


def validation_causes(classifier: Classifier, erasures: ValidationErasures, every: int = 1) -> dict[str, float]:
    """Completeness and the reliance on each part, from erasures of validation images, or of every so many-th of them."""
    accuracies = {parts: accuracy(logits_of_images(classifier, images[::every]), labels[::every]) for parts, images, labels in erasures}
    code = erasures.code
    shares = reliance(accuracies, code.length)
    measures = {"completeness": completeness_score(profile(accuracies, code), code.num_classes), "effective_causes": effective_causes(shares)}
    return measures | {f"reliance/{part}": share for part, share in enumerate(shares)}


class Judge:
    """Measures a classifier on validation images, by the names that a sweep may maximize.

    Raises:
        ValueError: an objective needs data whose parts are known, and these are not.
    """

    def __init__(self, data: DataParams, validation: Split, threads: int, objectives: list[str]) -> None:
        self._validation = validation
        self._erasures = ValidationErasures(data, threads) if data.code is not None or COMPLETENESS in objectives else None

    @property
    def names(self) -> list[str]:
        """What can be had of these data."""
        return [ACCURACY] if self._erasures is None else [ACCURACY, COMPLETENESS]

    def measures(self, classifier: Classifier) -> dict[str, float]:
        """Every measure that can be had of these data."""
        measures = {ACCURACY: accuracy(logits_of(classifier, self._validation), self._validation.labels)}
        return measures if self._erasures is None else measures | {COMPLETENESS: validation_causes(classifier, self._erasures)["completeness"]}

    def glance(self, classifier: Classifier, objective: str, accuracy_now: float) -> float:
        """An objective after an epoch: cheap, and comparable only with another trial's."""
        if objective == ACCURACY or self._erasures is None:
            return accuracy_now
        return validation_causes(classifier, self._erasures, GLANCE)["completeness"]
