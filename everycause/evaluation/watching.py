"""What is watched from round to round, on training and validation images: nothing is selected by it."""

from everycause.data.dataset import DataParams
from everycause.data.validation_erasures import ValidationErasures
from everycause.evaluation.faithfulness import against_truth
from everycause.evaluation.selection import validation_causes
from everycause.explanation.masks import Masks
from everycause.model import Classifier
from everycause.training.rounds import size_at_flip


def round_measures(
    number: int, classifier: Classifier, masks: Masks | None, data: DataParams, erasures: ValidationErasures | None, threads: int, seed: int
) -> dict[str, float]:
    """The model after a round (0: the base) and the masks that joined the pool before it; causes where there are erasures.

    `regions_or_more` counts images that never flip with one more than the largest set.
    """
    measures = {"round": float(number)}
    if masks is not None:
        measures |= {"regions_or_more": size_at_flip(masks)} | masks.summary() | against_truth(masks, data, threads, seed)
    if erasures is not None:
        measures |= validation_causes(classifier, erasures)
    return {f"round/{name}": value for name, value in measures.items()}
