"""What is recorded after each round of `masks_rounds`, on training and validation images; nothing is selected by it."""

from everycause.data.erasures import ValidationErasures
from everycause.data.sources import DataParams
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.evaluation.faithfulness import against_truth
from everycause.explanation.masks import Masks
from everycause.inference import logits_of_images
from everycause.models import Classifier
from everycause.training.rounds import size_at_flip


def validation_causes(classifier: Classifier, erasures: ValidationErasures, every: int = 1) -> dict[str, float]:
    """Completeness and the reliance on each part, from erasures of validation images, or of every n-th of them."""
    accuracies = {}
    for parts, images, labels in erasures:
        logits = logits_of_images(classifier, images[::every])
        accuracies[parts] = float((logits.argmax(dim=1) == labels[::every]).double().mean())
    code = erasures.code
    shares = reliance(accuracies, code.length)
    measures = {
        "completeness": completeness_score(profile(accuracies, code), code.num_classes),
        "effective_causes": effective_causes(shares),
    }
    return measures | {f"reliance/{part}": share for part, share in enumerate(shares)}


def round_metrics(
    number: int,
    classifier: Classifier,
    masks: Masks | None,
    data: DataParams,
    erasures: ValidationErasures | None,
    threads: int,
    seed: int,
) -> dict[str, float]:
    """The measures of one round, under names that begin with `round/`.

    Args:
        number: Of the round; 0 is the base.
        classifier: The model after the round.
        masks: The masks that were added before the round; None where none were.
        data: The data set, for the parts of Codebirds.
        erasures: Erasures of validation images, for completeness and reliance; None for photographs.
        threads: Number of threads that render.
        seed: Of the random sets beside the masks.

    `regions_or_more` counts images that never flip with one region more than the largest set.
    """
    measures = {"round": float(number)}
    if masks is not None:
        measures |= {"regions_or_more": size_at_flip(masks)}
        measures |= masks.summary() | against_truth(masks, data, threads, seed)
    if erasures is not None:
        measures |= validation_causes(classifier, erasures)
    return {f"round/{name}": value for name, value in measures.items()}
