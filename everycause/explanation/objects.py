"""Which pixels show the object: those that move the features of a network, whatever the class.

What a prediction relies on is not what the object is. A region that moves the probability of a class may be scenery,
and a part of the object may move it not at all. How far the *features* move when the surroundings of a pixel are
replaced by their local mean says more (area under the curve for the birds of Codebirds: 0.97, and 0.90 for the effect
on the probability; reports/log.md). To first order it needs no search: with the Jacobian J of the features and the
change d of an image, the features move by J·(d restricted to a window). Over random vectors v, the mean of
(v·J·(d restricted to the window))² is the squared length of that. One v costs one backward pass and serves every window
of the image.

This is the project's own.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from everycause.data.images import Images, normalized
from everycause.models import Classifier
from everycause.networks import evaluating
from everycause.shapes import Bool, Float

MEAN_SHARE, WINDOW_SHARE = 1 / 3, 1 / 13
"""Sides of the windows of the local mean and of what is replaced, as shares of the image's side."""


def sensitivity(
    classifier: Classifier, images: Images, projections: Float[Tensor, "projections images filters"]
) -> Float[Tensor, "images height width"]:
    """How far the pooled features move when the window about a pixel is replaced by its local mean, to first order.

    Args:
        classifier: Its features are the pooled activations of its explained layer.
        images: The images.
        projections: Random vectors, with mean 0 and covariance 1; the more, the less noise.
    """
    pixels = normalized(images, classifier.statistics, classifier.device)
    side = images.shape[-1]
    change = local_mean(pixels, odd(side * MEAN_SHARE)) - pixels
    reach = odd(side * WINDOW_SHARE)
    squares = torch.zeros(len(images), side, side, device=pixels.device)
    with evaluating(classifier), torch.enable_grad():
        pixels.requires_grad_()
        features = classifier.readout(pixels).activations
        for number, vectors in enumerate(projections.to(pixels.device)):
            last = number == len(projections) - 1
            (gradient,) = torch.autograd.grad((features * vectors).sum(), pixels, retain_graph=not last)
            moved = (gradient * change).sum(dim=1, keepdim=True)
            squares += (local_mean(moved, reach)[:, 0] * reach**2).square()
    return (squares / len(projections)).sqrt().cpu()


def local_mean(
    images: Float[Tensor, "images channels height width"], window: int
) -> Float[Tensor, "images channels height width"]:
    """The mean over a window about each pixel; beyond its border an image is continued by reflection."""
    reach = window // 2
    return avg_pool2d(pad(images, (reach, reach, reach, reach), mode="reflect"), window, stride=1)


def odd(length: float) -> int:
    """The nearest odd number of pixels, at least 1."""
    return max(1, 2 * round((length - 1) / 2) + 1)


def object_pixels(
    sensitivity: Float[Tensor, "images height width"], share: float
) -> Bool[Tensor, "images height width"]:
    """The given share of each image's pixels, those with the highest sensitivity, and the pixels next to them."""
    flat = sensitivity.flatten(1)
    first = flat.argsort(dim=1, descending=True, stable=True)[:, : max(1, round(share * flat.shape[1]))]
    chosen = torch.zeros_like(flat).scatter_(1, first, 1.0).view_as(sensitivity)
    return max_pool2d(chosen[:, None], 3, stride=1, padding=1)[:, 0] > 0


def objects(
    classifier: Classifier, images: Images, share: float, projections: int, generator: torch.Generator
) -> Bool[Tensor, "images height width"]:
    """The pixels of each image that show the object.

    Args:
        classifier: The classifier whose features are asked.
        images: The images, a batch that fits into memory with its gradients.
        share: Share of the pixels, 0 to 1.
        projections: Random vectors per image, which is the number of backward passes.
        generator: Draws them.
    """
    with evaluating(classifier), torch.no_grad():
        first = normalized(images[:1], classifier.statistics, classifier.device)
        filters = classifier.readout(first).activations.shape[1]
    vectors = torch.randn(projections, len(images), filters, generator=generator)
    return object_pixels(sensitivity(classifier, images, vectors), share)
