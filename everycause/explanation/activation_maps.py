"""Selectors by activation maps of the explained layer: Grad-CAM, the map of some filters, object and context masks.

Papers: Selvaraju et al., ICCV 2017; Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, CVPR
2023 (arXiv 2303.03052).
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from everycause.errors import UserError
from everycause.explanation.ranking import (
    Ranking,
    Request,
    batches,
    random_keys,
    ranked_by_score,
    ranking_by_map,
    region_means,
)
from everycause.explanation.scoring import GRADIENT
from everycause.shapes import Bool, Float

OBJECT_ABOVE, CONTEXT_BELOW = 0.3, 0.5
"""In a map from 0 to 1 the object lies above the first, the context below the second. The values of the authors' public
code where another image fills the mask."""


def grad_cam(request: Request) -> Ranking:
    """Grad-CAM (Selvaraju et al., ICCV 2017) at the explained layer, averaged over each region.

    Raises:
        UserError: the explained layer gives no feature maps.
    """
    return ranking_by_map(request.task, grad_cam_maps(request), GRADIENT)


def grad_cam_maps(request: Request) -> Float[Tensor, "images rows columns"]:
    """Channels of the explained layer weighted by the mean gradient of the label's logit, summed, and cut off below 0.

    Raises:
        UserError: the explained layer gives no feature maps.
    """
    classifier, maps, gradients = request.classifier, [], []
    for images, labels in batches(request):
        with torch.enable_grad():
            read = classifier.layer_output(images)
            gradient = torch.autograd.grad(read.logits.gather(1, labels[:, None]).sum(), read.output)[0]
        maps.append(classifier.as_maps(read.output.detach()))
        gradients.append(classifier.as_maps(gradient))
    weights = torch.cat(gradients).mean(dim=(2, 3), keepdim=True)
    return (weights * torch.cat(maps)).sum(dim=1).relu()


def cam_masks(request: Request) -> Ranking:
    """The object mask of Xiao et al.: regions whose activation is high, in a random order, then the others.

    Raises:
        UserError: the explained layer gives no feature maps.
    """
    return _mask_first(request, region_activations(request) > OBJECT_ABOVE)


def cam_masks_context(request: Request) -> Ranking:
    """The context mask of Xiao et al.: regions whose activation is low, in a random order, then the others.

    Raises:
        UserError: the explained layer gives no feature maps.
    """
    return _mask_first(request, region_activations(request) <= CONTEXT_BELOW)


def region_activations(request: Request) -> Float[Tensor, "images regions"]:
    """The Grad-CAM map, averaged over each region and scaled from its smallest value to its largest: from 0 to 1.

    A map without differences becomes 0: there is no object, and everything is context.
    """
    masking = request.task.masking
    enlarged = interpolate(grad_cam_maps(request)[:, None], size=masking.images.shape[-2:], mode="nearest-exact")[:, 0]
    means = region_means(masking, enlarged)
    smallest = means.masked_fill(~masking.exists, torch.inf).amin(dim=1, keepdim=True)
    spread = means.amax(dim=1, keepdim=True) - smallest
    return ((means - smallest) / torch.where(spread > 0, spread, torch.ones_like(spread))).clamp_min(0)


def _mask_first(request: Request, chosen: Bool[Tensor, "images regions"]) -> Ranking:
    """The chosen regions before the others; a mask is a set, so chance decides within each."""
    return ranked_by_score(request.task, chosen.float() + random_keys(request), GRADIENT)


def filter_cam(request: Request) -> Ranking:
    """The class activation map of the class's counterfactual filters alone.

    Raises:
        UserError: there is no filter bank, or the logits are not linear in the averaged channels.
    """
    if request.filters is None:
        raise UserError(
            "the selector 'filter_cam' needs the filters of each class, and there are none here: "
            "run the stage accumulate_filters and give its folder"
        )
    classifier = request.classifier
    weight, _ = classifier.head()
    labels = request.task.labels
    chosen = weight[labels] * request.filters.to(weight.device)[labels]
    with torch.no_grad():
        maps = torch.cat([classifier.as_maps(classifier.layer_output(images).output) for images, _ in batches(request)])
    return ranking_by_map(request.task, torch.einsum("bkhw,bk->bhw", maps, chosen).relu(), 1)
