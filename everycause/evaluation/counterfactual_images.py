"""How good counterfactual images are, by measures that need no downloaded weights.

Every measure but the two Fréchet distances is a mean over images, so that methods are compared image by image. The
distances are taken between pooled features of an independently trained classifier: they rank methods on these images
and are never to be compared with distances in the literature.
"""

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from everycause.data.images import Images
from everycause.evaluation.statistics import Interval, paired_interval
from everycause.inference import logits_of_images, normalized_chunks
from everycause.models import Classifier
from everycause.networks import evaluating
from everycause.shapes import Float, Int64

COUT_STEPS = 50
"""Steps in which an original becomes its counterfactual."""
CHANGED = 13 / 255
"""A pixel counts as changed when a color moves by more than this: the amplitude of the pixel noise of Codebirds."""
HALVINGS = 10
"""Random halvings over which sFID is a mean."""


def image_measures(
    classifier: Classifier,
    originals: Images,
    changed: Images,
    prediction: Int64[Tensor, "images"],
    target: Int64[Tensor, "images"],
) -> dict[str, Float[np.ndarray, "images"]]:
    """The measures of each image.

    `flip`: the classifier sees the target. `cout`: see cout. `l1`: mean change of a color, from 0 to 1. `changed`:
    share of the pixels with a color that moved by more than CHANGED. `ssim`: structural similarity to the original.

    Args:
        classifier: The explained one.
        originals: The images as they were.
        changed: The counterfactual images.
        prediction: What the classifier sees in the originals.
        target: What it is to see in the counterfactual images.
    """
    change = (changed.float() - originals.float()).abs() / 255
    seen = logits_of_images(classifier, changed).argmax(dim=1)
    similar = [
        structural_similarity(before.numpy(), after.numpy(), channel_axis=0, data_range=255)
        for before, after in zip(originals, changed, strict=True)
    ]
    return {
        "flip": (seen == target).double().numpy(),
        "cout": cout(classifier, originals, changed, prediction, target).double().numpy(),
        "l1": change.mean(dim=(1, 2, 3)).double().numpy(),
        "changed": (change.amax(dim=1) > CHANGED).double().mean(dim=(1, 2)).numpy(),
        "ssim": np.array(similar, dtype=np.float64),
    }


def cout(
    classifier: Classifier,
    originals: Images,
    changed: Images,
    prediction: Int64[Tensor, "images"],
    target: Int64[Tensor, "images"],
) -> Float[Tensor, "images"]:
    """How much a sparse change does: the area under p(target) less that under p(prediction), from −1 to 1.

    The original becomes the counterfactual image in 50 steps, pixels that changed most first; the areas are those over
    the share of the pixels (Khorram and Fuxin, CVPR 2022, section 4).
    """
    count, _, height, width = originals.shape
    change = (changed.float() - originals.float()).abs().sum(dim=1).flatten(1)
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(count, height, width)
    probabilities = []
    for step in range(COUT_STEPS + 1):
        replaced = rank < round(step * height * width / COUT_STEPS)
        mixed = torch.where(replaced[:, None], changed, originals)
        probabilities.append(logits_of_images(classifier, mixed).softmax(dim=1))
    areas = torch.trapezoid(torch.stack(probabilities), dx=1 / COUT_STEPS, dim=0)
    rows = torch.arange(count)
    return areas[rows, target] - areas[rows, prediction]


@torch.inference_mode()
def pooled_features(classifier: Classifier, images: Images) -> Float[np.ndarray, "images features"]:
    """What a classifier's explained layer says of images, averaged over places."""
    with evaluating(classifier):
        found = [classifier.readout(chunk).activations.cpu() for chunk in normalized_chunks(classifier, images)]
    return torch.cat(found).double().numpy()


def frechet_distance(
    first: Float[np.ndarray, "images features"], second: Float[np.ndarray, "others features"]
) -> float:
    """The squared Fréchet distance of the normal distributions with the means and covariances of two sets.

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), Heusel et al., NeurIPS 2017, equation 6.
    """
    apart = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.atleast_2d(np.cov(one, rowvar=False)) for one in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(apart @ apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def split_distance(
    originals: Float[np.ndarray, "images features"], changed: Float[np.ndarray, "images features"], seed: int = 0
) -> float:
    """sFID: the Fréchet distance of the counterfactuals of one half of the images from the other half's originals.

    A counterfactual shares most pixels with its own original, which makes the plain distance too small (ACE, section
    4.2). The mean over HALVINGS random halvings.
    """
    generator, found = np.random.default_rng(seed), []
    for _ in range(HALVINGS):
        order = generator.permutation(len(originals))
        half, rest = order[: len(order) // 2], order[len(order) // 2 :]
        found += [frechet_distance(changed[one], originals[other]) for one, other in ((half, rest), (rest, half))]
    return float(np.mean(found))


def mean_with_interval(values: Float[np.ndarray, "images"]) -> Interval:
    """The mean over images where the value is known (not NaN), and its 95 % bootstrap interval over images."""
    known = values[~np.isnan(values)]
    return paired_interval(known[None]) if len(known) else Interval(float("nan"), float("nan"), float("nan"))
